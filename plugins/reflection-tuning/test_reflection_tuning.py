"""Reflection against a real server on the loopback, its parsing, and the choice among siblings."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siftune
from siftune import Column, Context, Fate, Sample, Samples, Selection, UserError, teacher
from siftune.loopback import part, teaching
from siftune.teacher import Chat
from siftune.testing import conforms
from siftune_reflection_tuning.reflect import Instruction, Reflection, Response
from siftune_reflection_tuning.replies import readings, text
from siftune_reflection_tuning.sibling import Sibling

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "reflection" / "reflect_parse.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "BACKOFF", 0.01)


def better(body: dict[str, Any]) -> tuple[str, str]:
    return json.dumps(
        {"critique": "thin", "already_good": False, "response": part(body, "response") + "!"}
    ), "stop"


def reflected(method: Reflection, samples: Samples, tmp_path: Path, url: str) -> list[Sample | Fate]:
    with closing(Chat(url, "toy", say=lambda _: None)) as chat:
        method.teacher = url
        run = Context(tmp_path, chat_with=lambda *_: chat)
        return list(method.reflect(samples=samples, run=run))


def test_a_response_is_rewritten_beside_its_parent(tmp_path: Path) -> None:
    samples = Samples.of([Sample.of(f"Q{i}", f"A{i}", input="in" if i else "") for i in range(5)])
    with teaching(better) as server:
        found = reflected(Response(), samples, tmp_path, server.url)
    assert {s.parent: s.response for s in found if isinstance(s, Sample)} == {
        s.id: s.response + "!" for s in samples
    }
    assert {(s.instruction, s.input) for s in found if isinstance(s, Sample)} == {
        (s.instruction, s.input) for s in samples
    }
    asked = server.bodies[0]
    schema = asked["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["critique", "already_good", "response"] == list(schema["properties"])
    assert asked["temperature"] == 0 and asked["max_tokens"] == 2048


def test_an_instruction_and_its_answer_come_as_a_pair(tmp_path: Path) -> None:
    samples = Samples.of(
        [
            Sample.of("sum", "3", input="1 2"),
            Sample.of("product", "2", input="1 2"),
            Sample.of("name a fruit", "apple", input="<noinput>"),
            Sample.of("unsaid", "x", input="some table"),
            Sample.of("unsaid and quoted", "x", input="a table"),
        ]
    )

    def write(body: dict[str, Any]) -> tuple[str, str]:
        old, held = part(body, "instruction"), part(body, "input")
        fields = {
            "critique": "",
            "already_good": False,
            "instruction": f"hard {old}",
            "response": f"long {old}",
        }
        said = {"sum": "keep", "product": "merge"}.get(old)
        if old == "unsaid and quoted":
            fields["instruction"] = f"hard: {held}"
        return json.dumps(fields | ({"input": said} if said else {})), "stop"

    with teaching(write) as server:
        found = reflected(Instruction(), samples, tmp_path, server.url)
    by_parent = {s.parent: (s.instruction, s.input, s.response) for s in found if isinstance(s, Sample)}
    assert [by_parent[s.id] for s in samples] == [
        ("hard sum", "1 2", "long sum"),
        ("hard product", "", "long product"),
        ("hard name a fruit", "", "long name a fruit"),
        ("hard unsaid", "some table", "long unsaid"),
        ("hard: a table", "", "long unsaid and quoted"),
    ]
    schemas = [body["response_format"]["json_schema"]["schema"] for body in server.bodies]
    assert sum("input" in schema["required"] for schema in schemas) == 4  # there is no input in "<noinput>"


def test_half_a_pair_is_no_rewrite(tmp_path: Path) -> None:
    def write(_: dict[str, Any]) -> tuple[str, str]:
        return json.dumps(
            {"critique": "", "already_good": False, "instruction": "new", "response": ""}
        ), "stop"

    with teaching(write) as server:
        found = reflected(Instruction(attempts=2), Samples.of([Sample.of("q", "a")]), tmp_path, server.url)
    assert isinstance(found[0], Fate) and found[0].failed.startswith(
        "no answer that can be read in 2 attempts"
    )


@pytest.mark.parametrize(
    "reply",
    [
        {"critique": "fine", "already_good": True, "response": ""},
        {"critique": "fine", "already_good": "yes"},
        {"critique": "fine", "already_good": False, "response": " a \n"},
    ],
)
def test_what_is_good_already_is_handed_back_as_it_is(reply: dict[str, Any], tmp_path: Path) -> None:
    samples = Samples.of([Sample.of("q", "a")])
    with teaching(lambda _: (json.dumps(reply), "stop")) as server:
        (found,) = reflected(Response(), samples, tmp_path, server.url)
    assert isinstance(found, Sample) and found.id == found.parent == samples[0].id


def test_a_cut_answer_is_a_failure_and_is_not_asked_again(tmp_path: Path) -> None:
    with teaching(lambda _: ('{"critique": "x", "response": "half an', "length")) as server:
        (found,) = reflected(Response(max_tokens=9), Samples.of([Sample.of("q", "a")]), tmp_path, server.url)
    assert found == Fate(0, failed="the answer was cut at 9 tokens; raise --max-tokens")
    assert len(server.bodies) == 1


def test_what_the_server_refuses_fails_with_its_words(tmp_path: Path) -> None:
    def write(body: dict[str, Any]) -> tuple[str, str]:
        return ("too long by far", "refused") if part(body, "response") == "long" else better(body)

    samples = Samples.of([Sample.of("q", "long"), Sample.of("q", "short")])
    with teaching(write) as server:
        found = reflected(Response(), samples, tmp_path, server.url)
    assert Fate(0, failed="HTTP 400: too long by far") in found
    assert [s.response for s in found if isinstance(s, Sample)] == ["short!"]


def test_what_cannot_be_read_is_asked_again_warmer(tmp_path: Path) -> None:
    def write(body: dict[str, Any]) -> tuple[str, str]:
        return better(body) if body["temperature"] > 0.7 else ("I would rather chat.", "stop")

    with teaching(write) as server:
        (found,) = reflected(Response(), Samples.of([Sample.of("q", "a")]), tmp_path, server.url)
    assert isinstance(found, Sample) and found.response == "a!"
    assert [body["temperature"] for body in server.bodies] == [0, 0.4, 0.8]


def test_samples_without_both_parts_are_left_out(tmp_path: Path) -> None:
    samples = Samples.of([Sample.of("q", " "), Sample(({"role": "assistant", "content": "hello"},))])
    with teaching(better) as server:
        found = reflected(Response(), samples, tmp_path, server.url)
    assert found == [Fate(0, left_out="no response"), Fate(1, left_out="no instruction")]
    assert not server.bodies


def test_of_a_conversation_the_last_turn_is_rewritten(tmp_path: Path) -> None:
    turns = [
        ("system", "be kind"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "more"),
        ("assistant", "so"),
    ]
    samples = Samples.of([Sample(tuple({"role": role, "content": content} for role, content in turns))])
    with teaching(better) as server:
        (found,) = reflected(Response(), samples, tmp_path, server.url)
    assert isinstance(found, Sample) and [m["content"] for m in found.messages[:4]] == [
        c for _, c in turns[:4]
    ]
    assert found.response == "so!"
    assert part(server.bodies[0], "earlier_turns") == "system: be kind\n\nuser: hi\n\nassistant: hello"


@pytest.mark.parametrize("options", [{"attempts": 0}, {"max_tokens": 0}, {"temperature": 3.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--"):
        Response(**options)


def first(reply: str, *names: str) -> dict[str, str] | None:
    for fields in readings(reply):
        found = {name: text(fields.get(name)) for name in names}
        if all(found.values()):
            return found
    return None


@pytest.mark.parametrize(
    ("reply", "response"),
    [
        ('{"response": "yes"}', "yes"),
        ('```json\n{"critique": "c", "response": "yes"}\n```', "yes"),
        ('Here: {"response": "your answer"} and filled in: {"response": "yes"}. Done.', "yes"),
        ('<think>{"response": "no"}</think>{"response": "yes"}', "yes"),
        ('{"response": "two\nlines"}', "two\nlines"),
        (
            r'{"response": "\(\alpha\) and \frac{}{} and \"quoted\" \\ n"}',
            r"\(\alpha\) and " "\frac{}{}" r' and "quoted" \ n',
        ),
        (
            '{"response": "a set {1, 2} and {\\"response\\": \\"inner\\"}"}',
            'a set {1, 2} and {"response": "inner"}',
        ),
        ("[Better Answer] yes [End]", "yes"),
        ("**[better answer]** yes **[END]** I hope it helps.", "yes"),
        ("Critique.\n\n**Better answer:** yes", "yes"),
        ("## Improved Response:\nyes\nand yes", "yes\nand yes"),
        (
            "[Better Answer] Protect Endangered species. The End. [End]",
            "Protect Endangered species. The End.",
        ),
        (
            "[Better Answer] your answer [End] so:\n[Better Answer] check your answer [End]",
            "check your answer",
        ),
        ("[Better Answer] a list has [End] as its mark [End]", "a list has [End] as its mark"),
        ("[Better Answer] N/A [End]", None),
        ("[Better Answer] [End]", None),
        ("A better answer is not possible.", None),
        ('{"response": {"text": "yes"}}', None),
        ('{"response": "cut', None),
        ("{" * 3000, None),
        ("", None),
    ],
)
def test_what_a_reply_may_look_like(reply: str, response: str | None) -> None:
    assert first(reply, "response") == ({"response": response} if response else None)


@pytest.mark.parametrize(
    ("reply", "pair"),
    [
        ("[New Instruction] I [End] [New Answer] A [End]", ("I", "A")),
        ("[New Instruction] I\n\n3. [New Answer] A", ("I", "A")),
        ("New Instruction: I\nNew Answer: A", ("I", "A")),
        ("[New Answer] A [End] [New Instruction] I [End]", ("I", "A")),
        (
            "[new instruction] your instruction [end] ... [new instruction] I [end] [new answer] A [end]",
            ("I", "A"),
        ),
        ("[New Instruction] I is cut off", None),
        ("[New Answer] A [End]", None),
        ('{"instruction": "I"}', None),
    ],
)
def test_a_pair_is_read_whole_or_not_at_all(reply: str, pair: tuple[str, str] | None) -> None:
    found = first(reply, "instruction", "response")
    assert found == (dict(zip(("instruction", "response"), pair, strict=True)) if pair else None)


def test_where_the_authors_parser_finds_a_text_that_is_whole_so_does_ours() -> None:
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden/reflection")
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    # cut at a bare "End", the first of several, or a form that only holds the place
    mended = {
        "bare_End_word",
        "two_markers_no_end_between",
        "markdown",
        "placeholder",
        "answer_contains_[End]",
    }
    compared = 0
    for case in cases["response"]:
        theirs = case["reference_better_answer"]
        if theirs and case["name"] not in mended:
            assert first(case["raw"], "response") == {"response": theirs}, case["name"]
            compared += 1
    for case in cases["instruction"]:
        theirs = case["reference_final"]
        old = case["original"]
        if theirs["instruction"] != old["instruction"] and theirs["output"] != old["output"]:
            if case["name"] not in mended:
                pair = {"instruction": theirs["instruction"], "response": theirs["output"]}
                assert first(case["raw"], "instruction", "response") == pair, case["name"]
                compared += 1
    assert compared >= 6


# ---- through the engine ----


def test_the_rules_of_their_hooks_are_kept() -> None:
    assert conforms("select", "sibling", by="ifd")
    with teaching(better) as server:
        assert conforms("reflect", "response", teacher=server.url, teacher_model="toy")


def rows_in(path: Path, count: int) -> Path:
    lines = [
        json.dumps({"instruction": f"Q{i}", "input": "", "output": f"A{i}", "n": i}) for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_run_counts_what_became_of_every_sample(tmp_path: Path) -> None:
    def write(body: dict[str, Any]) -> tuple[str, str]:
        number = int(part(body, "response")[1:])
        if number == 3:
            return json.dumps({"critique": "fine", "already_good": True, "response": ""}), "stop"
        return ("{", "length") if number == 5 else better(body)

    data = rows_in(tmp_path / "pool.jsonl", 20)
    with teaching(write) as server:
        done = siftune.run(
            data,
            ["reflect response", "select sibling --by input.n"],
            out=tmp_path / "out",
            store=tmp_path / "store",
            teacher=server.url,
            teacher_model="toy",
        )
    reflecting, choosing = done.state.done
    assert reflecting.figures["rewrites"] == 18 and reflecting.figures["already_good"] == 1
    assert sorted(sample.response for sample in done.state.pool.samples[20:])[0] == "A0!"
    failed = [str(reason) for reason in reflecting.reasons if reason]
    assert failed == ["the answer was cut at 2048 tokens; raise --max-tokens"]
    # a rewrite has no value of its own in a column that the rows came with
    assert choosing.kept is not None and sorted(choosing.kept.tolist()) == list(range(20))
    assert {sample.made_by for sample in done.state.pool.samples[20:]} == {"reflect response"}


def test_a_run_that_is_killed_goes_on_and_pays_once(tmp_path: Path) -> None:
    go_on = threading.Event()

    def write(body: dict[str, Any]) -> tuple[str, str]:
        if len(server.bodies) > 20:
            go_on.wait(30)
        return better(body)

    def kept() -> int:
        memory = tmp_path / "store" / "answers.sqlite"
        if not memory.exists():
            return 0
        with closing(sqlite3.connect(memory)) as file:
            try:
                return int(file.execute("SELECT count(*) FROM answers").fetchone()[0])
            except sqlite3.OperationalError:  # not yet there
                return 0

    data = rows_in(tmp_path / "pool.jsonl", 60)
    with teaching(write) as server:
        command = [sys.executable, "-m", "siftune", "run", "--out", str(tmp_path / "out"), "--store"]
        command += [str(tmp_path / "store"), "--teacher", server.url, "--teacher-model", "toy"]
        command += [str(data), "reflect", "response"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            end = time.monotonic() + 60
            while kept() < 20 and time.monotonic() < end:
                time.sleep(0.05)
            run.kill()
        assert kept() == 20
        go_on.set()
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert again.returncode == 0 and "60 rewrites" in again.stdout + again.stderr, again
        times = Counter(part(body, "response") for body in server.bodies)
    assert len(times) == 60
    assert sum(times.values()) - 60 <= 16  # only what was under way when the run was killed


# ---- select sibling ----


def family(*responses: str) -> list[Sample]:
    """An original and rewrites of it."""
    original = Sample.of("q", responses[0])
    return [original, *(original.rewrite(response=response) for response in responses[1:])]


def view(
    samples: list[Sample], values: list[float | None], about: Column, tokens: list[float] | None = None
) -> Samples:
    extra = {} if tokens is None else {"x__tokens": np.array(tokens)}
    made = Samples.of(samples, x=np.array(values, float), **extra)
    made.pool.columns["x"].about = about
    return made


HIGHER, LOWER = Column("x", better="higher"), Column("x", better="lower")


def kept(method: Sibling, samples: Samples) -> tuple[list[int], Selection]:
    selection: Selection = method.select(samples=samples)
    assert set(selection.positions.tolist()) | set(selection.left_out) == set(range(len(samples)))
    assert not set(selection.positions.tolist()) & set(selection.left_out)
    return selection.positions.tolist(), selection


def test_the_best_of_each_family_stays_and_the_best_stands_first() -> None:
    samples = family("a", "b", "c") + family("d", "e") + family("f")
    values = [0.1, 0.5, 0.3, 0.9, 0.2, 0.6]
    assert kept(Sibling(by="x"), view(samples, values, HIGHER))[0] == [3, 5, 1]
    assert kept(Sibling(by="x"), view(samples, values, LOWER))[0] == [0, 4, 5]
    assert kept(Sibling(by="x", lowest=True), view(samples, values, HIGHER))[0] == [0, 4, 5]
    _, selection = kept(Sibling(by="x"), view(samples, values, HIGHER))
    assert selection.reasons == [
        "x 0.9, in its family also 0.2",
        "alone in its family",
        "x 0.5, in its family also 0.1, 0.3",
    ]
    assert selection.left_out[0] == f"x 0.1: {samples[1].id} of its family has x 0.5"


def test_ties_go_to_the_original_wherever_it_stands() -> None:
    samples = family("a", "b", "c")
    grandchild = samples[1].rewrite(response="d")
    mixed = [grandchild, samples[2], samples[0], samples[1]]
    assert kept(Sibling(by="x"), view(mixed, [1, 1, 1, 1], HIGHER))[0] == [2]
    assert kept(Sibling(by="x"), view(mixed, [1, 0, 0, 1], HIGHER))[0] == [3]  # the elder of two rewrites


def test_a_missing_value_never_wins() -> None:
    samples = family("a", "b") + family("c", "d")
    none = float("nan")
    for about in (HIGHER, LOWER):
        positions, selection = kept(Sibling(by="x"), view(samples, [none, 0.2, none, none], about))
        assert positions == [1]
        assert selection.left_out == {0: "no x", 2: "no x", 3: "no x"}


def test_the_range_of_the_scorer_is_obeyed_unless_told_otherwise() -> None:
    samples = family("a", "b") + family("c", "d")
    about = Column("x", better="higher", below=1, at_least={"x.tokens": 10})
    made = view(samples, [0.9, 1.2, 0.5, 0.8], about, tokens=[20, 20, 20, 3])
    positions, selection = kept(Sibling(by="x"), made)
    assert positions == [0, 2]
    assert selection.left_out == {1: "x 1.2 is not below 1", 3: "x.tokens 3 is not at least 10"}
    assert kept(Sibling(by="x", any=True), made)[0] == [1, 3]


def test_nothing_in_play_and_no_numbers() -> None:
    assert kept(Sibling(by="x"), view([], [], HIGHER))[0] == []
    texts = Samples.of([Sample.of("q", "a")], x=np.array(["word"], object))
    with pytest.raises(UserError, match="x holds no numbers"):
        Sibling(by="x").select(samples=texts)
    assert Sibling(by="ifd").needs() == ["ifd", "ifd.tokens?"] and Sibling(by="input.n").needs() == [
        "input.n"
    ]


def test_what_failed_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    well = False

    def write(body: dict[str, Any]) -> tuple[str, str]:
        ill = part(body, "response") == "A3" and not well
        return ("not now", "refused") if ill else better(body)

    def run() -> Any:
        steps = ["reflect response"]
        out, store = tmp_path / "out", tmp_path / "store"
        return siftune.run(data, steps, out=out, store=store, teacher=server.url, teacher_model="toy")

    data = rows_in(tmp_path / "pool.jsonl", 20)
    with teaching(write) as server:
        assert run().state.done[0].figures["rewrites"] == 19
        server.bodies.clear()
        well = True
        assert run().state.done[0].figures["rewrites"] == 20
        assert [part(body, "response") for body in server.bodies] == ["A3"]
        assert run().computed == 0 and len(server.bodies) == 1
