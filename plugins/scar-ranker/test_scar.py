"""Scores: the original's own numbers, checkpoints that do not fit, and awkward rows."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import siftune
import torch
from safetensors.torch import load_file, save_file
from siftune import Context, Sample, Samples, Step, UserError, models
from siftune.__main__ import main as command_line
from siftune.testing import conforms
from siftune_scar_ranker import encoders, network
from siftune_scar_ranker.languages import language
from siftune_scar_ranker.ranker import Ranker, ranker
from siftune_scar_ranker.scar import Scar, pair_of

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "scar"
CLOSE = 2e-5
CHECKPOINTS = {"ckpt_roberta": "roberta", "ckpt_gte_native": "gte_native", "ckpt_gte_pubstyle": "gte_native"}
ENGLISH = "The answer is easy to see once you write the numbers down in order, one below the other."
SPANISH = "La respuesta es fácil de ver cuando se escriben los números en orden, uno debajo del otro."


def chosen(told: Any) -> list[dict[str, Any]]:
    by_id = {row["id"]: row for row in json.loads((GOLDEN / "pairs.json").read_text())}
    return [by_id[one] for one in told["ids"]]


def run(method: Scar, samples: Any, **context: Any) -> Any:
    view = samples if isinstance(samples, Samples) else Samples.of(samples)
    return method.score(view, Context(Path(), **context))


# ---- the original program ----


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_originals_scores(golden: Any, checkpoint: str) -> None:
    told = golden[CHECKPOINTS[checkpoint]]
    pairs = [(row["instruction"], row["output"]) for row in chosen(told)]
    reader = ranker(str(GOLDEN / checkpoint), "float32", "cpu", 512)
    found, cut = reader.scores(pairs)
    np.testing.assert_allclose(found, told["scores_bs32_len512"], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found, told["scores_single_nopad_len512"], rtol=0, atol=CLOSE)
    assert [told["ids"][at] for at in np.argsort(-found, kind="stable")] == told["ranking_ids_desc"]
    lengths = zip(told["n_tokens_instruction"], told["n_tokens_output"], strict=True)
    if max(told["n_tokens_output"]) > 512:  # the numbers of tokens are those before the cut
        assert cut.tolist() == [max(x - 512, 0) + max(y - 512, 0) for x, y in lengths]
    awkward, _ = reader.scores([tuple(pair) for pair in golden["edge_pairs"]])
    np.testing.assert_allclose(awkward, told["edge_scores_single"], rtol=0, atol=CLOSE)
    shorter, _ = ranker(str(GOLDEN / checkpoint), "float32", "cpu", 128).scores(pairs)
    np.testing.assert_allclose(shorter, told["scores_bs32_len128"], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_originals_parts(golden: Any, checkpoint: str) -> None:
    told = golden[CHECKPOINTS[checkpoint]]
    reader = ranker(str(GOLDEN / checkpoint), "float32", "cpu", 512)
    rows = json.loads((GOLDEN / "pairs.json").read_text())[:3]
    with torch.no_grad():
        x, y = (
            network.states(reader.net, *reader.words.padded(reader.words.read([r[k] for r in rows])[0], "cpu"))
            for k in ("instruction", "output")
        )
        scores, surprise = network.judged(reader.net, x[0], y[0], y[1])
    assert reader.words.read([rows[0]["output"]])[0][0] == told["input_ids_first_pair"]["output"]
    parts = {"x0_instruction_vec": x[0], "y0_answer_vec": y[0], "v_c": surprise, "v_p": y[1], "score": scores}
    for name, found in parts.items():
        wanted = np.array(told["components_first3"][name])
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=CLOSE, err_msg=name)


def test_an_encoder_in_the_hubs_own_words(golden: Any, tmp_path: Path) -> None:
    """Names of weights and rotary positions as published: the encoder is named by its hub-style config."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / "ckpt_gte_pubstyle" / name, folder / name)
    found = torch.load(GOLDEN / "ckpt_gte_pubstyle" / "pytorch_model.bin", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors")
    told = json.loads((GOLDEN / "ckpt_gte_pubstyle" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "encoder_name": "theirs"}))
    (folder / "theirs").mkdir()
    shutil.copyfile(GOLDEN / "ckpt_gte_pubstyle" / "encoder_config_new_format.json", folder / "theirs" / "config.json")
    rows = chosen(golden["gte_native"])
    scores, _ = Ranker(str(folder), "float32", "cpu", 512).scores([(r["instruction"], r["output"]) for r in rows])
    np.testing.assert_allclose(scores, golden["gte_native"]["scores_bs32_len512"], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ["Alibaba-NLP/gte-base-en-v1.5", "Alibaba-NLP/gte-large-en-v1.5"])
