"""Fixes the rows that nano may never see: the bundled pool, the quickstart's evaluation, nano's benchmark."""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from text import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    LONG_INPUT,
    content_hash,
    is_commit,
    normalise,
)

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]

# Rows of the bundled pool and its evaluation, by the licence of what each source was made from. Left
# out though marked MIT or Apache-2.0: opendataarena_example (an example file whose questions come from
# elsewhere), scar_open_* (Dolly and Stack Exchange are CC BY-SA), instruction_induction, P3 and the
# other prompt collections (the data sets below them differ), self_instruct_user_oriented (an evaluation
# set), gpteacher_toolformer (a few tool descriptions repeated in every row).
LICENCE = {
    "gpteacher_roleplay": "MIT",
    "gpteacher_codegen": "MIT",
    "gsm8k_train": "MIT",
    "scar_octocoder": "Apache-2.0",
    "self_instruct_seed": "Apache-2.0",
}
POOL_ROWS = {
    "gpteacher_roleplay": 640,
    "gpteacher_codegen": 580,
    "gsm8k_train": 460,
    "scar_octocoder": 220,
    "self_instruct_seed": 100,
}
GROUPS = {"gpteacher_roleplay": 18, "gpteacher_codegen": 16, "gsm8k_train": 14, "scar_octocoder": 4}
# A model's answers to prompts of evaluation sets would take those prompts from the evaluations.
NOT_IN_BENCHMARK = {
    "alpaca_eval_outputs", "flask_outputs", "flask_reference", "self_instruct_predictions",
    "self_instruct_user_oriented", "gpteacher_toolformer",
}  # fmt: skip
BENCHMARK_ROWS = 1000
MIN_WORDS = 20
# Row n orders the responses for prompt n: each response and each right answer is once in every place.
PLACES = ((0, 1, 2, 3), (2, 3, 0, 1), (3, 2, 1, 0), (1, 0, 3, 2))
FUNCTION_WORDS = frozenset("the a an of to in and is that for it on with as you i be are this what how".split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, default=ROOT.parent / "shared" / "data" / "pool.parquet")
    parser.add_argument("--seed", type=int, default=20260)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = one_per_instance(pq.read_table(options.pool).to_pylist(), rng)

    by_source = defaultdict(list)
    for row in rows:
        if row["source"] != "scar_octocoder" or not is_commit(prompt(row)):
            by_source[row["source"]].append(row)
    groups = [group for source in GROUPS for group in take_groups(by_source[source], GROUPS[source], rng)]
    evaluation = [row for group in groups for row in group]
    pool = [row for source in POOL_ROWS for row in take_pool(by_source[source], POOL_ROWS[source], evaluation)]
    rng.shuffle(pool)
    benchmark = take_benchmark(by_source, pool + evaluation, rng)

    quickstart = ROOT / "plugins" / "lm-eval" / "siftune_lm_eval" / "quickstart"
    write_jsonl(ROOT / "core" / "siftune" / "quickstart_pool.jsonl.gz", (alpaca(row) for row in pool))
    write_jsonl(quickstart / "choice.jsonl.gz", (item for group in groups for item in choices(group)))
    write_jsonl(quickstart / "loss.jsonl.gz", (loss_row(row) for row in evaluation))
    write_hashes(
        Path(__file__).with_name("held_out.tsv"),
        {"pool": pool, "evaluation": evaluation, "benchmark": benchmark},
    )
    print(f"rows: {len(pool)} pool, {len(evaluation)} evaluation, {len(benchmark)} benchmark")


def one_per_instance(rows: list[Row], rng: random.Random) -> list[Row]:
    """One row of every set of rows joined by an instruction, an input of over 40 characters or a response.

    Whatever a row shares with another cannot then be in two sets, nor can two wordings of one instance.
    """
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows):
        instruction, input_, response = (normalise(row[key]) for key in ("instruction", "input", "output"))
        keys = [("prompt", instruction + input_), ("response", response)]
        if not input_:
            keys.append(("instruction", instruction))
        if len(input_) > LONG_INPUT:
            keys.append(("input", input_))
        for key in keys:
            other = first.setdefault(key, place)
            parent[root(place)] = root(other)
    members = defaultdict(list)
    for place in range(len(rows)):
        members[root(place)].append(place)
    chosen = sorted(rng.choice(places) for places in members.values())
    # The same instruction over different inputs may stay within one set only: keep its first row.
    kept: dict[str, Row] = {}
    order = rng.sample(chosen, len(chosen))
    for place in order:
        kept.setdefault(normalise(rows[place]["instruction"]), rows[place])
    return [row for row in kept.values() if normalise(row["output"]) and english(row)]


