"""score scar: the straightforward loop against ours, in one process, on the rows that ship with siftune.

    OMP_NUM_THREADS=1 python benchmarks/scar.py                                   # new heads on minilm, 2,000 rows
    OMP_NUM_THREADS=1 python benchmarks/scar.py --model lizhuang144/scar-gte-base --rows 200

`loop` is what the original program does: rows in the order they come (here: a random one), 32 at once, the
instruction of every row encoded with its answer's, each side padded to its longest. `ours` is `score scar` without
the engine: texts once, by length, in batches of a token budget, shard by shard. Both take turns, shard by shard, so
that whatever else the machine does meets both alike; figures are medians over the repeats with the smallest and
largest, in processor seconds of this process on a processor, in seconds on a GPU. Weights do not matter to either.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from siftune import Samples, models
from siftune_scar_ranker import network
from siftune_scar_ranker.ranker import Pair, Ranker
from siftune_scar_ranker.reading import BATCH, batches
from siftune_scar_ranker.scar import Scar, pair_of

AT_ONCE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a ranker (default: new heads on minilm)")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        told = measure(options.model or new_ranker(Path(scratch) / "ranker"), options)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2))


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    reader = Ranker(model, options.dtype, options.device, options.max_length)
    pairs = real_pairs(options.rows)
    shards = [pairs[at : at + Scar.shard] for at in range(0, len(pairs), Scar.shard)]
    spent: dict[str, list[float]] = {"loop": [], "ours": []}
    difference = 0.0
    for _ in range(options.repeats):
        clock = dict.fromkeys(spent, 0.0)
        reader.forget()  # every repeat reads every instruction
        for shard in shards:
            answers = {}
            for name, work in (("loop", loop), ("ours", ours)):
                seconds, answers[name] = timed(lambda work=work, shard=shard: work(reader, shard), options)
                clock[name] += seconds
            difference = max(difference, float(np.abs(answers["loop"] - answers["ours"]).max()))
        for name, seconds in clock.items():
            spent[name].append(seconds)
    padding = {"loop": loop_padding(reader, shards), "ours": our_padding(reader, shards)}
    read = {name: sum(true for true, _ in parts) for name, parts in padding.items()}
    share = {name: 1 - read[name] / sum(padded for _, padded in parts) for name, parts in padding.items()}
    figures = {
        "model": options.model or "new heads on minilm", "dtype": options.dtype, "device": options.device,
        "rows": len(pairs), "distinct instructions": len({instruction for instruction, _ in pairs}),
        "seconds": {name: spread(values) for name, values in spent.items()},
        "loop over ours": spread([a / b for a, b in zip(spent["loop"], spent["ours"], strict=True)]),
        "tokens read": read, "share of padding": share, "largest difference": difference,
    }  # fmt: skip
    print(
        f"{figures['model']} in {options.dtype} on {options.device}, {torch.get_num_threads()} threads: "
        f"{len(pairs)} pairs, {figures['distinct instructions']} distinct instructions"
    )
    for name in spent:
        seconds = figures["seconds"][name]
        print(f"  {name}: {seconds} s, {read[name]:,} tokens, {share[name]:.1%} of what is computed is padding")
    print(f"  loop over ours: {figures['loop over ours']}; scores differ by at most {difference:.1e}")
    return figures


# ---- the two sides ----


def order(count: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)


def loop(reader: Ranker, pairs: Sequence[Pair]) -> np.ndarray:
    found = np.zeros(len(pairs))
    chosen = order(len(pairs))
    for at in range(0, len(chosen), AT_ONCE):
        rows = chosen[at : at + AT_ONCE]
        sides = ([pairs[row][side] for row in rows] for side in (0, 1))
        with torch.inference_mode():
            (asked, _), (said, form) = (
                network.states(reader.net, *reader.words.padded(reader.words.read(texts)[0], reader.device))
                for texts in sides
            )
            found[rows] = network.judged(reader.net, asked, said, form)[0].cpu().numpy()
    return found


def ours(reader: Ranker, pairs: Sequence[Pair]) -> np.ndarray:
    return reader.scores(pairs)[0]


# ---- padding: tokens of texts, and of the rectangles that they stand in ----


def loop_padding(reader: Ranker, shards: Sequence[Sequence[Pair]]) -> list[tuple[int, int]]:
    told = []
    for pairs in shards:
        chosen = order(len(pairs))
        for at in range(0, len(chosen), AT_ONCE):
            for side in (0, 1):
                told.append(rectangle(reader, [pairs[row][side] for row in chosen[at : at + AT_ONCE]]))
    return told


def our_padding(reader: Ranker, shards: Sequence[Sequence[Pair]]) -> list[tuple[int, int]]:
    told, known = [], set()
    budget = BATCH.get(torch.device(reader.device).type, BATCH["cpu"])
    for pairs in shards:
        asked = [text for text in dict.fromkeys(instruction for instruction, _ in pairs) if text not in known]
        known.update(asked)
        for texts in (asked, list(dict.fromkeys(answer for _, answer in pairs))):
            lengths = [len(ids) for ids in reader.words.read(texts)[0]]
            told += [rectangle(reader, [texts[at] for at in batch]) for batch in batches(lengths, budget)]
    return told


def rectangle(reader: Ranker, texts: Sequence[str]) -> tuple[int, int]:
    lengths = [len(ids) for ids in reader.words.read(texts)[0]]
    return sum(lengths), len(lengths) * max(lengths)


# ---- measuring ----


def timed(work: Callable[[], np.ndarray], options: argparse.Namespace) -> tuple[float, np.ndarray]:
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    started = clock()
    found = work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return clock() - started, found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def real_pairs(count: int) -> list[Pair]:
    """Pairs of the pool that ships."""
    text = gzip.decompress(files("siftune").joinpath("quickstart_pool.jsonl.gz").read_bytes()).decode()
    pairs = [pair_of(sample) for sample in Samples.of([json.loads(line) for line in text.splitlines()])]
    return [pair for pair in pairs if pair[0].strip() and pair[1].strip()][:count]


def new_ranker(folder: Path) -> str:
    torch.manual_seed(0)
    net, told = network.begin("minilm", 512)
    network.save(net, told, models.folder("minilm"), folder)
    return str(folder)


if __name__ == "__main__":
    main()
