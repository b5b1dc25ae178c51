"""What the engine adds: 200,000 synthetic rows through `score length  select top --by length --budget 5%`.

Each run is a fresh process that reads JSONL, computes into an empty store and writes the run folder. The peer is
a pandas script in a process of its own that reads the same file, sorts by length, keeps 5% and writes two files:
the least that anybody would do by hand. Pairs are interleaved; printed are medians and ranges, and the bounds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, MEGABYTES = 25.0, 1500.0
PEER = """
import sys
import pandas as pd
table = pd.read_json(sys.argv[1], lines=True)
table["length"] = table["output"].str.len()
table.to_parquet(sys.argv[2] + "/table.parquet")
table.nlargest(len(table) // 20, "length").to_json(sys.argv[2] + "/selected.jsonl", orient="records", lines=True)
"""


def rows(path: Path, count: int) -> None:
    """Distinct Alpaca rows of about the sizes that instruction data has."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            text = " ".join(draw.choices(words, k=draw.randint(5, 150)))
            row = {"instruction": f"{number} " + " ".join(draw.choices(words, k=12)), "input": "", "output": text}
            stream.write(json.dumps(row | {"source": f"s{number % 7}"}) + "\n")


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a process."""
    started = time.perf_counter()
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    told = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, int(told.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    ours: list[tuple[float, float]] = []
    peers: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        data = place / "pool.jsonl"
        rows(data, options.rows)
        for number in range(options.repeat):
            out = place / f"run{number}"
            chain = "score length select top --by length --budget 5%".split()
            head = ["run", str(data), "--out", str(out), "--store", str(place / f"store{number}"), "--quiet"]
            ours.append(timed([sys.executable, "-m", "siftune", *head, *chain]))
            (place / "peer").mkdir(exist_ok=True)
            peers.append(timed([sys.executable, "-c", PEER, str(data), str(place / "peer")]))
    for name, measured in (("siftune", ours), ("pandas", peers)):
        seconds, megabytes = zip(*measured, strict=True)
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{name:<8} {statistics.median(seconds):6.1f} s ({spread}), peak {max(megabytes):,.0f} MB")
    ratios = [one[0] / other[0] for one, other in zip(ours, peers, strict=True)]
    print(f"ratio    {statistics.median(ratios):6.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    within = statistics.median([s for s, _ in ours]) < SECONDS and max(m for _, m in ours) < MEGABYTES
    print(f"bounds   {SECONDS:.0f} s and {MEGABYTES:,.0f} MB: {'kept' if within else 'NOT KEPT'}")


if __name__ == "__main__":
    main()
