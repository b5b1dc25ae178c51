"""Real tasks through lm-eval on a tiny real Llama: its figures, ours, and what a user gets wrong."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from siftune import Context, Sample, UserError, models, prompts
from siftune.intervals import wilson
from siftune_lm_eval import figures
from siftune_lm_eval.method import LMEval
from siftune_lm_eval.quickstart import rows
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content }}{{ eos_token }}\n{% endfor %}"


@pytest.fixture(scope="module")
def asked_llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "asked"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=2048,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.3,
        )
    ).save_pretrained(folder)
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=letters)
    bpe.train_from_iterator([json.dumps(row) for row in rows._read("loss.jsonl.gz")], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory) -> Path:
    """Three tasks of one's own: choices, a generation, and one whose data is on the hub."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [{"question": f"{n} and {n}", "choices": [str(2 * n), "x"], "answer": n % 2} for n in range(30)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    data = f"dataset_kwargs: {{data_files: {{test: {folder / 'docs.jsonl'}}}}}\n"
    data += "dataset_path: json\ntest_split: test\n"
    (folder / "own_choice.yaml").write_text(
        f"task: own_choice\n{data}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}} is'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}\n"
    )
    (folder / "own_words.yaml").write_text(
        f"task: own_words\n{data}output_type: generate_until\ndoc_to_text: '{{{{question}}}} is'\n"
        "doc_to_target: '{{choices[0]}}'\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    (folder / "own_far.yaml").write_text(
        "task: own_far\ndataset_path: nobody/nothing-of-this-name\ntest_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: '{{q}}'\ndoc_to_choice: '{{c}}'\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: acc}]\n"
    )
    return folder


def evaluate(model, tmp_path, **options):
    told = []
    run = Context(tmp_path, say=told.append)
    found = LMEval(model=str(model), dtype="float32", device="cpu", **options).evaluate(run)
    return found, told


def test_the_bundled_rows_can_be_answered_by_nothing_but_the_prompt():
    choice, loss = rows._read("choice.jsonl.gz"), rows._read("loss.jsonl.gz")
    assert all(len(set(row["choices"])) == 4 and 0 <= row["answer"] < 4 for row in choice)
    assert len(set(Counter(row["answer"] for row in choice).values())) == 1
    groups = Counter(tuple(sorted(row["choices"])) for row in choice)
    assert set(groups.values()) == {4}
    assert {row["source"] for row in choice} == {row["source"] for row in loss}
    for row in choice:
        sizes = [len(one) for one in row["choices"]]
        assert max(sizes) <= 1.25 * sizes[row["answer"]] and min(sizes) >= sizes[row["answer"]] / 1.25


def test_quickstart_runs_by_itself_and_says_so(asked_llama, tmp_path):
    found, told = evaluate(asked_llama, tmp_path, template="plain", limit=8)
    assert any("quickstart" in text for text in told)
    names = list(found.metrics)
    assert names[0] == "quickstart_choice.acc_mutual_info" and names[-1] == "quickstart_loss.bits_per_byte"
    for name in ("acc_blind", "acc_longest", "acc_shortest"):
        assert found.metrics[f"quickstart_choice.{name}"]["value"] == pytest.approx(0.25)
    for figure in found.metrics.values():
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] == 8
    assert len(found.items) == 16
    assert all(item["source"] and item["target"] and item["loss"] > 0 for item in found.items)
    json.dumps([dict(found.metrics), list(found.items)])


