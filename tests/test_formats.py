"""Every container and shape in and out, and a clear sentence for what cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import siftune
import zstandard
from siftune import Pool, UserError

from .conftest import write_jsonl

ALPACA = {"instruction": "Add", "input": "1, 2", "output": "3", "source": "maths"}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
}
MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "n": 1}
PROMPT = {"prompt": "q", "completion": "a"}
CHAT = {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
HISTORY = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
EVERY = [ALPACA, SHAREGPT, MESSAGES, PROMPT, CHAT, HISTORY]


def said(sample: Any) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in sample.messages]


def test_every_shape_is_detected_and_read(tmp_path: Path) -> None:
    pool = Pool.read(write_jsonl(tmp_path / "a.jsonl", EVERY))
    assert said(pool.samples[0]) == [("user", "Add\n\n1, 2"), ("assistant", "3")]
    assert (pool.samples[0].instruction, pool.samples[0].input) == ("Add", "1, 2")
    assert said(pool.samples[1]) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    assert (
        said(pool.samples[2]) == said(pool.samples[3]) == said(pool.samples[4]) == [("user", "q"), ("assistant", "a")]
    )
    assert said(pool.samples[5]) == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]
    assert len({s.id for s in pool.samples}) == 4, "the same words have the same id in every shape"


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "a.parquet", "a.ndjson"]
)
def test_every_container_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    rows = [
        {**ALPACA, "output": text}
        for text in ("3", "drei \u00e9\u4e09\U0001f600", "line\nbreak \u2028 here", "x" * 100_000)
    ]
    pool = Pool.of(rows)
    path = pool.write(tmp_path / name)
    again = Pool.read(path)
    assert [s.id for s in again.samples] == [s.id for s in pool.samples]
    assert again.source is not None and list(again.source.rows) == rows


def test_rows_are_written_as_they_came_or_in_another_shape(tmp_path: Path) -> None:
    pool = Pool.read(write_jsonl(tmp_path / "a.jsonl", EVERY))
    path = pool.write(tmp_path / "b.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == EVERY
    path = pool.write(tmp_path / "c.jsonl", format="messages")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {
        "messages": [{"role": "user", "content": "Add\n\n1, 2"}, {"role": "assistant", "content": "3"}],
        "source": "maths",
    }
    for shape in ("sharegpt", "prompt", "messages", "alpaca"):
        again = Pool.read(pool.write(tmp_path / f"{shape}.jsonl", format=shape))
        assert [said(s) for s in again.samples] == [said(s) for s in pool.samples], shape


def test_unknown_columns_are_kept_and_asked_for_as_input(tmp_path: Path) -> None:
    pool = Pool.read(
        write_jsonl(tmp_path / "a.jsonl", [ALPACA, {**ALPACA, "output": "4", "deep": {"x": [1]}, "score": 2}])
    )
    assert pool.names() == ["input.source", "input.deep", "input.score"]
    view = pool.view()
    assert set(view.column("input.source")) == {"maths"}
    numbers = view.column("input.score")
    assert numbers.dtype == "float64" and sorted(numbers[~(numbers != numbers)].tolist()) == [2.0]


BAD = [
    ('{"instruction": "a", "output": ', "is not JSON: column"),
    ('{"instruction": "a"}', "none of the formats that can be read"),
    ('{"instruction": "a", "output": 3}', "field 'output' is a number, not a text"),
    ('{"instruction": "a", "output": null}', "field 'output' is null, not a text"),
    ('{"instruction": ["a"], "output": "b"}', "field 'instruction' is a list, not a text"),
    ("[1, 2]", "is a list, not an object"),
    ('{"messages": [{"role": "usr", "content": "a"}]}', "unknown role 'usr'. Did you mean 'user'?"),
    (
        '{"messages": [{"role": "user", "content": 3}]}',
        "message 1 of 'messages' has a 'content' that is a number",
    ),
    ('{"messages": [{"role": "user"}]}', "message 1 of 'messages' has no 'content'"),
    ('{"messages": "hello"}', "field 'messages' is str, not a list"),
    ('{"conversations": [["human", "x"]]}', "message 1 of 'conversations' is a list, not an object"),
    ('{"instruction": "a", "output": "\\ud800 half"}', "half a surrogate pair"),
    ('{"instruction": "a", "output": "b", "history": [["one"]]}', "turn 1 of 'history' is not a pair"),
    ("[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "problem"), BAD)
def test_a_malformed_row_is_named_by_file_and_row(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps(ALPACA) + "\n\n" + line + "\n" + json.dumps(MESSAGES) + "\n")
    with pytest.raises(UserError) as caught:
        Pool.read(path)
    assert f"{path}, row 3: " in str(caught.value) and problem in str(caught.value)
    pool = Pool.read(path, on_bad_row="leave-out")
    assert len(pool) == 2 and pool.source is not None
    assert pool.source.numbers == [1, 4]
    assert pool.source.rejected[0]["row"] == 3 and problem in pool.source.rejected[0]["reason"]


def test_rows_left_out_in_reading_are_written_with_reasons(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps(ALPACA) + "\n" + '{"instruction": "a", "output": 3}\n')
    run = siftune.run(path, ["score length"], out=tmp_path / "run", on_bad_row="leave-out")
    [one] = [json.loads(line) for line in (run.folder / "rejected.jsonl").read_text().splitlines()]
    assert one["row"] == 2 and one["file"] == str(path) and "'output' is a number" in one["reason"]
    assert run.manifest["counts"]["rejected"] == 1 and run.manifest["counts"]["rows"] == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"  \n \n", "is empty"),
        (b"[]", "holds no rows"),
        ("[{}]".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"hello", "neither JSON, JSONL nor Parquet: it begins with 'hello'"),
        (b'[{"instruction": "a", "output": "b"},]', "is not JSON: line 1"),
        (b'{\n "data": [],\n "n": 1\n}\n', "is one object (data, n.; wanted is a list of rows"),
        (b'{"question": "a", "answer": "b"}', "alpaca (instruction, output.*; rename the fields to those of one$"),
        (b'{"instruction": "a", "output": "\xff\xfe"}\n', "row 1: is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"(?s)" + problem.replace("(", r"\(")):
        Pool.read(path)


def test_damaged_archives_and_missing_files(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(ALPACA).encode() * 200)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.jsonl.zst").write_bytes(b"not zstd at all")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    for name in ("cut.jsonl.gz", "bad.jsonl.zst", "bad.parquet"):
        with pytest.raises(UserError, match=name):
            Pool.read(tmp_path / name)
    with pytest.raises(UserError, match=r"there is no file .*bat\.parquet\. Did you mean 'bad\.parquet'"):
        Pool.read(tmp_path / "bat.parquet")
    with pytest.raises(UserError, match="is a folder"):
        Pool.read(tmp_path)
    (tmp_path / "pool.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(UserError, match=r"python -c .*to_json\('pool.jsonl', orient='records', lines=True\)"):
        Pool.read(tmp_path / "pool.csv")


def test_a_shape_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    both = {**MESSAGES, **PROMPT, "prompt": "other"}
    path = write_jsonl(tmp_path / "a.jsonl", [both])
    assert Pool.read(path).samples[0].prompt == "q"
    assert Pool.read(path, shape="prompt").samples[0].prompt == "other"
    with pytest.raises(UserError, match=r"row 1: has no field 'conversations', which sharegpt rows have"):
        Pool.read(path, shape="sharegpt")
    with pytest.raises(UserError, match=r"no row format 'mesages'. Did you mean 'messages'"):
        Pool.read(path, shape="mesages")


def test_several_files_count_on(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", [ALPACA, {**ALPACA, "output": "4"}])
    pool = Pool.read(one, write_jsonl(tmp_path / "b.jsonl", [MESSAGES]))
    assert pool.source is not None and pool.source.numbers == [1, 2, 3]
    assert len(Pool.read(one, limit=1)) == 1


def test_a_json_file_may_hold_lines_and_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ALPACA).encode() + b"\r\n" + json.dumps(MESSAGES).encode())
    assert len(Pool.read(path)) == 2


def test_parquet_with_nested_messages_and_nulls(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"messages": [MESSAGES["messages"]], "input": pa.array([None], pa.string())}),
        tmp_path / "a.parquet",
    )
    assert said(Pool.read(tmp_path / "a.parquet").samples[0]) == [("user", "q"), ("assistant", "a")]
    table = pa.table({"instruction": ["a"], "output": ["b"], "input": pa.array([None], pa.string())})
    pq.write_table(table, tmp_path / "b.parquet")
    assert said(Pool.read(tmp_path / "b.parquet").samples[0]) == [("user", "a"), ("assistant", "b")]


def test_hub_data_sets_fail_with_a_sentence_when_there_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"hf://org/none cannot be read: "):
        Pool.read("hf://org/none")


def test_large_windows_of_zstd_are_read(tmp_path: Path) -> None:
    text = (json.dumps(ALPACA) + "\n").encode() * 1000
    parameters = zstandard.ZstdCompressionParameters(window_log=26)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(text))
    assert len(Pool.read(tmp_path / "a.jsonl.zst")) == 1000


def test_zstd_that_is_cut_off_is_not_read_as_if_it_were_whole(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({**ALPACA, "n": hashlib.sha256(bytes([n])).hexdigest() * 90}).encode() + b"\n"
                     for n in range(100))  # fmt: skip
    path = tmp_path / "pool.jsonl.zst"
    packed = zstandard.ZstdCompressor().compress(lines)
    path.write_bytes(packed + packed)
    assert len(Pool.read(path)) == 200  # frame after frame
    path.write_bytes(packed + packed[:-40])
    with pytest.raises(UserError, match=r"cannot be read to its end: the file is cut off"):
        Pool.read(path, on_bad_row="leave-out")


def test_a_number_of_thousands_of_digits_is_a_malformed_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pool.jsonl", [ALPACA])
    path.write_text(path.read_text() + '{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}\n")
    pool = Pool.read(path, on_bad_row="leave-out")
    assert pool.source is not None and [one["row"] for one in pool.source.rejected] == [2]


def test_half_a_surrogate_pair_in_a_column_of_the_input_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text('{"instruction": "a", "output": "é", "note": "\\ud800"}\n')
    Pool.read(path).write(tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == json.loads(path.read_text())


def test_a_date_can_be_written_as_json(tmp_path: Path) -> None:
    table = {**{name: [value] for name, value in ALPACA.items()}, "on": [datetime(2020, 1, 2)]}
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    Pool.read(tmp_path / "p.parquet").write(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())[0]["on"] == "2020-01-02 00:00:00"


def test_a_row_without_messages_can_be_written_in_another_shape(tmp_path: Path) -> None:
    Pool.of([{"messages": []}]).write(tmp_path / "out.jsonl", format="alpaca")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"instruction": "", "input": "", "output": ""}
