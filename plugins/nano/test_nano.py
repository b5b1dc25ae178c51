"""nano loads, is small, reads conversations as it was trained, and never saw the rows set aside."""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA = ROOT.parent / "shared" / "data"
MODEL = HERE / "siftune_nano" / "model"
POOL = ROOT / "core" / "siftune" / "quickstart_pool.jsonl.gz"
QUICKSTART = ROOT / "plugins" / "lm-eval" / "siftune_lm_eval" / "quickstart"

needs_text = pytest.mark.skipif(not (DATA / "pool.parquet").exists(), reason="the training text is not at hand")


@pytest.fixture(scope="module")
def text() -> ModuleType:
    sys.path.insert(0, str(HERE))
    try:
        import text as module
    finally:
        sys.path.remove(str(HERE))
    return module


@pytest.fixture(scope="module")
def held_out() -> list[dict[str, str]]:
    with (HERE / "held_out.tsv").open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_folder_is_found_without_heavy_imports():
    import subprocess

    code = "import sys, siftune_nano; assert 'torch' not in sys.modules; print(siftune_nano.folder())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE, check=True)
    assert Path(found.stdout.strip()) == MODEL


def test_weights_and_tokenizer_are_under_32_mb():
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 32_000_000


def test_it_loads_and_speaks():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    assert 8_000_000 <= model.num_parameters() <= 12_000_000
    assert model.config.max_position_embeddings == 1024
    ids = tokenizer("What is the capital of France?\n\n", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id and ids[0, -1] != tokenizer.eos_token_id
    said = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert said.shape[1] > ids.shape[1]
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss
    assert float(loss) < 6  # guessing among 8,192 tokens costs 9


def test_weights_are_bf16():
    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", "pt") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"BF16"}


def test_template_joins_parts_by_blank_lines():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    end = tokenizer.eos_token
    ask, answer = {"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}
    system = {"role": "system", "content": "Be brief."}
    render = tokenizer.apply_chat_template
    assert render([ask, answer], tokenize=False) == f"{end}Add.\n\n1 and 2\n\n3{end}"
    assert render([ask], tokenize=False, add_generation_prompt=True) == f"{end}Add.\n\n1 and 2\n\n"
    assert render([system, ask, answer], tokenize=False) == f"{end}Be brief.\n\nAdd.\n\n1 and 2\n\n3{end}"
    # the words of the template are the tokens of the training
    ids = render([ask, answer], tokenize=True, return_dict=False)
    assert ids == [*tokenizer("Add.\n\n1 and 2\n\n3").input_ids, tokenizer.eos_token_id]


def test_tokenizer_gives_back_every_byte():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for said in (
        "def f(x):\n    return x ** 2\n",
        "naïve café – 12.50 €",
        "  two  blanks\t\n\n\n",
        "日本語 🙂",
    ):
        assert tokenizer.decode(tokenizer(said, add_special_tokens=False).input_ids) == said


def test_sets_are_disjoint(held_out):
    for key in ("id", "prompt", "response"):
        found = defaultdict(set)
        for line in held_out:
            found[line[key]].add(line["set"])
        assert all(len(sets) == 1 for sets in found.values())


def test_pool_and_evaluation_are_the_rows_set_aside(text, held_out):
    known = {(line["set"], line["prompt"], line["response"]) for line in held_out}
    pool = rows(POOL)
    assert len(pool) == 2000
    assert {row["licence"] for row in pool} == {"MIT", "Apache-2.0"}
    for row in pool:
        hashes = text.content_hash(row["instruction"] + row["input"]), text.content_hash(row["output"])
        assert ("pool", *hashes) in known
    for row in rows(QUICKSTART / "loss.jsonl.gz"):
        hashes = text.content_hash(row["prompt"]), text.content_hash(row["response"])
        assert ("evaluation", *hashes) in known


def test_choices_cannot_be_told_by_length_place_or_likelihood():
    items = rows(QUICKSTART / "choice.jsonl.gz")
    places = [0, 0, 0, 0]
    offered = defaultdict(list)
    for item in items:
        lengths = [len(choice) for choice in item["choices"]]
        assert len(set(item["choices"])) == 4
        assert all(abs(length - lengths[item["answer"]]) <= 0.2 * lengths[item["answer"]] for length in lengths)
        places[item["answer"]] += 1
        offered[frozenset(item["choices"])].append(item["choices"][item["answer"]])
    assert len(set(places)) == 1
    # the same four responses stand under four prompts, and each is right once
    assert all(len(set(right)) == 4 for right in offered.values())


@needs_text
def test_held_out_rows_are_those_of_the_pool(text, held_out):
    import pyarrow.parquet as pq

    by_id = {row["id"]: row for row in pq.read_table(DATA / "pool.parquet").to_pylist()}
    for line in held_out:
        row = by_id[line["id"]]
        assert line["prompt"] == text.content_hash(row["instruction"] + row["input"])
        assert line["response"] == text.content_hash(row["output"])


def test_held_finds_copies(text):
    held = text.Held()
    response = "Boil the water for ten minutes, add salt and rice, stir, cover and wait until all of it is gone. " * 2
    held.add_row("How do I cook rice?", "", response)
    held.seal()

    def clash(said: str, prompt: str) -> str | None:
        return held.clash(text.Document(prompt + said, len(prompt), "x", "MIT"))

    assert clash("Differently.", "how do i cook RICE\n\n") == "prompt"
    assert clash(response.upper(), "Tell me about rice\n\n") == "response"
    assert (
        clash("First boil the water for ten minutes, add salt and rice, stir, cover and go.", "Rice?\n\n") == "13 words"
    )
    assert clash("Boil the water.", "Rice?\n\n") is None


@needs_text
@pytest.mark.slow
def test_training_text_holds_nothing_that_was_set_aside(text):
    """Repeats the filter's promise with plain sets of strings, on a random part of what was kept."""
    import re

    held = text.held(DATA, DATA.parent / "golden", HERE / "held_out.tsv")
    kept, dropped = text.allowed(text.read([DATA / "lm_text", DATA / "lm_text_permissive"]), held)
    assert {reason for _, reason in dropped} >= {"never used", "licence", "prompt", "response", "13 words"}
    assert {document.licence for document in kept} <= text.PERMISSIVE
    assert not {document.source for document in kept} & text.NEVER

    import pyarrow.parquet as pq

    wanted = {line["id"] for line in text.read_held_out(HERE / "held_out.tsv")}
    aside = [row for row in pq.read_table(DATA / "pool.parquet").to_pylist() if row["id"] in wanted]

    def words(said: str) -> list[str]:
        return re.findall(r"[^\W_]+", said.lower())

    def runs(said: str) -> set[tuple[str, ...]]:
        found = words(said)
        return {tuple(found[place : place + 13]) for place in range(len(found) - 12)}

    prompts = {"".join(words(row["instruction"] + row["input"])) for row in aside}
    responses = {key for row in aside if len(key := "".join(words(row["output"]))) > 80}
    copied = set().union(*(runs(row["instruction"] + " " + row["input"]) | runs(row["output"]) for row in aside))
    for document in random.Random(0).sample(kept, 20000):
        assert "".join(words(document.prompt)) not in prompts
        assert "".join(words(document.response)) not in responses
        assert not runs(document.text) & copied