def english(row: Row) -> bool:
    """Some Open Assistant rows are not; lenient, since code and sums have few function words."""
    words = re.findall(r"[^\W\d_]+", (row["instruction"] + " " + row["output"]).lower())
    text = row["instruction"] + row["output"]
    ascii_share = sum(letter.isascii() for letter in text) / max(len(text), 1)
    prompt_words = re.findall(r"[^\W\d_]+", row["instruction"].lower())
    known = sum(word in FUNCTION_WORDS for word in words) / max(len(words), 1)
    return ascii_share > 0.97 and known > 0.06 and (len(prompt_words) < 8 or _has_function_word(prompt_words))


def _has_function_word(words: list[str]) -> bool:
    return any(word in FUNCTION_WORDS for word in words)


def take_groups(rows: list[Row], count: int, rng: random.Random) -> list[list[Row]]:
    """Fours of rows whose responses are within 20% of each other's length, short enough to be quick."""
    short = [
        row for row in rows
        if 90 <= len(row["output"]) <= 620 and len(prompt(row)) + len(row["output"]) <= 820
    ]  # fmt: skip
    short.sort(key=lambda row: (len(row["output"]), row["id"]))
    fours = [short[start : start + 4] for start in range(0, len(short) - 3, 4)]
    fits = [four for four in fours if len(four[-1]["output"]) <= 1.2 * len(four[0]["output"])]
    picked = rng.sample(fits, count)
    for four in picked:
        rng.shuffle(four)
    return picked


def choices(group: list[Row]) -> Iterable[Row]:
    """Four items that offer the same four responses: who does not read the prompt is right once in four."""
    for number, row in enumerate(group):
        yield {
            "id": row["id"],
            "source": row["source"],
            "licence": LICENCE[row["source"]],
            "prompt": prompt(row),
            "choices": [group[place]["output"] for place in PLACES[number]],
            "answer": PLACES[number].index(number),
        }


def take_pool(rows: list[Row], count: int, taken: list[Row]) -> list[Row]:
    used = {row["id"] for row in taken}
    fits = [row for row in rows if row["id"] not in used and len(prompt(row)) + len(row["output"]) <= 4000]
    if len(fits) < count:
        raise SystemExit(f"{len(fits)} rows of {rows[0]['source']} are left, {count} are wanted")
    return fits[:count]


def take_benchmark(by_source: dict[str, list[Row]], taken: list[Row], rng: random.Random) -> list[Row]:
    """As even over the sources as they allow, responses of at least 20 words."""
    used = {row["id"] for row in taken}
    left = {
        source: [row for row in rows if row["id"] not in used and len(row["output"].split()) >= MIN_WORDS]
        for source, rows in sorted(by_source.items())
        if source not in NOT_IN_BENCHMARK
    }
    for rows in left.values():
        rng.shuffle(rows)
    found: list[Row] = []
    while len(found) < BENCHMARK_ROWS:
        for rows in left.values():
            if rows and len(found) < BENCHMARK_ROWS:
                found.append(rows.pop())
    return found


def prompt(row: Row) -> str:
    return "\n\n".join(part for part in (row["instruction"].strip(), row["input"].strip()) if part)


def alpaca(row: Row) -> Row:
    fields = {key: row[key] for key in ("id", "instruction", "input", "output", "source")}
    return {**fields, "licence": LICENCE[row["source"]]}


def loss_row(row: Row) -> Row:
    return {
        "id": row["id"],
        "source": row["source"],
        "licence": LICENCE[row["source"]],
        "prompt": prompt(row),
        "response": row["output"],
    }


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """The same bytes every time: no name and no time in the gzip header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def write_hashes(path: Path, sets: dict[str, list[Row]]) -> None:
    lines = ["set\tid\tprompt\tresponse"]
    for name, rows in sets.items():
        for row in sorted(rows, key=lambda row: str(row["id"])):
            hashes = content_hash(row["instruction"] + row["input"]), content_hash(row["output"])
            lines.append("\t".join((name, row["id"], *hashes)))
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
