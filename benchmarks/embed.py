"""`embed sentence` through a whole run beside a bare sentence-transformers call on sorted rows, turn about.

    python benchmarks/embed.py --pool pool.parquet --rows 5000 --repeats 3

Both read the same texts with the same weights, precision and threads. The bare call gets all texts at once, so
it sorts them all; the run sorts inside its shards of 256 rows, writes each to its store, and is read back from there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
THREADS = next((w for flag, w in zip(sys.argv, sys.argv[1:], strict=False) if flag == "--threads"), "1")
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = THREADS

import numpy as np  # noqa: E402
import siftune  # noqa: E402
from siftune_sentence_embedder import minilm  # noqa: E402
from siftune_sentence_embedder.texts import text  # noqa: E402

SHIPPED = Path(__file__).parents[1] / "core" / "siftune" / "quickstart_pool.jsonl.gz"


def main() -> None:
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=SHIPPED, help="instruction data [default: what ships]")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", default="1")
    given = parser.parse_args()
    samples = siftune.Pool.read(given.pool, limit=given.rows).view()
    texts = [text(sample, "full") for sample in samples]
    encoder = SentenceTransformer(str(minilm()), device="cpu")

    def bare() -> np.ndarray:
        order = np.argsort([len(one) for one in texts])
        vectors = np.empty((len(texts), 384), np.float32)
        sorted_texts = [texts[at] for at in order]
        vectors[order] = encoder.encode(sorted_texts, normalize_embeddings=True, show_progress_bar=False)
        return vectors

    def whole() -> np.ndarray:
        with tempfile.TemporaryDirectory() as place:
            paths = {"out": f"{place}/run", "store": f"{place}/store"}
            run = siftune.run(given.pool, ["embed sentence"], limit=given.rows, **paths)
            pool = run.state.pool
            return np.array(pool.columns["embedding"].at(pool.order, len(pool)))

    clocks: dict[str, list[tuple[float, float]]] = {"bare": [], "run": []}
    bare_vectors = whole_vectors = np.empty(0)
    for turn in range(given.repeats):
        ways = {"bare": bare, "run": whole}
        for name in ways if turn % 2 else reversed(ways):
            wall, cpu = time.perf_counter(), time.process_time()
            found = ways[name]()
            clocks[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            if name == "bare":
                bare_vectors = found
            else:
                whole_vectors = found
    print(f"{len(texts)} rows, {THREADS} threads, {given.repeats} turns; the run against the bare call:")
    for at, which in enumerate(("wall", "cpu")):
        shares = [b[at] / r[at] for b, r in zip(clocks["bare"], clocks["run"], strict=True)]
        rates = {name: len(texts) / statistics.median(t[at] for t in times) for name, times in clocks.items()}
        print(
            f"  {which}: {rates['run']:.1f} and {rates['bare']:.1f} rows/s, "
            f"share {statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
        )
    print(f"  largest difference between the vectors: {np.abs(bare_vectors - whole_vectors).max():.2g}")


if __name__ == "__main__":
    main()
