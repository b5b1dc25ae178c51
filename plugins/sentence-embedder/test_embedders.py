"""The four ways to vectors, on tiny real models and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import siftune
import siftune_sentence_embedder as package
from siftune import Context, Pool, Sample, Samples, UserError, apply
from siftune.testing import conforms, tiny_model, toy_samples
from siftune_sentence_embedder.columns import Columns, standardised
from siftune_sentence_embedder.file import File
from siftune_sentence_embedder.hidden import Hidden, pooled
from siftune_sentence_embedder.sentence import Sentence, batches
from siftune_sentence_embedder.texts import text

WORDS = ["Why is the sky blue?", "Sort 3, 1, 2.", "Write a long poem about a river and its many bridges. " * 9]


def samples(n=9):
    return Samples.of([Sample.of(WORDS[i % 3], f"Answer number {i}. " * (1 + i % 4)) for i in range(n)])


@pytest.fixture
def run(tmp_path):
    said = []
    context = Context(tmp_path, say=said.append, warn=said.append)
    context.said = said
    return context


def test_views_of_a_sample():
    _, talk, _ = toy_samples()
    assert text(talk, "response") == "Fluss"
    assert text(talk, "prompt").endswith("Brücke 🌉\n\nAnd the river?")
    assert text(talk, "full") == text(talk, "prompt") + "\n\nFluss"


def test_batches_are_of_near_length_and_bounded():
    lengths = np.array([5, 60, 7, 100, 6, 8])
    order = np.argsort(lengths).tolist()
    assert list(batches(order, lengths, 30)) == [[0, 4, 2], [5], [1], [3]]


# ---- embed sentence ----


def test_sentence_is_what_sentence_transformers_gives(run):
    from sentence_transformers import SentenceTransformer

    rows = samples()
    answer = Sentence().embed(rows, run)
    bare = SentenceTransformer(str(package.minilm()), device="cpu")
    wanted = bare.encode([text(row, "full") for row in rows], normalize_embeddings=True)
    assert answer.values.shape == (9, 384) and answer.values.dtype == np.float32
    assert np.abs(answer.values - wanted).max() < 1e-6
    assert np.allclose(np.linalg.norm(answer.values, axis=1), 1, atol=1e-6)


def test_sentence_does_not_hang_on_its_neighbours(run):
    rows = samples()
    together = Sentence().embed(rows, run).values
    alone = np.concatenate([Sentence().embed(rows[i : i + 1], run).values for i in range(len(rows))])
    assert np.abs(together - alone).max() < 1e-6


def test_sentence_options(run):
    rows = samples(3)
    usual = Sentence().embed(rows, run).values
    assert Sentence(half=True).embed(rows, run).values.dtype == np.float16
    assert not np.allclose(Sentence(pooling="cls").embed(rows, run).values, usual, atol=1e-2)
    assert np.allclose(Sentence(pooling="mean").embed(rows, run).values, usual, atol=1e-6)
    raw = Sentence(normalize=False).embed(rows, run).values
    assert np.linalg.norm(raw, axis=1).max() > 1.5
    assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), usual, atol=1e-6)
    assert not np.allclose(Sentence(view="prompt").embed(rows, run).values, usual, atol=1e-2)
    run.figures.clear()
    Sentence(max_length=8).embed(rows, run)
    assert run.figures["cut"] == 3
    with pytest.raises(ValueError, match="at least 3"):
        Sentence(max_length=1)


def test_sentence_leaves_out_what_says_nothing(run):
    rows = Samples.of([Sample.of("Hello?", "Yes."), Sample.of("Hello?", "  ")])
    answer = Sentence(view="response").embed(rows, run)
    assert answer.left_out == {1: "empty response"} and np.isfinite(answer.values).all()


def test_sentence_reads_any_encoder_and_no_pooling_of_its_own(tmp_path, run):
    folder = tiny_model(tmp_path / "causal")
    vectors = Sentence(model=str(folder)).embed(samples(4), run).values
    assert vectors.shape[0] == 4 and np.isfinite(vectors).all()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no sentence encoder"):
        Sentence(model=str(tmp_path / "broken")).embed(samples(1), run)


def test_weights_that_are_not_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setattr(package, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="not those that siftune knows"):
        package.minilm.__wrapped__()


# ---- embed hidden ----


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "causal")


def states_of(folder: Path, said: str) -> np.ndarray:
    """The last hidden states of one text by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        ids = tokenizer(said, return_tensors="pt")["input_ids"]
        return model(ids, output_hidden_states=True).hidden_states[-1][0].float().numpy()


