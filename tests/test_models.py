"""References become folders; the losses of the reader are those of the plain loop, whatever the batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from siftune import UserError, encoding, models, packing, prompts, readers
from siftune.models import Encoded, Reader
from siftune.prompts import Rendered
from siftune.samples import Sample
from siftune.testing import tiny_model

TEXTS = [
    ("Name a colour.\n\n", "Blue, and in the evening the orange of the answer."),
    ("Name a colour.\n\n", "Blue, and in the evening the orange of the answer."),
    ("Translate: the bridge\n\n", "die Brücke 🌉"),
    ("x", "y"),
    ("Say it again: the end is in the answer\n\n", "the end is in the answer"),
    ("Count.\n\n", " ".join(map(str, range(60)))),
    ("", "nothing before it"),
]
RENDERED = [Rendered(a + b, len(a), len(a + b)) for a, b in TEXTS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def read(tiny: Path) -> Reader:
    return models.reader(str(tiny), dtype="float32", device="cpu")


@pytest.fixture
def variant(tiny: Path, tmp_path: Path) -> Callable[..., str]:
    """The tiny model with its tokenizer or configuration changed."""

    def make(tokenizer: Callable[[dict[str, Any]], None] | None = None, **config: Any) -> str:
        folder = tmp_path / f"variant-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny, folder)
        changes = {
            "tokenizer.json": tokenizer,
            "config.json": (lambda said: said.update(config)) if config else None,
        }
        for name, change in changes.items():
            if change is not None:
                said = json.loads((folder / name).read_text())
                change(said)
                (folder / name).write_text(json.dumps(said))
        return str(folder)

    return make


def without_bos(said: dict[str, Any]) -> None:
    said["post_processor"] = None


def with_eos(said: dict[str, Any]) -> None:
    processor = said["post_processor"]
    processor["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}


def merging_colons(said: dict[str, Any]) -> None:
    vocabulary = said["model"]["vocab"]
    vocabulary["::"] = vocabulary.pop(sorted(vocabulary, key=vocabulary.__getitem__)[-1])
    said["model"]["merges"] = [[":", ":"]]


def trimming_offsets(said: dict[str, Any]) -> None:
    said["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def straightforward(model: Any, one: Encoded) -> np.ndarray:
    """One row at a time, full logits: the definition."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(one.ids)[None], use_cache=False).logits[0].float()
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(one.ids[1:]), reduction="none")
    return losses.numpy()[one.start - 1 : one.end - 1]


# ---- references to models ----