@pytest.mark.parametrize("template", ["plain", "alpaca", "chat"])
def test_a_response_is_scored_alone_by_the_tokens_that_score_sees(asked_llama, tmp_path, template):
    found, _ = evaluate(
        asked_llama, tmp_path, tasks=["quickstart_loss,quickstart_choice"], template=template, limit=4
    )
    reader = models.reader(str(asked_llama), dtype="float32", device="cpu")
    how = prompts.template(template, reader.tokenizer)
    read = rows._read("loss.jsonl.gz")[:4]
    encoded = reader.encode(
        [how.pair(Sample.of(row["prompt"], row["response"])) for row in read], how.special
    )
    for row, losses in zip(read, reader.token_losses(encoded), strict=True):
        items = {item["task"]: item for item in found.items if item["id"] == row["id"]}
        assert items["quickstart_loss"]["loss"] == pytest.approx(float(losses.sum()), rel=1e-5)
        assert items["quickstart_choice"]["loss"] == pytest.approx(float(losses.sum()), rel=1e-5)
        bits = float(losses.sum()) / math.log(2) / len(row["response"].encode())
        assert items["quickstart_loss"]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_what_the_prompt_adds_is_what_counts():
    doc = {"choices": ["aa", "bbb", "c", "ddd"], "answer": 2}
    after, alone = [-1.0, -4.0, -3.0, -9.0], [-1.0, -4.5, -9.0, -9.0]
    right = rows.chosen(doc, [(one, False) for one in after + alone])
    assert {name: right[name] for name in ("acc_mutual_info", "acc", "acc_bytes")} == {
        "acc_mutual_info": 1.0,
        "acc": 0.0,
        "acc_bytes": 0.0,
    }
    assert {name: right[name] for name in ("acc_blind", "acc_longest", "acc_shortest")} == {
        "acc_blind": 0.0,
        "acc_longest": 0.0,
        "acc_shortest": 1.0,
    }
    # who ties for the best is right as often as a coin would be
    assert rows.chosen({**doc, "answer": 3}, [(-1.0, False)] * 8)["acc_longest"] == 0.5
    assert rows.chosen(doc, [(-1.0, False)] * 8)["acc"] == 0.25


def test_a_model_that_knows_the_answers_finds_them(asked_llama, tmp_path):
    """What is trained on the very rows has to come out far above one in four, and cheaper by the byte."""
    reader = models.Reader(
        asked_llama, name="x", dtype="float32", device=torch.device("cpu"), attention="sdpa"
    )
    how = prompts.template("plain", reader.tokenizer)
    read = rows._read("loss.jsonl.gz")[:4]
    encoded = reader.encode(
        [how.pair(Sample.of(row["prompt"], row["response"])) for row in read], how.special
    )
    steps = torch.optim.AdamW(reader.model.parameters(), 5e-3)
    for _ in range(50):
        for one in encoded:
            ids = torch.tensor(one.ids[None])
            labels = ids.clone()
            labels[:, : one.start] = -100
            reader.model(ids, labels=labels).loss.backward()
            steps.step()
            steps.zero_grad()
    learned = tmp_path / "learned"
    reader.model.save_pretrained(learned)
    reader.tokenizer.save_pretrained(learned)
    before, _ = evaluate(asked_llama, tmp_path, template="plain", limit=4)
    after, _ = evaluate(learned, tmp_path, template="plain", limit=4)
    assert after.metrics["quickstart_choice.acc_mutual_info"]["value"] >= 0.75
    name = "quickstart_loss.bits_per_byte"
    assert after.metrics[name]["high"] < before.metrics[name]["low"] / 2


def test_tasks_of_ones_own(asked_llama, own_tasks, tmp_path, capfd):
    found, told = evaluate(
        asked_llama,
        tmp_path,
        tasks=["own_choice", "own_words"],
        include_path=own_tasks,
        limit=20,
        num_fewshot=2,
    )
    assert not told
    accuracy = found.metrics["own_choice.acc"]
    assert accuracy["n"] == 20 and 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    chosen = [item for item in found.items if item["task"] == "own_choice"]
    assert accuracy["value"] == pytest.approx(np.mean([item["correct"] for item in chosen]))
    assert all((item["prediction"] == item["target"]) == bool(item["correct"]) for item in chosen)
    assert found.metrics["own_words.exact_match"]["value"] == 0.0
    assert found.metrics["own_words.exact_match"]["high"] > 0
    words = [item for item in found.items if item["task"] == "own_words"]
    assert all(isinstance(item["prediction"], str) and item["target"].isdigit() for item in words)
    # nothing but the result may reach a script
    assert capfd.readouterr().out == ""
    json.dumps([dict(found.metrics), list(found.items)])


