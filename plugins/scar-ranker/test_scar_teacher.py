"""What needs a teacher: ratings, the two machine versions of an answer, and both in one chain, against a real server
on the loopback."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siftune
from siftune import Context, Fate, Sample, Samples, UserError, options, teacher
from siftune.asking import Asking, objects
from siftune.loopback import part, teaching
from siftune.recipe import Data, Recipe, Step
from siftune.teacher import Chat
from siftune.testing import conforms
from siftune_scar_ranker.quadruples import NAMES
from siftune_scar_ranker.rating import Quality, StyleJudge, rating
from siftune_scar_ranker.versions import Direct, Referenced

RECIPE = Path(__file__).parents[2] / "templates" / "recipes" / "scar-ranker.toml"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "BACKOFF", 0.01)


def asked(method: Asking, hook: str, samples: Samples, folder: Path, url: str) -> Any:
    with closing(Chat(url, "toy", say=lambda _: None)) as chat:
        method.teacher = url
        answer = getattr(method, hook)(samples=samples, run=Context(folder, chat_with=lambda *_: chat))
        return list(answer) if hook == "reflect" else answer


def rated(helpfulness: Any, correctness: Any) -> str:
    return json.dumps(
        {"helpfulness_reason": "so", "helpfulness": helpfulness, "correctness_reason": "", "correctness": correctness}
    )


# ---- ratings ----


def test_quality_is_rated_by_a_schema_and_quality_is_the_mean(tmp_path: Path) -> None:
    samples = Samples.of([Sample.of("q", f"A{at}", input="in") for at in range(5)])
    with teaching(lambda body: (rated(int(part(body, "response")[1:]), 9), "stop")) as server:
        found = asked(Quality(), "score", samples, tmp_path, server.url)
    assert not found.failed and not found.left_out
    assert found.values == {
        "quality": [4.5, 5, 5.5, 6, 6.5],
        "quality.helpfulness": [0, 1, 2, 3, 4],
        "quality.correctness": [9] * 5,
    }
    body = server.bodies[0]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["helpfulness_reason", "helpfulness", "correctness_reason", "correctness"]
    assert schema["properties"]["correctness"] == {"type": "integer", "minimum": 0, "maximum": 9}
    assert body["temperature"] == 0 and part(body, "input") == "in"
    assert "from 0 to 9" in body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0), (9, 9), (7.5, 7.5), ("7", 7), (" 6.5 ", 6.5), (10, None), (-1, None), ("8/9", None), ("score: 5", None),
        ("(0-9) 6", None), (True, None), (None, None), ([5], None), ({"is": 5}, None), ("²", None), ("nan", None),
        ("", None), (float("nan"), None), (float("inf"), None), (10**400, None), ("9" * 5000, None), ("-5", None),
    ],
)  # fmt: skip
def test_a_rating_is_a_number_on_the_scale_or_none(value: Any, number: float | None) -> None:
    assert rating(value) == number


def test_what_is_no_rating_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    replies = {
        "prose": "I would say 7.",
        "half": json.dumps({"helpfulness": 7}),
        "beyond": rated(7, 11),
        "endless": rated(7, 5).replace("7", "7" * 5000),
        "nested": '{"a":' * 300,
        "none": "",
    }
    samples = Samples.of([Sample.of("q", name) for name in replies])
    with teaching(lambda body: (replies[part(body, "response")], "stop")) as server:
        found = asked(Quality(attempts=2), "score", samples, tmp_path, server.url)
    assert sorted(found.failed) == list(range(len(replies))) and len(server.bodies) == 2 * len(replies)
    assert all(values == [None] * len(replies) for values in found.values.values())
    assert found.failed[0] == "no answer that can be read in 2 attempts (--attempts); the last is 'I would say 7.'"
    assert found.failed[5].endswith("the last is empty")


def test_what_cannot_be_read_is_asked_again_warmer(tmp_path: Path) -> None:
    def write(body: dict[str, Any]) -> tuple[str, str]:
        form, told = rated("the number", "the number"), rated(3, 5)
        cool = body["temperature"] < 0.7
        return "Let me think." if cool else f"<think>{told}</think>Like {rated(0, 0)}? {told} {form}", "stop"

    with teaching(write) as server:
        found = asked(Quality(), "score", Samples.of([Sample.of("q", "a")]), tmp_path, server.url)
    assert found.values["quality"] == [4] and [b["temperature"] for b in server.bodies] == [0, 0.4, 0.8]


def test_what_is_cut_filtered_or_refused_is_not_asked_again(tmp_path: Path) -> None:
    ends = {"cut": "length", "filtered": "content_filter", "refused": "refused"}
    samples = Samples.of([*(Sample.of("q", name) for name in ends), Sample.of("", "a"), Sample.of("q", " ")])
    with teaching(lambda body: (rated(7, 7), ends[part(body, "response")])) as server:
        found = asked(Quality(max_tokens=9), "score", samples, tmp_path, server.url)
    assert found.failed[0] == "the answer was cut at 9 tokens; raise --max-tokens"
    assert found.failed[1] == "the teacher's filter stopped the answer" and found.failed[2].startswith("HTTP 400")
    assert found.left_out == {3: "no instruction", 4: "no response"} and len(server.bodies) == 3


def test_dimensions_of_style_are_declared(tmp_path: Path) -> None:
    def write(body: dict[str, Any]) -> tuple[str, str]:
        kinds = body["response_format"]["json_schema"]["schema"]["properties"]
        return json.dumps({name: "so" if one["type"] == "string" else 4 for name, one in kinds.items()}), "stop"

    samples = Samples.of([Sample.of("q", "a")])
    with teaching(write) as server:
        found = asked(StyleJudge(), "score", samples, tmp_path, server.url)
        own = asked(StyleJudge(dimensions=["irony: 0 none", "dialect"]), "score", samples, tmp_path, server.url)
    assert "style-judge.formality" in found.values and all(values == [4] for values in found.values.values())
    assert [column.name for column in StyleJudge().gives()] == list(found.values)
    assert own.values == {"style-judge.irony": [4], "style-judge.dialect": [4]}
    assert "\n- irony: 0 none\n- dialect\n" in server.bodies[1]["messages"][0]["content"]


@pytest.mark.parametrize("named", [[], [""], ["a b"], ["a", "a: twice"], ["a", "a_reason"], ["a.b"], [": what"]])
def test_names_that_cannot_be_columns_are_refused(named: list[str]) -> None:
    with pytest.raises(UserError, match="--dimensions"):
        options.build(StyleJudge, {"dimensions": named}, "score style-judge")


def test_dimensions_on_the_command_line() -> None:
    step = Step.parse("score style-judge --dimensions 'irony: 0 none, 9 all' --dimensions dialect")
    method = step.method()
    assert isinstance(method, StyleJudge) and dict(method.rated()) == {"irony": "0 none, 9 all", "dialect": ""}


@pytest.mark.parametrize("given", [{"attempts": 0}, {"max_tokens": 0}, {"temperature": 3.0}])
def test_options_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    for kind in (Quality, StyleJudge, Direct, Referenced):
        with pytest.raises(ValueError, match="--"):
            kind(**given)


# ---- referenced and direct ----


def version(body: dict[str, Any]) -> tuple[str, str]:
    seen = part(body, "response")
    return f" again: {seen}\n" if seen else f"<think>hm</think>to {part(body, 'instruction')}", "stop"


def test_referenced_sees_the_answer_and_direct_does_not(tmp_path: Path) -> None:
    samples = Samples.of([Sample.of("q1", "human one", input="table"), Sample.of("q2", "human two")])
    with teaching(version) as server:
        referenced = asked(Referenced(), "reflect", samples, tmp_path, server.url)
        direct = asked(Direct(), "reflect", samples, tmp_path, server.url)
    assert {s.parent: s.response for s in referenced} == {s.id: f"again: {s.response}" for s in samples}
    assert {s.parent: s.response for s in direct} == {s.id: f"to {s.instruction}" for s in samples}
    assert {(s.instruction, s.input) for s in direct} == {("q1", "table"), ("q2", "")}
    texts = [body["messages"][0]["content"] for body in server.bodies]
    assert all("human" in text for text in texts[:2]) and not any("human" in text for text in texts[2:])
    assert all(body["temperature"] == 0 and "response_format" not in body for body in server.bodies)


def test_rewrites_of_what_is_asked_anyway_are_left_out(tmp_path: Path) -> None:
    original = Sample.of("q", "human")
    child = original.rewrite(response="better")
    with teaching(version) as server:
        both = asked(Direct(), "reflect", Samples.of([original, child]), tmp_path, server.url)
        alone = asked(Direct(), "reflect", Samples.of([child]), tmp_path, server.url)
    assert Fate(1, left_out="a rewrite of a sample that is asked itself") in both and len(both) == 2
    assert [sample.parent for sample in alone] == [child.id]  # its original is not in play


def test_of_a_conversation_the_last_answer_is_written_anew(tmp_path: Path) -> None:
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "more"), ("assistant", "so")]
    talk = Sample(tuple({"role": role, "content": content} for role, content in turns))
    with teaching(version) as server:
        (found,) = asked(Direct(), "reflect", Samples.of([talk]), tmp_path, server.url)
    assert [message["content"] for message in found.messages] == ["be kind", "hi", "hello", "more", "to more"]
    assert part(server.bodies[0], "earlier_turns") == "system: be kind\n\nuser: hi\n\nassistant: hello"
    assert "so" not in Direct()._shown(talk).split()


@pytest.mark.parametrize("reply", ["", "  \n", "<think>on and on", "<think>done</think> "])
def test_an_answer_without_a_text_is_a_failure(reply: str, tmp_path: Path) -> None:
    with teaching(lambda _: (reply, "stop")) as server:
        (found,) = asked(Direct(attempts=2), "reflect", Samples.of([Sample.of("q", "a")]), tmp_path, server.url)
    assert isinstance(found, Fate) and found.failed.startswith("no answer that can be read in 2 attempts")


def test_objects_are_found_whatever_stands_around_them() -> None:
    assert objects('a {"b": {"c": 1}} d {"e": NaN} {') == [{"b": {"c": 1}}, {"e": pytest.approx(np.nan, nan_ok=True)}]
    assert objects('```json\n{"a": "two\nlines"}\n```') == [{"a": "two\nlines"}]
    assert objects("{" * 3000) == objects('{"a": ' + "1" * 5000 + "}") == []


# ---- through the engine ----


def test_the_rules_of_their_hooks_are_kept() -> None:
    def write(body: dict[str, Any]) -> tuple[str, str]:
        form = body.get("response_format")
        if form is None:
            return version(body)
        kinds = form["json_schema"]["schema"]["properties"]
        return json.dumps({name: "so" if one["type"] == "string" else 4 for name, one in kinds.items()}), "stop"

    with teaching(write) as server:
        for hook, name in (
            ("score", "quality"), ("score", "style-judge"), ("reflect", "referenced"), ("reflect", "direct"),
        ):  # fmt: skip
            assert conforms(hook, name, teacher=server.url, teacher_model="toy")


def test_a_human_set_becomes_quadruples_the_analysis_of_the_paper_and_rankers(tmp_path: Path, encoder: Path) -> None:
    names = "ash birch cedar elm fir hazel larch lime maple oak pine rowan willow yew".split()
    human = [" ".join(f"we saw {' '.join(names[word : word + at + 1])}," for word in range(20)) for at in range(9)]

    def write(body: dict[str, Any]) -> tuple[str, str]:
        if "response_format" in body:
            return rated(8 if part(body, "response").startswith("Indeed") else 6, 7), "stop"
        seen = part(body, "response")
        said = seen.replace(",", ". Indeed") if seen else f"about {part(body, 'instruction')} the answer is this. " * 9
        return f"Indeed {said}", "stop"

    data = tmp_path / "human.jsonl"
    data.write_text("\n".join(json.dumps({"instruction": f"Q{at}", "output": text}) for at, text in enumerate(human)))
    text = RECIPE.read_text(encoding="utf-8").replace('"minilm"', f'"{encoder}"\nepochs = 1\nmax_length = 64')
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    read = Recipe.read(tmp_path / "recipe.toml")
    with teaching(write) as server:
        how = replace(read.run, teacher=server.url, teacher_model="toy")
        recipe = replace(read, data=Data(path=(str(data),)), run=how)
        run = siftune.api.carry_out(recipe, out=tmp_path / "out", store=tmp_path / "store")
        asked_for = len(server.bodies)
        again = siftune.api.carry_out(recipe, out=tmp_path / "b", store=tmp_path / "store")
    assert asked_for == len(server.bodies) == 9 + 9 + 27 and again.computed == 0
    # the ablations beside each other: all of them measured the same held-out instruction
    compared = run.compared["train scar-ranker"]
    assert list(compared) == [f"accuracy of {name}" for name in NAMES]
    assert [len(arms) for arms in compared.values()] == [3, 3, 4]  # one learned nothing of referenced answers
    assert all(one["n"] == 1 for arms in compared.values() for one in arms.values())
    pool = run.state.pool
    assert [sample.made_by for sample in pool.samples].count("reflect direct") == 9 and len(pool) == 27
    assert np.bincount(pool.families().astype(int)).max() == 3
    style = next(done for done in run.state.done if done.planned.label == "score style")
    told = style.figures["paired_by_instruction"]
    assert {which: told[which]["quality.helpfulness"]["mean"] for which in told} == {
        "human": 6, "referenced": 8, "direct": 8,
    }  # fmt: skip
    assert told["direct"]["mtld"]["sd"] < told["human"]["mtld"]["sd"] and told["human"]["flesch"]["sd"] > 0
    assert style.figures["close_to"] == "9 direct answers"
    closeness = pool.columns["style"].values
    made = np.array([str(sample.made_by) for sample in pool.samples])
    assert closeness[made == "reflect direct"].mean() > closeness[made == "None"].mean()
    table = run.table.to_pydict()
    assert table["status"] == ["ok"] * 27  # what `reflect direct` left out is in play all the same
