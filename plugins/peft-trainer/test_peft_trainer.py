"""Training on a tiny real Llama: what is learned, in which order, and that a kill changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from siftune import Context, Sample, Samples, UserError, models, prompts
from siftune_peft_trainer import fitting
from siftune_peft_trainer.encoding import UNSAID, encode
from siftune_peft_trainer.methods import Full, LoRA, learning_rate_of
from siftune_peft_trainer.order import order
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# drops what was thought in all turns but the last, as reasoning models' templates do
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>\n"
    "{{ m.content if loop.last else m.content.split('|')[-1] }}<|end|>\n{% endfor %}"
)


def words() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|end|>"]
    texts = ["### Instruction: say the word ### Response: the word is apple pear plum"] * 4
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=letters)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|end|>"]
    )


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = words()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def toy() -> Samples:
    fruits = ["apple", "pear", "plum"]
    return Samples.of(
        [Sample.of(f"say word {i % 3}", f"the word is {fruits[i % 3]}" + " so" * (i % 5)) for i in range(24)]
    )


def said(row, tokenizer) -> str:
    return tokenizer.decode([i for i, label in zip(row.ids, row.labels, strict=True) if label != UNSAID])


def encoded(samples, tokenizer, name, max_length=256):
    template = prompts.template(name, tokenizer)
    return encode(samples, [1.0] * len(samples), tokenizer, template, max_length)


@pytest.mark.parametrize(
    ("name", "end"),
    [("alpaca", "</s>"), ("vicuna", "</s>"), ("wiz", "</s>"), ("plain", "</s>"), ("chat", "<|end|>")],
)
def test_labels_are_the_response_and_its_end(tiny_llama, name, end):
    tokenizer = models.tokenizer(str(tiny_llama))
    samples = [
        Sample.of("say it", "the word\n\nis  apple ", input="now"),
        Sample.of("say it", "é🙂 apple"),
        Sample.of("### Response: apple", "apple"),
    ]
    for sample, row in zip(samples, encoded(samples, tokenizer, name).rows, strict=True):
        assert said(row, tokenizer).lstrip(" ") == sample.response + end
        whole = prompts.template(name, tokenizer).pair(sample)
        assert tokenizer.decode(row.ids).replace("<s>", "").startswith(whole.text)


@pytest.mark.parametrize(("name", "end"), [("alpaca", "</s>"), ("vicuna", "</s>"), ("chat", "<|end|>")])
def test_every_turn_of_a_conversation_is_learned(tiny_llama, name, end):
    tokenizer = models.tokenizer(str(tiny_llama))
    told = [("user", "say it"), ("assistant", "apple"), ("user", "say it now"), ("assistant", "pear")]
    sample = Sample(tuple({"role": role, "content": content} for role, content in told))
    (row,) = encoded([sample], tokenizer, name).rows
    assert [part.strip() for part in said(row, tokenizer).split(end)] == ["apple", "pear", ""]


def test_turns_that_a_template_rewrites_are_sequences_of_their_own(tiny_llama):
    tokenizer = words()
    tokenizer.chat_template = FORGETFUL
    told = [("user", "say"), ("assistant", "thought|apple"), ("user", "say"), ("assistant", "thought|pear")]
    sample = Sample(tuple({"role": role, "content": content} for role, content in told))
    first, last = encoded([sample], tokenizer, "chat").rows
    assert said(first, tokenizer) == "thought|apple<|end|>"
    assert said(last, tokenizer) == "thought|pear<|end|>"
    assert "thought|apple" not in tokenizer.decode(last.ids)


def test_long_samples_are_cut_and_hopeless_ones_left_out(tiny_llama):
    tokenizer = models.tokenizer(str(tiny_llama))
    samples = [Sample.of("say", "apple " * 50), Sample.of("say " * 50, "apple"), Sample.of("say", "apple")]
    made = encoded(samples, tokenizer, "plain", max_length=20)
    assert made.cut == 2 and len(made.rows) == 2 and made.left_out.total() == 1
    assert max(len(row.ids) for row in made.rows) == 20
    assert tokenizer.eos_token_id not in made.rows[0].labels


def test_order_is_the_seeds_and_shows_every_row_equally():
    lengths = list(np.random.default_rng(0).integers(5, 500, 103))
    drawn = order(lengths, 8, 3.0, None, seed=5)
    assert np.bincount(drawn).tolist() == [3] * 103
    assert sorted(drawn[:103]) != list(drawn[:103])
    assert (drawn == order(lengths, 8, 3.0, None, seed=5)).all()
    assert (drawn != order(lengths, 8, 3.0, None, seed=6)).any()
    assert len(order(lengths, 8, 3.0, 20, seed=5)) == 160
    assert len(order(lengths, 8, 0.5, None, seed=5)) == 52
    waste = sum(8 * max(b) - sum(b) for i in range(0, 304, 8) if (b := [lengths[r] for r in drawn[i : i + 8]]))
    mixed = np.random.default_rng(1).permutation(np.repeat(np.arange(103), 3))
    loose = sum(8 * max(b) - sum(b) for i in range(0, 304, 8) if (b := [lengths[r] for r in mixed[i : i + 8]]))
    assert waste < loose / 4


def losses_of(model: Path, samples: Samples, template: str = "alpaca") -> float:
    reader = models.reader(str(model), dtype="float32", device="cpu")
    how = prompts.template(template, reader.tokenizer)
    found = reader.token_losses(reader.encode([how.pair(sample) for sample in samples], how.special))
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("method", [LoRA, Full])
def test_training_learns_and_leaves_a_whole_model(tiny_llama, toy, tmp_path, method):
    told = {"rows": 0, "tokens": 0}

    def advance(rows=0, tokens=0):
        told["rows"] += rows
        told["tokens"] += tokens

    run = Context(tmp_path, advance=advance)
    trainer = method(model=str(tiny_llama), template="alpaca", steps=30, learning_rate=1e-2, seed=0)
    trained = trainer.train(toy, run)
    assert trained.kind == "causal-lm" and trained.base == str(tiny_llama)
    assert losses_of(trained.folder, toy) < losses_of(tiny_llama, toy) / 3
    figures = trained.figures
    assert figures["steps"] == 30 == len(figures["loss_curve"])
    assert figures["loss_curve"][-1] < figures["loss_curve"][0] / 3
    assert told == {"rows": 24, "tokens": figures["tokens"]}
    before, after = models.tokenizer(str(tiny_llama)), models.tokenizer(str(trained.folder))
    assert after.chat_template == before.chat_template == CHAT
    assert after.encode("say apple é") == before.encode("say apple é")
    assert not (tmp_path / "checkpoints").exists()
    assert LlamaForCausalLM.from_pretrained(trained.folder).config.use_cache
    assert not list(trained.folder.glob("*.bin"))
    if method is LoRA:
        about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == str(tiny_llama)
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
        names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert {name.split(".")[-3] for name in names} == {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        }  # fmt: skip


@pytest.mark.parametrize("options", [{"dropout": 0.1, "at_once": 4}, {"dtype": "bfloat16"}, None])
def test_a_killed_training_goes_on_to_the_same_bits(tiny_llama, toy, tmp_path, monkeypatch, options):
    monkeypatch.setattr(fitting, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "SHARE", 0.0)

    class Killed(BaseException):
        pass

    def train(folder, stop_after=None):
        seen = []

        def advance(rows=0, tokens=0):
            seen.append(rows)
            if len(seen) == stop_after:
                raise Killed

        folder.mkdir(exist_ok=True)
        common = {
            "model": str(tiny_llama),
            "template": "alpaca",
            "epochs": 3.0,
            "seed": 3,
            "learning_rate": 1e-2,
        }
        method = Full(**common) if options is None else LoRA(**common, **options)
        return method.train(toy, Context(folder, advance=advance)), seen

    straight, _ = train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "broken", stop_after=5)
    # a checkpoint that was cut short is passed over
    newest = max((tmp_path / "broken" / "checkpoints").iterdir(), key=lambda path: path.name)
    (newest / fitting.WHOLE).unlink()
    resumed, seen = train(tmp_path / "broken")
    assert 0 < len(seen) < 9
    assert resumed.figures["loss_curve"] == straight.figures["loss_curve"]
    one, other = (load_file(t.folder / "model.safetensors") for t in (straight, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    again, seen = train(tmp_path / "broken")
    assert not seen and again.figures == resumed.figures


def test_weights_and_small_batches_change_the_loss_as_they_should(tiny_llama, tmp_path):
    rows = [
        Sample.of("say", "apple"),
        Sample.of("say", "pear plum apple"),
        Sample.of("say", "plum"),
        Sample.of("say", "is"),
    ]
    weighted = Samples.of(rows, weight=[1.0, 3.0, 2.0, 2.0])

    def first_loss(samples, **options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        trained = Full(model=str(tiny_llama), template="plain", steps=1, batch_size=4, seed=0, **options).train(
            samples, Context(folder)
        )
        return trained.figures["loss_curve"][0]

    made = encoded(rows, models.tokenizer(str(tiny_llama)), "plain").rows
    model = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    sums = []
    for row in made:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1]
        wanted = torch.tensor(row.labels[1:])
        sums.append(float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=UNSAID, reduction="sum")))
    learned = sum(row.said for row in made)
    plain = sum(sums) / learned
    expected = sum(w * s for w, s in zip([0.5, 1.5, 1.0, 1.0], sums, strict=True)) / learned
    assert first_loss(Samples.of(rows)) == pytest.approx(plain, abs=1e-4)
    assert first_loss(Samples.of(rows), at_once=1) == pytest.approx(plain, abs=1e-4)
    assert first_loss(weighted) == pytest.approx(expected, abs=1e-4)
    assert first_loss(weighted, at_once=2) == pytest.approx(expected, abs=1e-4)
    assert abs(plain - expected) > 1e-3


def test_bfloat16_leaves_bfloat16(tiny_llama, toy, tmp_path):
    trained = LoRA(model=str(tiny_llama), template="alpaca", steps=2, dtype="bfloat16").train(toy, Context(tmp_path))
    assert {w.dtype for w in load_file(trained.folder / "model.safetensors").values()} == {torch.bfloat16}


def test_a_loss_that_is_no_number_stops_the_training(tiny_llama, toy, tmp_path):
    with pytest.raises(UserError, match="lower --learning-rate"):
        Full(model=str(tiny_llama), template="alpaca", steps=20, learning_rate=1e20).train(toy, Context(tmp_path))
    assert not (tmp_path / "model").exists()


def test_nothing_to_train_on_is_said(tiny_llama, tmp_path):
    warnings = []
    run = Context(tmp_path, warn=warnings.append)
    with pytest.raises(UserError, match="nothing to train on"):
        samples = Samples.of([Sample.of("say " * 50, "a")])
        LoRA(model=str(tiny_llama), template="plain", max_length=8).train(samples, run)
    assert any("not trained on" in text for text in warnings)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0.0},
        {"steps": 0},
        {"batch_size": 0},
        {"at_once": 3},
        {"learning_rate": -1.0},
        {"rank": 0},
        {"dropout": 1.0},
        {"max_length": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="--"):
        LoRA(**options)


def test_the_rate_falls_with_the_width(tiny_llama):
    wide = LlamaForCausalLM.from_pretrained(tiny_llama)
    rates = []
    for width in (256, 2000, 4096):
        wide.config.hidden_size = width
        rates.append(learning_rate_of(5e-4, wide))
    assert rates == [2.49e-3, 5e-4, 2.86e-4]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_keeps_the_rules_of_its_hook(tiny_llama, method):
    from siftune.testing import conforms

    assert conforms("train", method, model=str(tiny_llama), template="plain", steps=2)