@pytest.mark.parametrize("pooling", ["weighted", "mean", "last"])
def test_hidden_is_pooled_by_hand(causal, pooling, run):
    rows = samples(5)
    vectors = Hidden(model=str(causal), template="plain", view="response", pooling=pooling, normalize=False)
    found = vectors.embed(rows, run).values
    for row, vector in zip(rows, found, strict=True):
        assert np.allclose(vector, pooled(states_of(causal, row.response), pooling), atol=1e-4)


def test_weights_of_the_position():
    states = np.array([[1.0], [10.0], [100.0]], np.float32)
    assert pooled(states, "weighted") == pytest.approx([(1 + 20 + 300) / 6])
    assert pooled(states, "mean") == pytest.approx([37])
    assert pooled(states, "last") == pytest.approx([100])


@pytest.mark.parametrize("view", ["prompt", "response", "full"])
def test_hidden_does_not_hang_on_the_batch(causal, view, run):
    rows = samples()
    method = Hidden(model=str(causal), template="alpaca", view=view)
    together = method.embed(rows, run).values
    alone = np.concatenate([method.embed(rows[i : i + 1], run).values for i in range(len(rows))])
    assert np.abs(together - alone).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_hidden_through_the_engine_and_cut(causal, run):
    rows = samples()
    assert apply(Hidden(model=str(causal)), rows).shape[0] == len(rows)
    Hidden(model=str(causal), template="plain", max_length=4).embed(rows, run)
    assert run.figures["cut"] == len(rows)
    assert Hidden(model=str(causal), template="plain", half=True).embed(rows, run).values.dtype == np.float16


# ---- embed columns ----


def test_columns_are_robustly_standardised(run):
    values = np.r_[np.random.default_rng(0).normal(5, 2, 999), 1e9]
    standard = standardised(values)
    assert abs(np.median(standard)) < 1e-12 and 0.9 < np.std(standard[:-1]) < 1.1
    mostly = standardised(np.r_[np.zeros(90), np.ones(10)])
    assert mostly is not None and mostly.max() == pytest.approx(1 / np.std(np.r_[np.zeros(90), np.ones(10)]))
    assert standardised(np.full(9, 3.0)) is None and standardised(np.full(9, np.nan)) is None


def test_columns_become_vectors(run):
    rows = Samples.of(
        [Sample.of(f"q{i}", "a") for i in range(6)],
        style__a=[1.0, 2, 3, 4, 5, 1000], style__b=[0.0, 1, 0, 1, np.nan, 1], flat=[2.0] * 6, words=list("abcdef"),
    )  # fmt: skip
    answer = Columns(columns=["style.*"]).embed(rows, run)
    assert answer.values.shape == (6, 2) and answer.values[5, 0] == 10  # cut at the limit
    assert answer.left_out == {4: "no value in style.b"} and run.figures["dimensions"] == ["style.a", "style.b"]
    assert Columns(columns=["flat", "style.a"]).embed(rows, run).values.shape == (6, 1)
    assert run.said == ["flat have one value in all rows and are left out"]
    with pytest.raises(UserError, match="'words' holds no numbers"):
        Columns(columns=["words"]).embed(rows, run)
    with pytest.raises(UserError, match="no column with numbers that differ"):
        Columns(columns=["flat"]).embed(rows, run)


