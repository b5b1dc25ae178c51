"""IFD and r-IFD: the originals' own numbers, our own rule on awkward rows, and readings of kept losses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import siftune
from siftune import Context, Outcome, Sample, Samples, UserError, models
from siftune.testing import conforms, tiny_model
from siftune_ifd_scorer.difficulty import IFD, ReverseIFD
from siftune_ifd_scorer.rereadings import Perplexity, TShirt

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "ifd"
PROGRAMS = {"Cherry_LLM": "cherry", "Superfiltering": "superfiltering", "Reflection_Tuning": "reflection"}
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the originals' numbers are not here")


def run(method: Any, samples: Samples | list[Sample], folder: Path = Path()) -> Outcome:
    view = samples if isinstance(samples, Samples) else Samples.of(samples)
    answer: Outcome = method.score(view, Context(folder))
    assert not answer.failed
    for column in method.gives():
        for at in range(len(view)):
            value = answer.values[column.name][at]
            assert (value is None) == (at in answer.left_out), (column.name, at)
            assert value is None or np.isfinite(value).all()
    return answer


# ---- the original programs ----


@pytest.fixture(scope="module")
def reader_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The model of the golden numbers, with the tokenizer that opens a text with a token or without."""
    bare = tmp_path_factory.mktemp("golden") / "nobos"

    def folder(tokenizer: str) -> str:
        if tokenizer == "bos":
            return str(GOLDEN / "model")
        if not bare.exists():
            bare.mkdir()
            for file in [*(GOLDEN / "model").iterdir(), *(GOLDEN / "tokenizer_nobos").iterdir()]:
                shutil.copyfile(file, bare / file.name)
        return str(bare)

    return folder


def settings() -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "golden.json").read_text())["runs"] if GOLDEN.is_dir() else []


def alpaca(row: dict[str, Any]) -> Sample:
    """A row as the programs see it, an empty instruction with an input included."""
    if row["instruction"]:
        return Sample.of(row["instruction"], row["output"], input=row.get("input") or "")
    said = {"role": "user", "content": "\n\n" + row["input"]}
    return Sample((said, {"role": "assistant", "content": row["output"]}), split=0)


COLUMNS = {
    "cherry": {"ifd": ("ifd", "mean_loss_cond", "mean_loss_alone", "n_cond")},
    "superfiltering": {"ifd": ("ifd", "loss_cond", "loss_alone", "n_cond")},
    "reflection": {
        "ifd": ("ifd", "loss_a_cond", "loss_a_alone", None),
        "r-ifd": ("r_ifd", "loss_q_cond", "loss_q_alone", None),
    },
}


def compare(setting: dict[str, Any], step: int, reader_of: Callable[[str], str]) -> None:
    program, how = PROGRAMS[setting["reference"]], setting["settings"]
    rows = {row["src_index"]: row for row in json.loads((GOLDEN / "samples.json").read_text())}
    expected = setting["per_sample"][::step]
    samples = [alpaca(rows[one["src_index"]]) for one in expected]
    for name, (ratio, given, alone, count) in COLUMNS[program].items():
        method = (IFD if name == "ifd" else ReverseIFD)(
            model=reader_of(how["tokenizer"]),
            reference=program,
            template=how["prompt"],
            max_length=how["max_length"],
            dtype="float32",
            device="cpu",
        )
        answer = run(method, samples)
        for at, one in enumerate(expected):
            assert (one[ratio] is None) == (at in answer.left_out), (name, one["src_index"])
            if one[ratio] is None:
                continue
            found = {
                part: answer.values[f"{name}{part}"][at]
                for part in ("", ".loss_conditioned", ".loss_alone", ".tokens")
            }
            assert found[""] == pytest.approx(one[ratio], rel=2e-4)
            assert found[".loss_conditioned"] == pytest.approx(one[given], abs=1e-4)
            assert found[".loss_alone"] == pytest.approx(one[alone], abs=1e-4)
            assert count is None or found[".tokens"] == one[count]


