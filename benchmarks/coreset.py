"""The k-center search of `select coreset` beside the loops that people write: speed, growth, memory, picks.

    python benchmarks/coreset.py paired              300,000 x 384, k = 1,500, beside both loops
    python benchmarks/coreset.py large               1,000,000 x 384, k = 5,000, with its memory
    python benchmarks/coreset.py growth --plot F     how the time grows, with n, with k, and with clusters
    python benchmarks/coreset.py same                picks equal to the plain float64 loop, from every start

The vectors are those of a pool (`--vectors F.npy`; by default the rows that ship are embedded), drawn again and
again with noise and brought back to length 1. Loops are timed over a stated number of picks and extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

THREADS = next((w for flag, w in zip(sys.argv, sys.argv[1:], strict=False) if flag == "--threads"), "2")
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = THREADS  # before numpy counts the cores

import numpy as np  # noqa: E402
from siftune import Pool, apply  # noqa: E402
from siftune_kmeans_coreset.kcenter import k_center, medoid  # noqa: E402
from siftune_kmeans_coreset.vectors import firsts  # noqa: E402

SHIPPED = Path(__file__).parents[1] / "core" / "siftune" / "quickstart_pool.jsonl.gz"


def base(path: Path | None) -> np.ndarray:
    """Vectors of real rows, `(m, d)`, each once."""
    if path is None:
        from siftune_sentence_embedder.sentence import Sentence

        print(f"embedding {SHIPPED.name} ...", flush=True)
        vectors = apply(Sentence(), Pool.read(SHIPPED).view())
    else:
        vectors = np.load(path, mmap_mode="r")
    vectors = np.ascontiguousarray(vectors[np.isfinite(vectors).all(axis=1)], np.float32)
    return vectors[firsts(vectors) == np.arange(len(vectors))]


def jittered(vectors: np.ndarray, n: int, noise: float, seed: int = 0) -> np.ndarray:
    """`n` rows drawn from the vectors, each moved by noise of this length on average, at length 1."""
    draw = np.random.default_rng(seed)
    d = vectors.shape[1]
    points = np.empty((n, d), np.float32)
    for start in range(0, n, 20_000):
        some = points[start : start + 20_000]
        draw.standard_normal(some.shape, np.float32, out=some)
        some *= noise / d**0.5
        some += vectors[draw.integers(0, len(vectors), len(some))]
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return points


def streaming(points: np.ndarray, picks: int) -> None:
    """The best plain loop: one matrix-vector product and a minimum per pick, on unit vectors."""
    near, row = np.full(len(points), np.inf, np.float32), 0
    for _ in range(picks):
        np.minimum(near, 2 - 2 * (points @ points[row]), out=near)
        row = int(near.argmax())


def usual(points: np.ndarray, picks: int) -> None:
    """The loop that is copied around: the norm of all differences per pick."""
    near, row = np.full(len(points), np.inf, np.float32), 0
    for _ in range(picks):
        near = np.minimum(near, np.linalg.norm(points - points[row], axis=1))
        row = int(near.argmax())


def plain(points: np.ndarray, k: int, start: int | np.ndarray) -> np.ndarray:
    """The definition: all distances in float64, the lowest row of equal ones; in pieces that stay in the cache."""
    wide = points.astype(np.float64)
    near = np.full(len(points), np.inf)
    order = [start] if isinstance(start, int) else []
    fold = list(np.atleast_1d(start))
    while True:
        for row in fold:
            for at in range(0, len(wide), 256):
                apart = wide[at : at + 256] - wide[row]
                distances = np.square(apart, out=apart).sum(axis=1)
                near[at : at + 256] = np.minimum(near[at : at + 256], distances)
        if len(order) == k:
            return np.array(order)
        order.append(int(near.argmax()))
        fold = order[-1:]


def timed(work, *arguments) -> tuple[float, float]:
    """Seconds on the clock, and of all processors together."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def paired(vectors: np.ndarray, n: int, k: int, noise: float, repeats: int) -> None:
    points = jittered(vectors, n, noise)
    picks, few = 20, 4
    columns: dict[str, list[float]] = {}
    for _ in range(repeats):
        before = timed(streaming, points, picks)
        searched = timed(k_center, points, k, 0)
        after = timed(streaming, points, picks)
        norms = timed(usual, points, few)
        for which, at in (("wall", 0), ("cpu", 1)):
            loop = (before[at] + after[at]) / (2 * picks) * k
            columns.setdefault(f"search, {which} s", []).append(searched[at])
            columns.setdefault(f"streaming loop, {which} s", []).append(loop)
            columns.setdefault(f"norm loop, {which} s", []).append(norms[at] / few * k)
            columns.setdefault(f"times streaming, {which}", []).append(loop / searched[at])
            columns.setdefault(f"times norm, {which}", []).append(norms[at] / few * k / searched[at])
    print(f"{n} x {points.shape[1]}, k = {k}, noise {noise}, {THREADS} threads, {repeats} repeats;")
    print(f"median (least to most); loops extrapolated from {2 * picks} and {few} picks")
    for name in sorted(columns):
        print(f"  {name:<28} {spread(columns[name])}")