def test_a_pattern_finds_its_columns_in_a_chain(tmp_path):
    rows = [{"instruction": f"Say {n}", "output": "ha " * n, "grade": n % 3} for n in range(1, 9)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    out = {"out": tmp_path / "run", "store": tmp_path / "store"}
    chain = ["score length", siftune.Step("embed", "columns", columns=["len*", "input.gr*"])]
    done = siftune.run(file, chain, **out)
    assert done.state.pool.columns["embedding"].at(done.state.pool.order, 8).shape == (8, 2)
    with pytest.raises(siftune.UserError, match=r"columns like 'wid\*', and no earlier step makes one"):
        siftune.run(file, ["score length", "embed columns --columns 'wid*'"], out=tmp_path / "other")


# ---- embed file ----


def test_file_follows_the_rows_of_the_input(tmp_path, run):
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(8)]
    data, file = tmp_path / "rows.jsonl", tmp_path / "vectors.npy"
    data.write_text("\n".join(json.dumps(row) for row in [*rows[:3], "no object", *rows[3:]]))
    vectors = np.arange(18, dtype=np.float64).reshape(9, 2)
    np.save(file, vectors)
    pool = Pool.read(data, on_bad_row="leave-out")
    found = apply(File(path=file), pool.view())
    for sample, vector in zip(pool.view(), found, strict=True):
        number = int(sample.prompt[1:])
        assert vector.tolist() == vectors[number + (number >= 3)].tolist()
    np.save(file, vectors[:5])
    with pytest.raises(UserError, match="has 5 rows, the input has 9"):
        File(path=file).embed(pool.view(), run)
    np.save(file, np.zeros((20, 2)))
    File(path=file).embed(pool.view(), run)
    assert run.said == [f"{file} has 20 rows and 9 were read: the first are taken"]


def test_the_same_rows_in_another_order_have_other_vectors(tmp_path):
    rows = [{"instruction": f"q{i}", "output": "a"} for i in range(4)]
    file = tmp_path / "vectors.npy"
    np.save(file, np.arange(1, 9, dtype=np.float32).reshape(4, 2))
    found = []
    for name, some in (("a", rows), ("b", rows[::-1])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, some)))
        step = siftune.Step("embed", "file", path=str(file))
        pool = siftune.run(data, [step], out=tmp_path / name, store=tmp_path / "store").state.pool
        found.append(pool.columns["embedding"].at(np.arange(4), 4)[:, 0].tolist())
    assert found == [[1, 3, 5, 7]] * 2  # row i of the file for row i of the input


def test_file_refuses_what_is_no_array(tmp_path, run):
    file = tmp_path / "vectors.npy"
    file.write_text("no array")
    with pytest.raises(UserError, match="no array"):
        File(path=file).embed(samples(), run)
    np.save(file, np.zeros(9))
    with pytest.raises(UserError, match="no numbers"):
        File(path=file).embed(samples(), run)
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="no array"):
        File(path=file).embed(samples(), run)
    vectors = np.ones((9, 2))
    vectors[2, 0], vectors[4] = np.nan, 0
    np.save(file, vectors)
    answer = File(path=file, normalize=True).embed(samples(), run)
    assert answer.failed == {2: "the vector has a NaN or an infinity in it", 4: "the vector is zero"}
    with pytest.raises(ValueError, match="either --path"):
        File()


def test_file_reads_a_list_column(run):
    rows = Pool.of([{"instruction": f"q{i}", "output": "a", "v": [i, 2 * i]} for i in range(5)])
    found = apply(File(column="v"), rows.view())
    assert sorted(found.tolist()) == [[i, 2.0 * i] for i in range(5)]
    ragged = Pool.of([{"instruction": "q", "output": "a", "v": [1]}, {"instruction": "r", "output": "a", "v": [1, 2]}])
    with pytest.raises(UserError, match="is not a list of"):
        File(column="v").embed(ragged.view(), run)
    holes = Pool.of([{"instruction": "q", "output": "a", "v": [1, 2]}, {"instruction": "r", "output": "a"}])
    answer = File(column="v").embed(holes.view(), run)
    assert list(answer.left_out.values()) == ["no v"]
    texts = Pool.of([{"instruction": "q", "output": "a", "v": "x"}])
    with pytest.raises(UserError, match="holds no lists"):
        File(column="v").embed(texts.view(), run)


@pytest.mark.parametrize(("name", "options"), [("sentence", {}), ("hidden", {}), ("columns", {"columns": ["length"]})])
def test_rules_of_the_hook(name, options):
    assert conforms("embed", name, **options)
