"""Task instances put into words, against the texts that the data pack gives them."""

import gzip
import json
from pathlib import Path

import pytest
from siftune import Pool, UserError
from siftune_kmeans_coreset.wordings import instance, main, render, worded

LTD = Path(__file__).parents[3] / "shared" / "data" / "ltd"
WORDINGS = {
    "copa": [
        {"wording_id": 0, "prompt": "{premise} {because_so}...\n- {opt0}\n- {opt1}", "verbalizer": None},
        {"wording_id": 1, "prompt": "{premise} What is the {question}? {opts_or_q}", "verbalizer": None},
    ],
    "wic": [{"wording_id": 0, "prompt": "{word}: {a} / {b}", "verbalizer": {"same": "Yes", "different": "No"}}],
}
COPA = {
    "dataset": "copa",
    "fields": {"premise": "It rained.", "question": "effect"},
    "choices": ["{opt1} is wet.", "It was dry."],
    "label": 0,
    "prompt": "an old text",
}
WIC = {"dataset": "wic", "fields": {"word": "set", "a": "Set it.", "b": "A set."}, "label": "different"}


def test_an_instance_is_its_fields_and_not_its_text():
    assert instance(COPA) == instance({**COPA, "prompt": "another text", "wording_id": 7})
    assert instance(COPA) != instance({**COPA, "choices": ["a", "b"]})
    assert instance(WIC) != instance({**WIC, "fields": {**WIC["fields"], "b": "The set."}})


def test_words_are_filled_in_once():
    row = worded(COPA, WORDINGS["copa"][0])
    assert row["prompt"] == "It rained. so...\n- {opt1} is wet.\n- It was dry."
    assert (row["completion"], row["instance"], row["wording"]) == ("{opt1} is wet.", instance(COPA), 0)
    assert worded(WIC, WORDINGS["wic"][0])["completion"] == "No"


def test_one_wording_against_all_renders_the_same_instances():
    rows = [COPA, WIC, {**COPA, "prompt": "again, in other words"}]
    one, every = (list(render(rows, WORDINGS, which)) for which in (0, None))
    assert [row["wording"] for row in one] == [0, 0] and len(every) == 3
    assert {row["instance"] for row in one} == {row["instance"] for row in every}
    # what was rendered and selected can be rendered anew
    assert list(render(one, WORDINGS, None)) == every


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="no wording 1 for wic"):
        list(render([WIC], WORDINGS, 1))
    with pytest.raises(UserError, match="asks for 'a'"):
        worded({**WIC, "fields": {"word": "set"}}, WORDINGS["wic"][0])
    with pytest.raises(UserError, match="no word for 'maybe'"):
        worded({**WIC, "label": "maybe"}, WORDINGS["wic"][0])


def test_from_the_command_line(tmp_path, capsys):
    rows, wordings, out = tmp_path / "rows.jsonl", tmp_path / "wordings.json", tmp_path / "out.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in (COPA, WIC)))
    wordings.write_text(json.dumps(WORDINGS))
    main([str(rows), "--wordings", str(wordings), "--every", "--out", str(out)])
    assert "2 instances, 3 rows" in capsys.readouterr().out
    pool = Pool.read(out)
    assert [sample.response for sample in pool.samples] == ["{opt1} is wet.", "{opt1} is wet.", "No"]
    rows.write_text('{"dataset": "wic"}')
    with pytest.raises(SystemExit, match="line 1: no 'fields'"):
        main([str(rows), "--wordings", str(wordings), "--out", str(out)])


@pytest.mark.skipif(not LTD.is_dir(), reason="the data pack is not here")
def test_texts_are_those_of_the_data_pack():
    wordings = json.loads((LTD / "wordings.json").read_text(encoding="utf-8"))
    for path in sorted(LTD.glob("*.train.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line, _ in zip(lines, range(200), strict=False):
                row = json.loads(line)
                wording = next(w for w in wordings[row["dataset"]] if w["wording_id"] == row["wording_id"])
                told = worded(row, wording)
                assert (told["prompt"], told["completion"]) == (row["prompt"], row["answer"]), path.name