def test_the_rotary_positions_of_the_published_encoders(name: str) -> None:
    from transformers.models.gte.modeling_gte import GteRotaryEmbedding

    told = encoders.KNOWN[name]
    found = GteRotaryEmbedding(encoders.configuration(told)).inv_freq.numpy()
    wanted = [(told["rope_theta"] * 2) ** (-2 * i / 64) / 2 ** (2 / 64) for i in range(32)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_published_encoders_have_the_published_shapes() -> None:
    """143 and 276 tensors with the hub's stacked matrices: counted by what transformers makes of the configs."""
    for name, layers, tensors in (("base", 12, 143), ("large", 24, 276)):
        config = encoders.configuration(encoders.KNOWN[f"Alibaba-NLP/gte-{name}-en-v1.5"])
        with torch.device("meta"):
            ours = len(network.network(config, 512).state_dict())
        assert ours - 5 * layers == tensors  # q, k, v have two tensors each, up and gate one
    with torch.device("meta"):
        roberta = network.network(encoders.configuration(encoders.KNOWN["FacebookAI/roberta-base"]), 512)
    assert len(roberta.state_dict()) == 207 and encoders.limit(roberta["encoder"]) == 512


def test_the_command(golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    told = golden["roberta"]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chosen(told)))
    words = ["run", data, "--out", tmp_path / "out", "--store", tmp_path / "store", "--dtype", "float32"]
    words += ["score", "scar", "--model", GOLDEN / "ckpt_roberta"]
    monkeypatch.setattr(sys, "argv", ["siftune", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        command_line()
    told_it = capsys.readouterr()
    assert not left.value.code, told_it.err
    table = pq.read_table(tmp_path / "out" / "table.parquet")
    np.testing.assert_allclose(table["scar"].to_numpy(), told["scores_bs32_len512"], rtol=0, atol=CLOSE)
    assert {"scar.cut", "scar.language"} < set(table.schema.names)
    assert "not with those of another ranker" in told_it.err + told_it.out


# ---- checkpoints that do not fit ----


def changed(source: Path, folder: Path, weights: Any = None, **config: Any) -> str:
    """A copy of a ranker with other weights, or another configuration."""
    shutil.copytree(source, folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    if weights is not None:
        found = load_file(folder / "model.safetensors")
        weights(found)
        save_file(found, folder / "model.safetensors")
    return str(folder)


def test_weights_that_do_not_fit_are_listed(ranker_folder: Path, tmp_path: Path) -> None:
    def spoil(found: dict[str, Any]) -> None:
        found["encoder.embeddings.words.weight"] = found.pop("encoder.embeddings.word_embeddings.weight")
        found["output_layer.2.weight"] = found["output_layer.2.weight"][:, :8].contiguous()

    folder = changed(ranker_folder, tmp_path / "spoiled", spoil)
    with pytest.raises(UserError) as told:
        network.load(folder)
    said = str(told.value)
    assert "lacks encoder.embeddings.word_embeddings.weight" in said
    assert "besides encoder.embeddings.words.weight" in said
    assert "another shape are output_layer.2.weight (1, 8), not (1, 16)" in said


def test_an_encoder_of_another_make_is_not_taken_for_the_rankers_own(golden: Any, tmp_path: Path) -> None:
    """The original scores with untuned weights here, and only prints the keys."""
    folder = tmp_path / "mixed"
    shutil.copytree(GOLDEN / "ckpt_gte_native", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    os.remove(folder / "config.json")
    told = json.loads((GOLDEN / "ckpt_gte_native" / "config.json").read_text())
    roberta = json.loads((GOLDEN / "enc_roberta" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "encoder": roberta}))
    with pytest.raises(UserError, match=r"lacks .* and \d+ more; it has besides encoder"):
        network.load(str(folder))


def test_what_is_no_ranker_is_said(ranker_folder: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ranker but a bert; name one such as lizhuang144/scar-gte-base"):
        network.load(str(encoder))
    with pytest.raises(UserError, match="heads for states of 48 numbers, and those of its encoder have 32"):
        network.load(changed(ranker_folder, tmp_path / "wide", hidden_dim=48))
    with pytest.raises(UserError, match="'nowhere' as its encoder, which is not to be had"):
        network.load(changed(ranker_folder, tmp_path / "astray", encoder=None, encoder_name="nowhere"))
    with pytest.raises(UserError, match="trained without a pooler"):
        network.load(changed(ranker_folder, tmp_path / "pooled", pooler=False))
    with pytest.raises(UserError, match="kind 'martian'"):
        network.load(changed(ranker_folder, tmp_path / "mars", encoder={"model_type": "martian"}))
    (tmp_path / "pooled" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        network.weights(tmp_path / "pooled", "pooled")


def test_a_pickle_gives_weights_and_nothing_else(ranker_folder: Path, tmp_path: Path) -> None:
    folder = Path(changed(ranker_folder, tmp_path / "pickled"))
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(found, folder / "pytorch_model.bin")
    both = [Ranker(str(path), "float32", "cpu", 64) for path in (folder, ranker_folder)]
    one, other = (reader.scores([("Ask", "said")])[0] for reader in both)
    assert one[0] == other[0]
    mark = tmp_path / "mark"

    class Mischief:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(mark),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Mischief()}))
    with pytest.raises(UserError, match="holds more than weights"):
        network.load(str(folder))
    assert not mark.exists()


def test_safetensors_go_before_a_pickle(ranker_folder: Path, tmp_path: Path) -> None:
    folder = Path(changed(ranker_folder, tmp_path / "both"))
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    network.load(str(folder))


# ---- rows ----


def tiny(folder: Path, **options: Any) -> Scar:
    return Scar(model=str(folder), dtype="float32", device="cpu", **options)


def test_a_single_row_is_a_row(ranker_folder: Path) -> None:
    """And so is the last of a batch, in which the original fails."""
    rows = [Sample.of(f"Say {n}", f"It is {n}, and that is all there is to say.") for n in range(33)]
    whole = run(tiny(ranker_folder), rows).values["scar"]
    alone = [run(tiny(ranker_folder), [row]).values["scar"][0] for row in rows]
    np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-5)
    assert len(set(np.round(whole, 4))) > 20


def test_nothing_is_scored_as_nothing(ranker_folder: Path) -> None:
    assert [len(one) for one in ranker(str(ranker_folder), "float32", "cpu", 64).scores([])] == [0, 0]
    rows = [Sample.of("Ask", " \n"), Sample.of("", "said"), Sample.of("Ask", "said")]
    told = run(tiny(ranker_folder), rows)
    assert told.left_out == {0: "empty response", 1: "nothing is asked before the response"} and not told.failed


def test_equal_rows_score_the_same_to_the_last_bit(ranker_folder: Path) -> None:
    rows = [Sample.of(f"Say {n % 3}", ("long " * (n % 7)) + "so") for n in range(42)]
    found = run(tiny(ranker_folder), rows).values["scar"]
    assert (found[:21] == found[21:]).all()


def test_instructions_are_read_once(ranker_folder: Path) -> None:
    told: list[int] = []
    reader = Ranker(str(ranker_folder), "float32", "cpu", 64)
    pairs = [("the same instruction", f"answer {n}") for n in range(5)]
    for part in (pairs, pairs):
        reader.scores(part, lambda tokens: told.append(tokens))
    ids, _ = reader.words.read(["the same instruction", *(y for _, y in pairs)])
    answers = sum(map(len, ids[1:]))
    assert sum(told) == len(ids[0]) + 2 * answers


def test_special_tokens_and_surrogates_in_a_text(ranker_folder: Path) -> None:
    rows = [Sample.of("Quote", "<s> </s> <pad>"), Sample.of("Say", "\x00"), Sample.of("😀", "🚀" * 20)]
    assert np.isfinite(run(tiny(ranker_folder), rows).values["scar"]).all()
    assert np.isfinite(ranker(str(ranker_folder), "float32", "cpu", 64).scores([("\ud800", "\udfff")])[0]).all()


def test_long_texts_are_cut_and_counted(ranker_folder: Path) -> None:
    said: list[str] = []
    rows = [Sample.of("x" * 30, "y" * 100), Sample.of("x", "y")]
    # the encoder takes 64 tokens, whatever is asked for; <s> is one of them
    told = run(tiny(ranker_folder, max_length=512), rows, say=said.append)
    assert told.values["scar.cut"].tolist() == [101 - 64, 0]
    assert any("takes 64 tokens at most, not 512" in text for text in said)
    told = run(tiny(ranker_folder, max_length=16), rows)
    assert told.values["scar.cut"].tolist() == [31 - 16 + 101 - 16, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(ranker_folder: Path, dtype: str) -> None:
    rows = [Sample.of(f"Say {n}", "It is so. " * (n + 1)) for n in range(12)]
    exact = run(tiny(ranker_folder), rows).values["scar"]
    near = run(Scar(model=str(ranker_folder), dtype=dtype, device="cpu"), rows).values["scar"]
    assert np.isfinite(near).all() and np.abs(near - exact).max() < 0.3 * exact.std() + 0.05


def test_half_precision_does_not_round_where_a_token_stands(golden: Any) -> None:
    kinds = ("bfloat16", "float32")
    half, full = (Ranker(str(GOLDEN / "ckpt_gte_native"), kind, "cpu", 64).net["encoder"] for kind in kinds)
    assert torch.equal(half.rotary_emb.inv_freq, full.rotary_emb.inv_freq)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_a_score_that_is_no_number_is_a_failure(ranker_folder: Path, tmp_path: Path) -> None:
    def spoil(found: dict[str, Any]) -> None:
        found["output_layer.2.bias"] = torch.full((1,), math.nan)

    folder = changed(ranker_folder, tmp_path / "nan", spoil)
    told = run(tiny(Path(folder)), [Sample.of("Ask", "said")])
    assert told.failed == {0: "the ranker gave a score that is no number"}


def test_a_conversation_is_its_last_answer_after_all_that_was_asked() -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "Rhine"},
        {"role": "user", "content": "And a bridge?"},
        {"role": "assistant", "content": "Rialto"},
    ]
    assert pair_of(Sample(tuple(talk))) == ("Name a river.\n\nAnd a bridge?", "Rialto")
    assert pair_of(Sample.of("Sort.", "1, 2", input="2, 1")) == ("Sort.\n\n2, 1", "1, 2")


