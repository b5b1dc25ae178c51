"""Does IFD under a small model tell a row's own response from another's, and what does a byte cost it?"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("any row", "same source", "same source, length within 20%")
ROOM = 64
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    source: str
    prompt: str
    response: str


@dataclass(frozen=True)
class Losses:
    """Of one response: mean loss a token after its prompt and alone, and the sum after its prompt."""

    conditional: float
    alone: float
    total: float

    @property
    def ifd(self) -> float:
        return math.exp(self.conditional - self.alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, default=ROOT.parent / "shared" / "data" / "pool.parquet")
    parser.add_argument("--held-out", type=Path, default=ROOT / "plugins" / "nano" / "held_out.tsv")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rows", type=int, help="only so many of the 1,000, for a quick look")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    options = parser.parse_args()

    rows, others = read_rows(options.pool, options.held_out)
    rows = within_context(options.model, rows)
    rng = random.Random(options.seed)
    if options.rows:
        rows = rng.sample(rows, options.rows)
    exchanged = {
        kind: [exchange(row, rows, number, rng) for row in rows] for number, kind in enumerate(KINDS)
    }
    pairs = [(row.prompt, row.response) for row in rows]
    pairs += [
        (row.prompt, other)
        for kind in KINDS
        for row, other in zip(rows, exchanged[kind], strict=True)
        if other
    ]
    losses = token_losses(options.model, list(dict.fromkeys(pairs)), options.threads)
    overlap = Overlap([row.prompt + "\n\n" + row.response for row in others])

    signals: dict[str, Callable[[str, str], float]] = {
        "IFD": lambda prompt, response: -losses[prompt, response].ifd,
        "conditional loss": lambda prompt, response: -losses[prompt, response].conditional,
        "word overlap": overlap,
        "length": lambda prompt, response: float(len(response)),
    }
    figures: dict[str, Any] = {"model": options.model, "rows": len(rows), "exchanges": {}}
    common = np.array([overlap(row.prompt, row.response) for row in rows])
    halves = {"all rows": common < math.inf, "overlap below the median": common < np.median(common)}
    for kind in KINDS:
        for half, chosen in halves.items():
            kept = [n for n, row in enumerate(rows) if chosen[n] and exchanged[kind][n] is not None]
            print(f"\n{kind}, {half}: {len(kept)} rows")
            table = {}
            scores = {}
            for name, signal in signals.items():
                true = np.array([signal(rows[n].prompt, rows[n].response) for n in kept])
                false = np.array([signal(rows[n].prompt, str(exchanged[kind][n])) for n in kept])
                scores[name] = true, false
                table[name] = figures_of(true, false, options.seed)
                area, within = table[name]["auroc"], table[name]["within"]
                print(f"  {name:18} AUROC {interval(area)}   within an instruction {interval(within)}")
            table["IFD less overlap"] = difference(*scores["IFD"], *scores["word overlap"], options.seed)
            print(f"  IFD less overlap within an instruction {interval(table['IFD less overlap'])}")
            figures["exchanges"][f"{kind}, {half}"] = {"rows": len(kept), **table}
    figures["bits per byte"] = bits_per_byte(rows, others, losses, options.seed)
    print("\nbits per byte of the responses")
    for name, found in figures["bits per byte"].items():
        print(f"  {name:28} {interval(found)}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def read_rows(pool: Path, held_out: Path) -> tuple[list[Row], list[Row]]:
    """The benchmark's rows, and the pool's rows that are in no set, for counting words."""
    with held_out.open(newline="") as lines:
        part = {line["id"]: line["set"] for line in csv.DictReader(lines, delimiter="\t")}
    found, others = [], []
    for row in pq.read_table(pool).to_pylist():
        prompt = "\n\n".join(text for text in (row["instruction"].strip(), row["input"].strip()) if text)
        read = Row(row["source"], prompt, row["output"].strip())
        if part.get(row["id"]) == "benchmark":
            found.append(read)
        elif row["id"] not in part:
            others.append(read)
    return found, others


def within_context(model: str, rows: Sequence[Row]) -> list[Row]:
    """Rows whose prompt leaves room for a response; the others cannot be read at all."""
    from siftune.models import reader

    read = reader(model)
    found = [row for row in rows if len(read.tokenizer(row.prompt).input_ids) <= read.context - ROOM]
    print(f"{len(rows) - len(found)} of {len(rows)} rows left out: their prompts fill the context")
    return found


def exchange(row: Row, rows: Sequence[Row], kind: int, rng: random.Random) -> str | None:
    """Another row's response, never an equal one; None where no row fits."""
    fits = [
        other.response
        for other in rows
        if other.response != row.response
        and other.prompt != row.prompt
        and (kind == 0 or other.source == row.source)
        and (kind < 2 or abs(len(other.response) - len(row.response)) <= 0.2 * len(row.response))
    ]
    return rng.choice(fits) if fits else None