def test_a_folder_a_shipped_name_and_what_is_neither(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Entry:
        def load(self) -> Callable[[], Path]:
            return lambda: tiny

    monkeypatch.setattr(models, "shipped", lambda: {"nano": Entry()})
    assert models.folder("nano") == models.folder(str(tiny)) == tiny
    assert models.digest("nano") == models.digest(str(tiny))
    (tmp_path / "trained" / "model").mkdir(parents=True)
    (tmp_path / "trained" / "model" / "config.json").write_text("{}")
    for wrong, said in (
        ("nanoo", "Did you mean 'nano'"),
        (str(tmp_path / "traind" / "model"), "no folder 'traind' in .* Did you mean 'trained'"),
        (str(tmp_path / "trained"), "no config.json. Did you mean .*trained/model"),
        (str(tmp_path / "trained" / "model" / "config.json"), "is a file"),
        ("gpt2", "a hub id is org/name"),
    ):
        with pytest.raises(UserError, match=said):
            models.folder(wrong)


def test_a_hub_id_is_downloaded_at_its_revision_and_known_by_its_commit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any("bin" in one or "*.py" in one for one in allow_patterns)
        if name == "no/such":
            raise OSError("404\nmore")
        folder = tmp_path / "snapshots" / "abc123"
        shutil.copytree(tiny, folder, dirs_exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert models.digest("org/name@v1") == models.digest("org/name") == "org/name@abc123"
    assert asked == [("org/name", "v1"), ("org/name", None)]
    with pytest.raises(UserError, match=r"'no/such' is neither shipped nor a folder, and the hub .* OSError: 404$"):
        models.folder("no/such")


def test_the_digest_is_of_the_content(tiny: Path, variant: Callable[..., str]) -> None:
    assert models.digest(variant()) == models.digest(str(tiny))
    assert models.digest(variant(rms_norm_eps=1e-5)) != models.digest(str(tiny))
    same = variant()
    (Path(same) / "notes.md").write_text("not read")
    assert models.digest(same) == models.digest(str(tiny))


def test_a_model_is_loaded_whole_or_not_at_all(tiny: Path, tmp_path: Path, variant: Callable[..., str]) -> None:
    def damaged(change: Callable[[dict[str, Any]], None]) -> str:
        folder = variant()
        weights = load_file(Path(folder) / "model.safetensors")
        change(weights)
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return folder

    norm = "model.norm.weight"
    for broken, said in (
        (damaged(lambda w: w.pop(norm)), "lacks weights: .*norm"),
        (damaged(lambda w: w.update(extra=torch.zeros(1))), "does not know: extra"),
        (damaged(lambda w: w.update({norm: torch.zeros(3)})), "cannot be loaded|another shape"),
        (variant(model_type="mystery", auto_map={"AutoModelForCausalLM": "code.Model"}), "cannot be"),
    ):
        with pytest.raises(UserError, match=said):
            models.reader(broken)
    pickled = Path(variant())
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        models.reader(str(pickled))
    with pytest.raises(UserError, match="take float32 or bfloat16"):
        models.reader(str(tiny), dtype="float33")


def test_a_model_that_sees_what_comes_after_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    folder = other(tiny, tmp_path, BertLMHeadModel, BertConfig, intermediate_size=32)
    with pytest.raises(UserError, match="sees the tokens that come after"):
        models.reader(folder)


def test_the_last_reader_is_kept(tiny: Path) -> None:
    assert models.reader(str(tiny)) is models.reader(str(tiny), dtype="float32")
    assert models.reader(str(tiny), dtype="bfloat16") is not models.reader(str(tiny), dtype="float32")


# ---- text to tokens ----


def scored(reader: Reader, one: Encoded) -> list[str]:
    return [str(token) for token in reader.tokenizer.convert_ids_to_tokens(one.ids[one.start : one.end])]


def test_exactly_the_response_is_scored(read: Reader) -> None:
    for text, one in zip(RENDERED, read.encode(RENDERED, special=True), strict=True):
        response = text.text[text.start :]
        assert read.tokenizer.decode(one.ids[one.start : one.end]) == response
        assert one.offsets[0][0] == 0 and one.offsets[-1][1] == len(response)
        assert (one.head, one.cut, one.end) == (1, 0, len(one.ids))


def test_a_token_over_the_boundary_is_not_made(variant: Callable[..., str]) -> None:
    reader = models.reader(variant(merging_colons))
    one, two = reader.encode([Rendered("a::) b", 2, 6), Rendered("a:) b", 2, 5)], special=True)
    assert scored(reader, one) == [":", ")", "Ġ", "b"] and one.offsets[0] == (0, 1)
    assert scored(reader, two) == [")", "Ġ", "b"]
    assert "::" in reader.tokenizer.convert_ids_to_tokens(reader.encode([Rendered("::a", 2, 3)], special=True)[0].ids)


def test_a_blank_before_the_first_word_belongs_to_its_token(read: Reader) -> None:
    (one,) = read.encode([Rendered("ASSISTANT: the answer", 11, 21)], special=True)
    assert scored(read, one) == ["Ġthe", "Ġanswer"] and one.offsets == [(0, 3), (3, 10)]


def test_offsets_that_a_tokenizer_trims_are_given_back(variant: Callable[..., str]) -> None:
    reader = models.reader(variant(trimming_offsets))
    one, two = reader.encode([Rendered("a the  b", 1, 8), Rendered("ASSISTANT: the", 11, 14)], special=True)
    assert scored(reader, one) == ["Ġthe", "Ġ", "Ġ", "b"]
    assert one.offsets == [(0, 4), (4, 5), (5, 6), (6, 7)]
    assert scored(reader, two) == ["Ġthe"]


def test_special_tokens_around_a_text_are_never_scored(variant: Callable[..., str]) -> None:
    for change, head in ((with_eos, 1), (without_bos, 0)):
        reader = models.reader(variant(change))
        for text, one in zip(RENDERED, reader.encode(RENDERED, special=True), strict=True):
            # without an opening token, the first token of an empty prompt has nothing before it
            expected = text.text[text.start :][0 if head or text.start else 1 :]
            assert reader.tokenizer.decode(one.ids[one.start : one.end]) == expected
            assert one.head == head and 2 not in one.ids


def test_an_opening_token_in_the_text_counts_as_one(read: Reader) -> None:
    (one,) = read.encode([Rendered("<s>Hi\n\nHo", 7, 9)], special=False)
    given, alone = one.alone()
    assert given is one and one.head == 1
    assert read.tokenizer.decode(alone.ids) == "<s>Ho" and alone.start == 1


def test_both_readings_score_the_same_tokens(read: Reader, variant: Callable[..., str]) -> None:
    nobos = models.reader(variant(without_bos))
    for reader, first in ((read, 0), (nobos, 1)):
        for one in reader.encode(RENDERED[:-1], special=True):
            given, alone = one.alone()
            assert len(given) == len(alone) == len(one) - first == len(given.offsets) == len(alone.offsets)
            assert (given.ids[given.start : given.end] == alone.ids[alone.start : alone.end]).all()
    (single,) = nobos.encode([Rendered("xy", 1, 2)], special=True)
    assert [len(one) for one in single.alone()] == [0, 0]


def test_what_does_not_fit_is_cut_and_counted(read: Reader) -> None:
    size = read.context + 100
    long = Rendered("a b" + "c" * size, 3, 3 + size)
    (one,) = read.encode([long], special=True)
    assert len(one.ids) == read.context and one.cut == size - len(one) > 0
    (shorter,) = read.encode([long], special=True, max_length=10)
    assert len(shorter.ids) == 10 and len(shorter) == 6 and shorter.cut == size - 6
    given, alone = shorter.alone()
    assert (given.ids[given.start :] == alone.ids[alone.start :]).all()
    (full,) = read.encode([Rendered("c" * size + "a", size, size + 1)], special=True)
    assert len(full) == 0 and full.cut == 1
    assert len(read.encode([Rendered("x" * 100_000 + "y", 3, 100_001)], special=True)[0].ids) == read.context


def test_text_that_no_tokenizer_reads_is_read_as_replacement(read: Reader) -> None:
    (one,) = read.encode([Rendered("Hi\udcff\n\n\ud800Ho", 5, 8)], special=True)
    assert read.tokenizer.decode(one.ids[one.start : one.end]) == "\ufffdHo"


def test_whole_samples_are_counted_under_their_template(tiny: Path, read: Reader) -> None:
    samples = [
        Sample.of("Hi", "Ho"),
        Sample.of("Hi", "", input="there"),
        Sample(({"role": "user", "content": "Hi"},)),
    ]
    how = prompts.template("plain", read.tokenizer)
    told = models.count_tokens(samples, str(tiny), "plain")
    expected = ["Hi\n\nHo</s>", "Hi\n\nthere\n\n</s>", "Hi\n\n"]
    assert told.tolist() == [len(read.tokenizer(text)["input_ids"]) for text in expected]
    assert models.count_tokens(samples, str(tiny), how).tolist() == told.tolist()
    assert models.count_tokens([], str(tiny)).tolist() == []


# ---- tokens to losses ----


def test_losses_are_those_of_the_straightforward_loop(read: Reader) -> None:
    encoded = [both for one in read.encode(RENDERED, special=True) for both in one.alone()]
    for one, losses in zip(encoded, read.token_losses(encoded), strict=True):
        assert losses.dtype == np.float32 and len(losses) == len(one)
        np.testing.assert_allclose(losses, straightforward(read.model, one), atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_a_score_does_not_depend_on_batch_order_or_neighbours(
    read: Reader, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read.packed
    monkeypatch.setattr(read, "packed", packed)
    encoded = read.encode(RENDERED, special=True)
    expected = [read.token_losses([one])[0] for one in encoded]
    for budget in (1, 64, 100_000):
        monkeypatch.setattr(read, "budget", budget)
        for order in (range(len(encoded)), list(reversed(range(len(encoded)))), [3, 0, 3, 5]):
            for i, losses in zip(order, read.token_losses([encoded[i] for i in order]), strict=True):
                np.testing.assert_allclose(losses, expected[i], atol=1e-5)
    monkeypatch.setattr(readers, "HEAD_BYTES", 1)
    for losses, one in zip(read.token_losses(encoded), expected, strict=True):
        np.testing.assert_allclose(losses, one, atol=1e-5)


def test_what_is_read_twice_is_computed_once(read: Reader) -> None:
    talk = "One?\n\n1\n\nTwo?\n\n2"
    turns = [Rendered(talk[:7], 6, 7), Rendered(talk, 15, 16)]
    encoded = read.encode([*turns, turns[0], turns[1]], special=True)
    told: list[int] = []
    losses = read.token_losses(encoded, advance=lambda tokens: told.append(tokens))
    assert sum(told) == len(encoded[1].ids)
    for one, found in zip(encoded, losses, strict=True):
        np.testing.assert_allclose(found, straightforward(read.model, one), atol=1e-5)


def test_a_thread_for_each_core_changes_nothing(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = read.encode(RENDERED * 3, special=True)
    threads = torch.get_num_threads()
    expected = read.token_losses(encoded)
    monkeypatch.setattr(read, "budget", 32)
    try:
        torch.set_num_threads(3)
        for found, one in zip(read.token_losses(encoded), expected, strict=True):
            np.testing.assert_allclose(found, one, atol=1e-5)
        assert torch.get_num_threads() == 3 and read.model.config._attn_implementation == "sdpa"
    finally:
        torch.set_num_threads(threads)


def test_nothing_to_score_is_nothing(read: Reader) -> None:
    (empty,) = read.encode([Rendered("Hi", 2, 2)], special=True)
    assert read.token_losses([]) == [] and list(read.hidden_states([])) == []
    assert len(read.token_losses([empty])[0]) == 0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    read: Reader, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = read.encode(RENDERED, special=True)
    expected = read.token_losses(encoded)
    whole, budget = read._losses, read.budget

    def small(texts: Any) -> Any:
        if len(texts) > 1:
            raise error
        return whole(texts)

    monkeypatch.setattr(read, "budget", budget)
    monkeypatch.setattr(read, "_losses", small)
    for found, one in zip(read.token_losses(encoded), expected, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-5)
    assert read.budget < budget

    def none(texts: Any) -> Any:
        raise error

    monkeypatch.setattr(read, "_losses", none)
    with pytest.raises(UserError, match="does not fit in memory; give --max-length"):
        read.token_losses(encoded)


def test_another_error_is_not_taken_for_a_lack_of_memory(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(texts: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(read, "_losses", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        read.token_losses(read.encode(RENDERED, special=True))


@pytest.mark.parametrize("packed", [True, False])
def test_hidden_states_are_those_of_a_row_alone(read: Reader, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "packed", packed)
    encoded = read.encode(RENDERED, special=True)
    found = dict(read.hidden_states(encoded))
    assert sorted(found) == list(range(len(encoded)))
    for i, one in enumerate(encoded):
        with torch.no_grad():
            alone = read.body(input_ids=torch.from_numpy(one.ids)[None]).last_hidden_state[0].numpy()
        assert found[i].dtype == np.float32 and found[i].shape == alone.shape
        np.testing.assert_allclose(found[i], alone, atol=1e-5)


def test_bfloat16_is_near_float32(tiny: Path, read: Reader) -> None:
    half = Reader(tiny, name="tiny", dtype="bfloat16", device=torch.device("cpu"), attention="sdpa")
    encoded = read.encode(RENDERED, special=True)
    for a, b in zip(read.token_losses(encoded), half.token_losses(encoded), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a.mean(), b.mean(), rtol=0.02)


# ---- other models ----


def other(tiny: Path, tmp_path: Path, kind: Any, config: Any, **more: Any) -> str:
    """A tiny random model of another make, with the tiny tokenizer."""
    folder = tmp_path / kind.__name__
    shutil.copytree(tiny, folder)
    size = json.loads((tiny / "config.json").read_text())["vocab_size"]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    said = config(vocab_size=size, **{**shape, **more}, architectures=[kind.__name__], bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    made = kind(said)
    said.save_pretrained(folder)
    weights = dict(made.state_dict())
    for name in getattr(made, "all_tied_weights_keys", {}) or {}:
        weights.pop(name, None)
    save_file(
        {k: v.contiguous() for k, v in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return str(folder)


MAKES: list[tuple[str, dict[str, Any], bool]] = [
    ("GPT2", {"n_positions": 256}, True),  # learned positions
    ("Qwen2", {"intermediate_size": 64, "num_key_value_heads": 2}, True),
    ("Mistral", {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 8}, False),
    ("Gemma2", {"intermediate_size": 64, "num_key_value_heads": 2, "final_logit_softcapping": 0.5}, False),
    ("Cohere", {"intermediate_size": 64, "logit_scale": 0.3}, True),  # scaled logits
    ("GPTNeoX", {"intermediate_size": 64}, True),
    ("Bloom", {"n_head": 4}, False),  # no positions: attention of its own making
    ("Mamba", {"state_size": 4}, False),  # no attention: rows end to end would leak
]


@pytest.mark.parametrize(("make", "more", "packed"), MAKES, ids=[make for make, _, _ in MAKES])
@pytest.mark.filterwarnings("ignore")
def test_any_decoder_only_model_is_read(
    make: str, more: dict[str, Any], packed: bool, tiny: Path, tmp_path: Path
) -> None:
    import transformers

    kind, config = getattr(transformers, f"{make}ForCausalLM", None), getattr(transformers, f"{make}Config")
    kind = kind or getattr(transformers, f"{make}LMHeadModel")
    reader = models.reader(other(tiny, tmp_path, kind, config, **more))
    assert reader.packed is packed
    encoded = reader.encode(RENDERED, special=True)
    for one, losses in zip(encoded, reader.token_losses(encoded), strict=True):
        np.testing.assert_allclose(losses, straightforward(reader.model, one), atol=2e-5)


def test_reading_end_to_end_leaves_the_model_as_it_was(read: Reader) -> None:
    before = read.model.config._attn_implementation
    read.token_losses(read.encode(RENDERED, special=True))
    assert read.model.config._attn_implementation == before == "sdpa"
    assert packing.works(read.body, 64)


def test_the_context_is_what_positions_and_tokenizer_allow(read: Reader) -> None:
    class Says:
        model_max_length = 10**30

    config = read.model.config
    assert encoding.context(config, Says()) == config.max_position_embeddings
    Says.model_max_length = 100
    assert encoding.context(config, Says()) == 100
