"""What IFD chooses with a small reader: its cost over thousands of rows, its agreement, and what it takes for hard.

    python benchmarks/ifd_agreement.py cost --pool pool.parquet        5,000 rows in one run
    python benchmarks/ifd_agreement.py published --pool pool.parquet   beside Cherry's published 5% of Alpaca
    python benchmarks/ifd_agreement.py exchanged                       40% of the responses exchanged

`--pool` is a file of Alpaca rows with a `source`, and for `published` with `tags` that name the published
selections a row belongs to. `exchanged` uses the rows that ship with siftune unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import siftune
from siftune import Pool
from siftune.models import Reader

SHIPPED = Path(__file__).parents[1] / "core" / "siftune" / "quickstart_pool.jsonl.gz"
TAG = "cherry_v1_5pct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "published", "exchanged"])
    parser.add_argument("--pool", type=Path, default=SHIPPED)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.4, help="of the responses that are exchanged")
    parser.add_argument("--store", type=Path, help="keep what is computed here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        {"cost": cost, "published": published, "exchanged": exchanged}[options.what](options, Path(scratch))


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [dict(row) for row in Pool.read(path).source.rows]  # type: ignore[union-attr]


def scored(rows: Sequence[dict[str, Any]], options: argparse.Namespace, scratch: Path) -> tuple[Any, Any]:
    """The run and its table, in the order of the rows."""
    file = scratch / "rows.jsonl"
    kept = ("instruction", "input", "output")
    lines = (json.dumps({key: row.get(key) or "" for key in kept}) for row in rows)
    file.write_text("\n".join(lines), encoding="utf-8")
    done = siftune.run(
        file, [f"score ifd --model {options.model}"], out=scratch / "run", store=options.store or scratch / "store"
    )  # fmt: skip
    return done, done.table.to_pydict()


def drawn(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    random.Random(options.seed).shuffle(rows)
    return rows[: options.rows]


# ---- cost ----


def cost(options: argparse.Namespace, scratch: Path) -> None:
    rows = drawn(read(options.pool), options)
    inside = {"seconds": 0.0, "tokens": 0}
    whole = Reader.token_losses

    def watched(self: Reader, encoded: Any, **more: Any) -> Any:
        start = time.perf_counter()
        answer = whole(self, encoded, **more)
        inside["seconds"] += time.perf_counter() - start
        inside["tokens"] += sum(len(one.ids) for one in encoded)
        return answer

    Reader.token_losses = watched  # type: ignore[method-assign]
    start, before = time.perf_counter(), time.process_time()
    done, table = scored(rows, options, scratch)
    spent, processor = time.perf_counter() - start, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ok = sum(value is not None for value in table["ifd"])
    print(
        f"{len(rows):,} rows ({ok:,} scored), {inside['tokens']:,} tokens in both passes, {spent:.0f} s "
        f"({processor:.0f} s of processor): {len(rows) / spent:.1f} rows/s, {inside['tokens'] / spent:,.0f} tokens/s, "
        f"{peak:,.0f} MB at most, outside of the model {1 - inside['seconds'] / spent:.1%} of the time"
    )
    for reason, count in Counter(one for one in done.state.done[0].reasons if one is not None).most_common():
        print(f"  {count:5,} left out: {reason}")


# ---- beside a published selection ----


def published(options: argparse.Namespace, scratch: Path) -> None:
    rows = drawn([row for row in read(options.pool) if row["source"] == "alpaca"], options)
    _, table = scored(rows, options, scratch)
    chosen = np.array([TAG in (row["tags"] or []) for row in rows])
    ratio = np.array([np.nan if value is None else value for value in table["ifd"]])
    tokens = np.array([np.nan if value is None else value for value in table["ifd.tokens"]])
    given, alone = (
        np.array([np.nan if value is None else value for value in table[f"ifd.loss_{part}"]])
        for part in ("conditioned", "alone")
    )
    length = np.array([len(row["output"]) for row in rows], float)
    known = np.isfinite(ratio)
    print(f"{len(rows):,} rows of Alpaca, {known.sum():,} scored, {chosen[known].sum():,} in the published 5%")
    deciles = np.searchsorted(np.quantile(length[known], np.arange(0.1, 1, 0.1)), length, side="right")
    within = (ratio < 1) & (tokens >= 10)
    sides = {
        "length of the response": length,
        "IFD, ratio of perplexities": ratio,
        "IFD, ratio of losses": given / alone,
        "IFD in its range, else last": np.where(within, ratio, -1.0),
        "loss after the instruction": given,
        "loss alone": alone,
    }
    print(f"{'':34} AUROC   within deciles of length   chosen alike within deciles (by chance)")
    for name, values in sides.items():
        inner, hits, chance = [], 0.0, 0.0
        for decile in range(10):
            at = known & (deciles == decile)
            count = int(chosen[at].sum())
            if 0 < count < at.sum():
                inner.append((auroc(values[at], chosen[at]), count))
                best = np.argsort(-values[at], kind="stable")[:count]
                hits += chosen[at][best].sum()
                chance += count * count / at.sum()
        total = sum(count for _, count in inner)
        mean = sum(value * count for value, count in inner) / total
        print(
            f"{name:34} {auroc(values[known], chosen[known]):.3f}   {mean:.3f}"
            f"{'':22}{hits / total:.1%} ({chance / total:.1%})"
        )


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive stands above another; ties count half."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[group]
    n, m = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


# ---- responses exchanged ----


def exchanged(options: argparse.Namespace, scratch: Path) -> None:
    rows = drawn(read(options.pool), options)
    intact = exchange(rows, options)
    _, table = scored(rows, options, scratch)
    ratio = np.array([np.nan if value is None else value for value in table["ifd"]])
    tokens = np.array([0.0 if value is None else value for value in table["ifd.tokens"]])
    known = np.isfinite(ratio)
    order = np.argsort(-np.where(known, ratio, -np.inf), kind="stable")[: known.sum()]
    inside = [i for i in order if ratio[i] < 1 and tokens[i] >= 10]
    count = round(0.3 * known.sum())
    print(f"{known.sum():,} rows, {intact[known].mean():.0%} of them intact pairs; of 30% by IFD there are intact")
    for name, some in (
        ("the highest", order[:count]),
        ("the highest below 1, from 10 tokens on", inside[:count]),
        ("the lowest", order[-count:]),
    ):
        print(f"  {name:40} {intact[some].mean():.0%} of {len(some):,}")
    print(f"  at 1 and above: {intact[order[ratio[order] >= 1]].mean():.0%} of {(ratio[known] >= 1).sum():,}")


def exchange(rows: list[dict[str, Any]], options: argparse.Namespace) -> np.ndarray:
    """Give a share of the rows another's response, of the same source and about the same length; which are intact."""
    rng = random.Random(options.seed)
    groups: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if rng.random() < options.share:
            groups[row.get("source", "")].append(at)
    intact = np.ones(len(rows), bool)
    for places in groups.values():
        places.sort(key=lambda at: len(rows[at]["output"]))
        # neighbours in length, in rounds of four: each takes the response of the next
        for first in range(0, len(places), 4):
            some = places[first : first + 4]
            said = [rows[at]["output"] for at in some]
            for at, response in zip(some, said[1:] + said[:1], strict=True):
                intact[at] = rows[at]["output"] == response
                rows[at] = {**rows[at], "output": response}
    return intact


if __name__ == "__main__":
    main()