def token_losses(model: str, pairs: Sequence[tuple[str, str]], threads: int) -> dict[tuple[str, str], Losses]:
    """Through siftune's own reader, with its default template, as `score ifd` reads."""
    import torch
    from siftune.models import reader
    from siftune.prompts import Rendered
    from siftune.prompts import template as template_of

    torch.set_num_threads(threads)
    read = reader(model)
    template = template_of(None, read.tokenizer)
    texts = []
    for prompt, response in pairs:
        before = template.prompt([{"role": "user", "content": prompt}])
        texts.append(Rendered(before + response, len(before), len(before) + len(response)))
    encoded = read.encode(texts, template.special)
    bare = dict.fromkeys(response for _, response in pairs)
    start = "" if template.special else read.tokenizer.bos_token or ""
    lone = [Rendered(start + response, len(start), len(start) + len(response)) for response in bare]
    alone = dict(zip(bare, read.token_losses(read.encode(lone, template.special)), strict=True))
    found = {}
    for pair, each in zip(pairs, read.token_losses(encoded), strict=True):
        unprompted = alone[pair[1]]
        both = min(
            len(each), len(unprompted)
        )  # a prompt takes room from the context: compare the same tokens
        found[pair] = Losses(float(each[:both].mean()), float(unprompted[:both].mean()), float(each.sum()))
    return found


class Overlap:
    """Share of a response's words that its prompt has, each weighted by how rare it is in other rows."""

    def __init__(self, texts: Sequence[str]) -> None:
        seen: Counter[str] = Counter()
        for text in texts:
            seen.update(words(text))
        self.rarity = {word: math.log(len(texts) / count) for word, count in seen.items()}
        self.unseen = math.log(len(texts))

    def __call__(self, prompt: str, response: str) -> float:
        said = words(response)
        weight = sum(self.rarity.get(word, self.unseen) for word in said)
        shared = sum(self.rarity.get(word, self.unseen) for word in said & words(prompt))
        return shared / weight if weight else 0.0


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def auroc(true: Floats, false: Floats) -> float:
    """How often a true response scores above an exchanged one, ties half."""
    order = np.sort(false)
    below = np.searchsorted(order, true, "left")
    upto = np.searchsorted(order, true, "right")
    return float((below + upto).mean() / 2 / len(false))


def within(true: Floats, false: Floats) -> Floats:
    return (true > false) + 0.5 * (true == false)


def resampled(count: int, seed: int, figure: Callable[[npt.NDArray[np.int64]], float]) -> list[float]:
    """A figure with its 95% interval: instructions are drawn, each with both of its responses."""
    rng = np.random.default_rng(seed)
    drawn = [figure(rng.integers(0, count, count)) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(x, 4) for x in (figure(np.arange(count)), float(low), float(high))]


def figures_of(true: Floats, false: Floats, seed: int) -> dict[str, list[float]]:
    right = within(true, false)
    return {
        "auroc": resampled(len(true), seed, lambda chosen: auroc(true[chosen], false[chosen])),
        "within": resampled(len(true), seed, lambda chosen: float(right[chosen].mean())),
    }


def difference(true: Floats, false: Floats, true2: Floats, false2: Floats, seed: int) -> list[float]:
    gap = within(true, false) - within(true2, false2)
    return resampled(len(gap), seed, lambda chosen: float(gap[chosen].mean()))


def bits_per_byte(
    rows: Sequence[Row], others: Sequence[Row], losses: dict[tuple[str, str], Losses], seed: int
) -> dict[str, list[float]]:
    """Bits for each byte of the responses, given their prompts, beside what needs no language model."""
    size = np.array([len(row.response.encode()) for row in rows], float)
    counts: Counter[str] = Counter()
    for row in others:
        counts.update(tokens(row.response))
    letters: Counter[int] = Counter()
    for row in others:
        letters.update(row.response.encode())
    by_letter = {letter: -math.log2(count / letters.total()) for letter, count in letters.items()}
    mass = counts.total() + len(counts) + 1

    def unigram(text: str) -> float:
        """A word unseen in the other rows is spelt out by the frequency of its letters."""
        bits = 0.0
        for token in tokens(text):
            bits += -math.log2((counts[token] or 1) / mass)
            if token not in counts:
                bits += sum(by_letter.get(letter, 16.0) for letter in token.encode())
        return bits

    def gzipped(text: str) -> int:
        return 8 * len(gzip.compress(text.encode(), 9, mtime=0))

    head = gzipped("")
    bits = {
        "the model": [losses[row.prompt, row.response].total / math.log(2) for row in rows],
        "unigram (words)": [unigram(row.response) for row in rows],
        "gzip, each response alone": [gzipped(row.response) - head for row in rows],
        "gzip, response after prompt": [
            gzipped(row.prompt + "\n\n" + row.response) - gzipped(row.prompt + "\n\n") for row in rows
        ],
    }
    found = {}
    for name, each in bits.items():
        spent = np.array(each, float)
        found[name] = resampled(
            len(rows), seed, lambda chosen, spent=spent: float(spent[chosen].sum() / size[chosen].sum())
        )
    by_source: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_source[row.source].append(place)
    spent = np.array(bits["the model"])
    for source, places in sorted(by_source.items()):
        value = round(float(spent[places].sum() / size[places].sum()), 4)
        found[f"the model, {source}"] = [value, math.nan, math.nan]
    return found


def tokens(text: str) -> list[str]:
    return re.findall(r"\s*\w+|\s*[^\w\s]|\s+", text)


def interval(found: Sequence[float]) -> str:
    value, low, high = found
    return f"{value:6.3f}" if math.isnan(low) else f"{value:6.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