def test_figures_agree_with_lm_eval_on_its_own(asked_llama, own_tasks, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found, _ = evaluate(asked_llama, tmp_path, tasks=["own_choice"], include_path=own_tasks, num_fewshot=1)
    reader = models.reader(str(asked_llama), dtype="float32", device="cpu")
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=reader.model, tokenizer=reader.tokenizer, batch_size=4),
        tasks=["own_choice"],
        num_fewshot=1,
        task_manager=TaskManager(include_path=str(own_tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found.metrics["own_choice.acc"]["value"] == theirs["results"]["own_choice"]["acc,none"]


def test_intervals_of_shares_stay_shares():
    none = wilson(0.0, 20)
    assert none["low"] == pytest.approx(0.0, abs=1e-12) and none["high"] == pytest.approx(0.1611, abs=1e-4)
    half = wilson(0.5, 100)
    assert (half["low"], half["high"]) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_items_that_share_their_choices_are_drawn_together():
    whole = figures._accuracy([[1.0] * 4, [0.0] * 4] * 10)
    mixed = figures._accuracy([[1.0, 0.0, 1.0, 0.0]] * 20)
    assert whole["value"] == mixed["value"] == 0.5
    assert mixed["low"] == mixed["high"] == 0.5 and whole["high"] - whole["low"] > 0.3


def test_sources_count_alike():
    def row(source, bits):
        return {"doc": {"source": source, "response": "x" * 10}, "bits_per_byte": bits}

    assert figures._loss([row("a", 1.0)] * 30 + [row("b", 3.0)] * 10)["value"] == pytest.approx(2.0)


def test_what_a_user_gets_wrong_is_said(asked_llama, own_tasks, tmp_path):
    with pytest.raises(UserError, match=r"data of the task 'own_far' could not be had.*--include-path"):
        evaluate(asked_llama, tmp_path, tasks=["own_far"], include_path=own_tasks)
    for options in (
        {"limit": 0}, {"num_fewshot": -1}, {"batch_size": 0}, {"include_path": own_tasks},
        {"apply_chat_template": True},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="--"):
            LMEval(**options)


@pytest.mark.slow
def test_a_misspelt_task_is_named_before_the_run():
    with pytest.raises(UserError, match="Did you mean 'hellaswag'"):
        LMEval(tasks=["helaswag"]).needs()


def test_the_harness_knows_its_tasks_without_being_imported(own_tasks):
    code = (
        "import sys; from siftune_lm_eval.method import LMEval; LMEval().needs(); "
        "LMEval(tasks=['arc_challenge,hellaswag', 'mmlu', 'ai2_arc', 'mmlu_abstract_algebra']).needs(); "
        f"LMEval(tasks=['own_choice'], include_path=__import__('pathlib').Path({str(own_tasks)!r})).needs(); "
        "sys.exit('lm_eval' in sys.modules or 'datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_task_of_the_harness_without_network(asked_llama, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data of the task 'arc_easy' could not be had: .*ai2_arc"):
        evaluate(asked_llama, tmp_path, tasks=["arc_easy"])


def test_a_model_too_short_for_the_rows_is_told_so(asked_llama, tmp_path):
    short = tmp_path / "short"
    model = LlamaForCausalLM.from_pretrained(asked_llama)
    model.config.max_position_embeddings = 64
    model.save_pretrained(short)
    models.tokenizer(str(asked_llama)).save_pretrained(short)
    with pytest.raises(UserError, match=r"reads 64; name other tasks"):
        evaluate(short, tmp_path, template="plain", limit=4)


def test_it_keeps_the_rules_of_its_hook(asked_llama):
    from siftune.testing import conforms

    assert conforms("evaluate", "lm-eval", model=str(asked_llama), template="plain", limit=4)