def large(vectors: np.ndarray, n: int, k: int, noise: float) -> None:
    points = jittered(vectors, n, noise)
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall, cpu = timed(k_center, points, k, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    loop = timed(streaming, points, 4)
    print(f"{n} x {points.shape[1]}, k = {k}, noise {noise}, {THREADS} threads: {wall:.1f} s, {cpu:.1f} cpu s;")
    print(f"  peak {peak:.2f} GiB ({started:.2f} before the search, vectors {points.nbytes / 2**30:.2f})")
    print(f"  streaming loop, extrapolated from 4 picks: {loop[0] / 4 * k:.0f} s, {loop[1] / 4 * k:.0f} cpu s")


def growth(vectors: np.ndarray, plot: Path | None) -> None:
    def both(n: int, k: int, topics: int) -> dict[str, float]:
        points = jittered(vectors[:topics], n, 0.3)
        searched = min(timed(k_center, points, k, 0)[1] for _ in range(3))
        loop = min(timed(streaming, points, 10)[1] for _ in range(3)) / 10 * k
        told = {"n": n, "k": k, "topics": topics, "search": searched, "streaming": loop}
        print(json.dumps(told), flush=True)
        return told

    every = len(vectors)
    by_n = [both(n, 1000, every) for n in (10_000, 30_000, 100_000, 200_000, 400_000)]
    by_k = [both(100_000, k, every) for k in (100, 300, 1000, 3000, 6000)]
    by_topics = [both(100_000, 1000, topics) for topics in (1, 10, 100, 1000, every)]
    if plot is not None:
        draw(by_n, by_k, by_topics, plot)


def draw(by_n: list[dict], by_k: list[dict], by_topics: list[dict], plot: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    panels = (
        (axes[0], by_n, "n", "rows (1,000 picks)"),
        (axes[1], by_k, "k", "picks (100,000 rows)"),
        (axes[2], by_topics, "topics", "clusters (100,000 rows, 1,000 picks)"),
    )
    for axis, told, key, label in panels:
        x = [one[key] for one in told]
        axis.loglog(x, [one["streaming"] for one in told], "o--", color="0.6", label="streaming loop")
        axis.loglog(x, [one["search"] for one in told], "o-", color="tab:blue", label="select coreset")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("processor seconds")
    axes[0].legend()
    figure.savefig(plot, dpi=110)
    print(f"written: {plot}")


def same(vectors: np.ndarray, n: int, k: int) -> None:
    points = vectors[:n]
    rows = np.arange(len(points))
    shuffle = np.random.default_rng(1).permutation(len(points))
    starts = {
        "medoid": medoid(points, rows),
        "first": 0,
        "random": int(np.random.default_rng(0).integers(len(points))),
        "already": np.random.default_rng(2).choice(len(points), 50, replace=False),
    }
    for name, start in starts.items():
        wanted = plain(points, k, start)
        ways = {
            "as it is": k_center(points, k, start).order,
            "small blocks": k_center(points, k, start, outer=512, inner=32).order,
            "large blocks": k_center(points, k, start, outer=16384, inner=2048).order,
        }
        # another order of the rows: without ties the picks are the same rows
        place = np.argsort(shuffle)
        moved = int(place[start]) if isinstance(start, int) else place[start]
        ways["other order"] = shuffle[k_center(points[shuffle], k, moved).order]
        told = ", ".join(f"{way} {(order == wanted).sum()}" for way, order in ways.items())
        print(
            f"{name}: of {k} picks from {len(points)} rows, equal to the plain float64 loop: {told}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["paired", "large", "growth", "same"])
    parser.add_argument("--vectors", type=Path, help="vectors of a pool, .npy")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--picks", type=int)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    vectors = base(given.vectors)
    match given.what:
        case "paired":
            paired(vectors, given.rows or 300_000, given.picks or 1500, given.noise, given.repeats)
        case "large":
            large(vectors, given.rows or 1_000_000, given.picks or 5000, given.noise)
        case "growth":
            growth(vectors, given.plot)
        case "same":
            same(vectors, given.rows or 20_000, given.picks or 1000)


if __name__ == "__main__":
    main()