@golden
@pytest.mark.parametrize("setting", settings(), ids=lambda one: one["name"])
def test_the_originals_numbers(setting: dict[str, Any], reader_of: Callable[[str], str]) -> None:
    compare(setting, 12, reader_of)


@golden
@pytest.mark.slow
@pytest.mark.parametrize("setting", settings(), ids=lambda one: one["name"])
def test_the_originals_numbers_on_every_row(setting: dict[str, Any], reader_of: Callable[[str], str]) -> None:
    compare(setting, 1, reader_of)


EDGES = [
    ("cherry_alpaca_512_bos", "bos", {"reference": "cherry", "template": "alpaca", "max_length": 512}),
    ("superfiltering_none_1024_nobos", "nobos", {"reference": "superfiltering", "max_length": 1024}),
    ("superfiltering_none_1024_bos", "bos", {"reference": "superfiltering", "max_length": 1024}),
    ("reflection_vicuna_2048_bos", "bos", {"reference": "reflection", "max_length": 2048}),
]


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


@golden
@pytest.mark.parametrize(("name", "tokenizer", "how"), EDGES, ids=[name for name, _, _ in EDGES])
def test_the_originals_edge_cases(
    name: str, tokenizer: str, how: dict[str, Any], reader_of: Callable[[str], str]
) -> None:
    cases = []
    for case in json.loads((GOLDEN / "edge_cases.json").read_text()):
        row = dict(case["sample"])
        if case["name"] == "input_none":
            row["input"] = "None"  # what the two programs that read it write into the prompt
        if row["output"] is not None and "error" not in case["reference"][name]:
            cases.append((row, case["reference"][name], case["name"]))
    samples = [alpaca(row) for row, _, _ in cases]
    columns = {"ifd": IFD}
    if how["reference"] == "reflection":
        columns["r-ifd"] = ReverseIFD
    for column, kind in columns.items():
        answer = run(kind(model=reader_of(tokenizer), dtype="float32", device="cpu", **how), samples)
        for at, (_, told, case) in enumerate(cases):
            ratio = number(told["ifd" if how["reference"] == "cherry" else column.replace("-", "") + "_ppl"])
            assert (ratio is None) == (at in answer.left_out), (case, answer.left_out.get(at))
            if ratio is not None:
                assert answer.values[column][at] == pytest.approx(ratio, rel=2e-4), case


def test_a_reference_keeps_to_what_its_program_knows() -> None:
    for how, said in (
        ({"reference": "cherry", "template": "none"}, "--template alpaca or vicuna or wiz"),
        ({"reference": "superfiltering", "template": "vicuna"}, "--template none"),
        ({"template": "none"}, "goes with --reference superfiltering"),
        ({"max_length": 1}, "holds no pair"),
    ):
        with pytest.raises(ValueError, match=said):
            IFD(**how)
    with pytest.raises(ValueError, match="cherry has no r-IFD"):
        ReverseIFD(reference="cherry")


def test_the_range_in_which_each_chooses() -> None:
    own, cherry, reverse = IFD().gives()[0], IFD(reference="cherry").gives()[0], ReverseIFD().gives()[0]
    assert (own.better, own.below, own.at_least) == ("higher", 1.0, {"ifd.tokens": 10.0})
    assert cherry.below is not None and 1.0 < cherry.below < 1 + 1e-9 and not cherry.at_least
    assert (reverse.better, reverse.below) == ("lower", 1.0)


# ---- our own rule ----


def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> str:
    said = json.loads((folder / "tokenizer.json").read_text())
    how(said)
    (folder / "tokenizer.json").write_text(json.dumps(said))
    return str(folder)


def no_bos(said: dict[str, Any]) -> None:
    said["post_processor"] = None


def adds_eos(said: dict[str, Any]) -> None:
    said["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    said["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}


def merges(said: dict[str, Any]) -> None:
    vocabulary = said["model"]["vocab"]
    vocabulary["::"] = vocabulary.pop(max(vocabulary, key=vocabulary.__getitem__))
    said["model"]["merges"] = [[":", ":"]]


READERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "bos": lambda said: None,
    "no bos": no_bos,
    "bos and eos": adds_eos,
    "merges over the boundary": merges,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def folder(kind: str) -> str:
        if kind not in made:
            made[kind] = change(tiny_model(tmp_path_factory.mktemp("tiny")), READERS[kind])
        return made[kind]

    return folder


def talk(*said: str) -> Sample:
    roles = ("user", "assistant")
    return Sample(tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(said)))


ROWS = {
    "ordinary": Sample.of("Name a colour.", "Blue, or in the evening the orange."),
    "with an input": Sample.of("Sort.", "1, 2, 3", input="3, 1, 2"),
    "empty": Sample.of("Say nothing.", ""),
    "blank": Sample.of("Say nothing.", " \n\t"),
    "nothing asked": Sample.of("", "An answer to nothing."),
    "one token": Sample.of("First letter?", "a"),
    "repeats the prompt": Sample.of("the answer is the answer", "the answer is the answer"),
    "colon": Sample.of("A smiley:", ":) is it"),
    "newline first": Sample.of("A poem.", "\nRoses are red"),
    "blank first": Sample.of("A poem.", " Roses are red"),
    "not English": Sample.of("Übersetze: the weather", "天气很好，我们去公园散步吧。 🌉"),
    "special token": Sample.of("Which token ends?", "It is </s>, after <s>."),
    "long response": Sample.of("Write.", "a story of the bridge " * 5000),
    "long prompt": Sample.of("read " * 20_000, "Done."),
    "several turns": talk("One?", "1, the first", "Two?", "2, the second"),
    "a turn without words": talk("One?", " ", "Two?", "2, the second"),
    "last turn without words": talk("One?", "1, the first", "Two?", " "),
}
LEFT_OUT = {
    "empty": "empty response",
    "blank": "empty response",
    "last turn without words": "empty response",
    "nothing asked": "nothing is asked",
    "long prompt": "what is asked fills the",
}


@pytest.mark.parametrize("kind", READERS)
def test_every_awkward_row_ends_in_one_state_with_a_reason(kind: str, tiny: Callable[[str], str]) -> None:
    answer = run(IFD(model=tiny(kind), keep_token_losses=True), list(ROWS.values()))
    expected = {**LEFT_OUT, "one token": "nothing stands before"} if kind == "no bos" else LEFT_OUT
    told = {name: answer.left_out[at] for at, name in enumerate(ROWS) if at in answer.left_out}
    assert told.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in told[name], name
    for at, name in enumerate(ROWS):
        if name in told:
            continue
        values = {column: answer.values[column][at] for column in answer.values}
        lost = len(values["ifd.token_losses_alone"])
        assert values["ifd"] > 0 and lost == values["ifd.tokens"] == len(
            values["ifd.token_losses_conditioned"]
        )
        assert (values["ifd.cut"] > 0) == (name == "long response")