# ---- groups ----


def test_each_group_has_its_ranker(ranker_folder: Path, tmp_path: Path) -> None:
    other = changed(ranker_folder, tmp_path / "other", lambda found: found["output_layer.2.bias"].add_(100))
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}", "source": "b" if n % 2 else "a"} for n in range(6)]
    warned: list[str] = []
    method = tiny(ranker_folder, models=[f"b={other},c=nowhere"], group="input.source")
    found = run(method, Samples.of(rows), warn=warned.append).values["scar"]
    plain = run(tiny(ranker_folder), Samples.of(rows)).values["scar"]
    np.testing.assert_allclose(found - plain, [0, 100] * 3, atol=1e-3)
    assert any("compare scores inside a group only" in text for text in warned)


def test_the_table_shows_a_place_within_the_group(ranker_folder: Path, tmp_path: Path) -> None:
    other = changed(ranker_folder, tmp_path / "other", lambda found: found["output_layer.2.bias"].add_(100))
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}", "source": "b" if n % 2 else "a"} for n in range(6)]
    rows.append({"instruction": "Say nothing", "output": "", "source": "a"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    step = Step("score", "scar", model=str(ranker_folder), models=[f"b={other}"], group="input.source")
    where = {"store": tmp_path / "store"}
    table = siftune.run(tmp_path / "rows.jsonl", [step], out=tmp_path / "a", **where).table.to_pydict()
    for kind in (0, 1):
        scores = np.array(table["scar"][kind:6:2])
        places = np.argsort(np.argsort(scores))
        assert table["scar.percentile"][kind:6:2] == pytest.approx(100 * (places + 0.5) / 3)
    assert table["scar.percentile"][6] is None
    # a ranker of a group that changes is another ranker
    shutil.rmtree(other)
    changed(ranker_folder, tmp_path / "other", lambda found: found["output_layer.2.bias"].add_(50))
    again = siftune.run(tmp_path / "rows.jsonl", [step], out=tmp_path / "b", **where).table.to_pydict()
    assert np.array(table["scar"][1:6:2]) - again["scar"][1:6:2] == pytest.approx(50, abs=1e-3)
    with pytest.raises(siftune.UserError, match="no-such-ranker"):
        lost = Step("score", "scar", model=str(ranker_folder), models=["b=no-such-ranker"], group="input.source")
        siftune.run(tmp_path / "rows.jsonl", [lost], out=tmp_path / "c")


@pytest.mark.parametrize(
    "options",
    [
        {"models": ["a=b"]},
        {"group": "input.source"},
        {"models": ["a"], "group": "input.source"},
        {"models": ["a=b,a=c"], "group": "input.source"},
        {"max_length": 2},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--"):
        Scar(model="x", **options)


# ---- languages ----


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (SPANISH, "es"),
        ("Erklären Sie mir bitte die Schwerkraft in wenigen Worten", "de"),
        ("重力是一种使物体互相吸引的力", "zh"),
        ("यह एक लंबा वाक्य है जिसमें बहुत सारे शब्द हैं और इसका अर्थ आसान है।", "hi"),
        ("", "und"),
        ("Yes.", "und"),
        ("1, 2, 3, 5, 8, 13, 21, 34", "und"),
        ("```python\nprint('the quick brown fox jumps')\n```", "und"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language(text) == code


def test_a_language_that_was_not_learned_is_warned_of_once(ranker_folder: Path, tmp_path: Path) -> None:
    rows = [Sample.of(f"Say {n}", f"{ENGLISH} {n}") for n in range(30)]
    rows += [Sample.of(f"Di {n}", f"{SPANISH} {n}") for n in range(10)]
    warned: list[str] = []
    run_ = Context(tmp_path, warn=warned.append)
    for part in (rows[:30], rows[20:40], rows[20:40]):
        told = tiny(ranker_folder).score(Samples.of(part), run_)
    assert told.values["scar.language"] == ["en"] * 10 + ["es"] * 10
    assert [text for text in warned if "es (10)" in text] == warned and len(warned) == 1
    assert run_.figures["languages_not_learned"] == {"es": 20}
    spanish = changed(ranker_folder, tmp_path / "spanish", languages=["en", "es"])
    warned.clear()
    tiny(Path(spanish)).score(Samples.of(rows[20:40]), Context(tmp_path, warn=warned.append))
    assert not warned


# ---- the rules ----


def test_it_keeps_the_rules_of_its_hook(ranker_folder: Path) -> None:
    assert conforms("score", "scar", model=str(ranker_folder), dtype="float32")


def test_it_never_takes_the_runs_model(tmp_path: Path) -> None:
    from siftune import run as carry_out

    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    with pytest.raises(UserError, match="reads a ranker, not the run's causal LM"):
        carry_out(data, ["score scar"], out=tmp_path / "out", store=tmp_path / "store", model="nano")


def test_a_hub_name_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the hub did not give it"):
        models.folder("lizhuang144/scar-gte-base@nowhere")