@pytest.mark.parametrize("kind", READERS)
def test_both_passes_score_exactly_the_response(kind: str, tiny: Callable[[str], str]) -> None:
    import torch

    reader = models.reader(tiny(kind))
    answer = run(IFD(model=tiny(kind), template="alpaca"), list(ROWS.values()))
    words = reader.tokenizer.backend_tokenizer

    def losses(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits = reader.model(input_ids=torch.tensor([ids])).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none").numpy()

    head = [] if kind == "no bos" else [1]
    for name in ("ordinary", "with an input", "repeats the prompt", "colon", "newline first", "not English"):
        at, sample = list(ROWS).index(name), ROWS[name]
        from siftune.prompts import template

        before = template("alpaca", reader.tokenizer).prompt(sample.messages[:-1], sample.split)
        asked = words.encode(before, add_special_tokens=False).ids
        said = words.encode(sample.response, add_special_tokens=False).ids
        scored = len(said) - (not head)
        given, alone = (
            losses([*head, *asked, *said])[-scored:].mean(),
            losses([*head, *said])[-scored:].mean(),
        )
        assert answer.values["ifd.tokens"][at] == scored
        assert answer.values["ifd.loss_conditioned"][at] == pytest.approx(given, abs=1e-5)
        assert answer.values["ifd.loss_alone"][at] == pytest.approx(alone, abs=1e-5)
        assert answer.values["ifd"][at] == pytest.approx(math.exp(given - alone), rel=1e-5)


def test_a_score_does_not_depend_on_neighbours_or_order(tiny: Callable[[str], str]) -> None:
    rows = [row for name, row in ROWS.items() if not name.startswith("long")]
    reader = models.reader(tiny("bos"))
    for kind, name in ((IFD, "ifd"), (ReverseIFD, "r-ifd")):
        method = kind(model=tiny("bos"), max_length=200)
        together = run(method, rows).values[name]
        backwards = run(method, rows[::-1]).values[name][::-1]
        alone = [run(method, [row]).values[name][0] for row in rows]
        reader.budget, budget = 70, reader.budget
        small = run(method, rows).values[name]
        reader.budget = budget
        for other in (backwards, alone, small):
            for a, b in zip(together, other, strict=True):
                assert (a is None) == (b is None) and (a is None or a == pytest.approx(b, rel=1e-5))


def test_two_definitions(tiny: Callable[[str], str]) -> None:
    rows = [ROWS["ordinary"]]
    ppl, loss = (run(IFD(model=tiny("bos"), definition=one), rows).values for one in ("ppl", "loss"))
    given, alone = ppl["ifd.loss_conditioned"][0], ppl["ifd.loss_alone"][0]
    assert ppl["ifd"][0] == pytest.approx(math.exp(given - alone))
    assert loss["ifd"][0] == pytest.approx(given / alone)


def test_several_turns_are_kept_and_joined_as_asked(tiny: Callable[[str], str]) -> None:
    rows = [ROWS["several turns"], ROWS["a turn without words"], ROWS["last turn without words"]]
    last, mean, pooled = (run(IFD(model=tiny("bos"), turns=one), rows) for one in ("last", "mean", "pooled"))
    assert set(last.left_out) == {2} and not mean.left_out and not pooled.left_out
    ratios, tokens = last.values["ifd.turns.ratio"][0], last.values["ifd.turns.tokens"][0]
    assert last.values["ifd.turns.at"][:2] == [[1, 2], [2]]
    assert last.values["ifd"][0] == ratios[1] and last.values["ifd.tokens"][0] == tokens[1]
    assert mean.values["ifd"][0] == pytest.approx(np.mean(ratios))
    given = np.average(pooled.values["ifd.turns.loss_conditioned"][0], weights=tokens)
    alone = np.average(pooled.values["ifd.turns.loss_alone"][0], weights=tokens)
    assert pooled.values["ifd"][0] == pytest.approx(math.exp(given - alone), rel=1e-6)
    assert pooled.values["ifd.tokens"][0] == sum(tokens)
    # a turn is scored as if the conversation ended with it
    first = run(IFD(model=tiny("bos")), [talk("One?", "1, the first")]).values["ifd"][0]
    assert ratios[0] == pytest.approx(first, rel=1e-5)


def test_the_reverse_reads_the_last_turn(tiny: Callable[[str], str]) -> None:
    rows = [
        ROWS["several turns"],
        talk("Two?", "2, the second"),
        ROWS["long response"],
        ROWS["empty"],
        ROWS["long prompt"],
    ]
    answer = run(ReverseIFD(model=tiny("bos")), rows)
    values = answer.values["r-ifd"]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    # a response that would push the instruction out is shortened, and the instruction is whole
    assert answer.values["r-ifd.cut"][2] > 1000 and answer.values["r-ifd.tokens"][2] == 6
    assert answer.left_out[3] == "empty response" and "the instruction fills" in answer.left_out[4]


def test_a_conversation_that_the_template_does_not_read(tiny: Callable[[str], str], tmp_path: Path) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    folder = tiny_model(
        tmp_path / "refuses", refuses + "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    rows = [Sample.of("Hi", "Ho", system="Be brief."), Sample.of("Hi", "Hello there")]
    answer = run(IFD(model=str(folder)), rows)
    assert list(answer.left_out) == [0] and "no system message" in answer.left_out[0]


def test_a_loss_that_is_no_number_is_a_failure(
    tiny: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = models.reader(tiny("bos"))
    monkeypatch.setattr(reader, "head", lambda states: reader.model.lm_head(states) * float("nan"))
    answer = IFD(model=tiny("bos")).score(Samples.of([ROWS["ordinary"]]), Context(Path()))
    assert answer.values["ifd"] == [None] and "no number (in float32)" in answer.failed[0]


def test_a_template_of_the_run_that_the_program_does_not_know(tiny: Callable[[str], str]) -> None:
    method = IFD(model=tiny("bos"), reference="cherry")
    method.template = "plain"  # as the run fills it in
    with pytest.raises(UserError, match="--reference cherry has no template 'plain'"):
        run(method, [ROWS["ordinary"]])


# ---- readings of what was kept ----


def test_perplexity_reads_what_ifd_kept(tiny: Callable[[str], str]) -> None:
    rows = [ROWS["ordinary"], ROWS["empty"], ROWS["colon"]]
    kept = run(IFD(model=tiny("bos")), rows).values
    losses = np.array([np.nan if one is None else one for one in kept["ifd.loss_conditioned"]])
    answer = Perplexity().score(Samples.of(rows, ifd__loss_conditioned=losses))
    assert answer.values[0] == pytest.approx(math.exp(losses[0])) and set(answer.left_out) == {1}
    assert Perplexity(of="alone", source="other").needs() == ["other.loss_alone"]


def test_token_selective_ifd_counts_the_tokens_that_move(tmp_path: Path) -> None:
    given = np.array([[1.0, 2.0, 3.0, 1.0], None, [2.0, 2.0]], object)
    alone = np.array([[1.1, 4.0, 2.0, 1.0], None, [2.0, 2.05]], object)
    rows = [ROWS["ordinary"], ROWS["empty"], ROWS["colon"]]
    view = Samples.of(rows, ifd__token_losses_conditioned=given, ifd__token_losses_alone=alone)
    run_ = Context(tmp_path)
    answer = TShirt(share=0.34).score(view, run_)
    # moved by .1 2 1 0 and 0 .05: the largest third are 2 and 1
    assert answer.values["t-shirt"][0] == pytest.approx(math.exp((-2 + 1) / 2))
    assert answer.values["t-shirt.tokens"][0] == 2 and run_.figures["threshold"] < 1
    assert (
        "no token losses of ifd" in answer.left_out[1] and "no token whose loss moves" in answer.left_out[2]
    )
    whole = TShirt(share=1.0).score(view, Context(tmp_path)).values["t-shirt"]
    assert whole[2] == pytest.approx(math.exp(-0.05 / 2))
    with pytest.raises(ValueError, match="no share"):
        TShirt(share=0.0)


def test_one_chain_reads_the_model_once(
    tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("ordinary", "repeats the prompt", "not English", "colon", "one token", "long prompt")
    lines = [json.dumps({"messages": [dict(m) for m in ROWS[name].messages]}) for name in names]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    steps = [f"score ifd --model {tiny('no bos')} --keep-token-losses", "score perplexity", "score t-shirt"]
    done = siftune.run(tmp_path / "rows.jsonl", steps, out=tmp_path / "run", store=tmp_path / "store")
    table = done.table.to_pydict()
    assert [value is None for value in table["ifd"]] == [False] * 4 + [True] * 2
    assert table["perplexity"][0] == pytest.approx(math.exp(table["ifd.loss_conditioned"][0]))
    assert table["t-shirt"][0] > 0 and table["ifd.tokens"][0] >= table["t-shirt.tokens"][0] > 0
    states = pq.read_table(done.folder / "table.parquet", columns=["status", "reason"]).to_pylist()
    assert all(one["status"] == "ok" for one in states)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(models, "reader", never)
    again = siftune.run(tmp_path / "rows.jsonl", steps, out=tmp_path / "again", store=tmp_path / "store")
    assert again.table.to_pydict()["ifd"] == table["ifd"]


@pytest.mark.parametrize("name", ["ifd", "r-ifd", "perplexity"])
def test_the_rules_of_the_hook(name: str) -> None:
    assert conforms("score", name)
