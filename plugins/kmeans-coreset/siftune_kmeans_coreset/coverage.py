"""How well a selection covers rows that are not in it, beside selections that cost nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from .kmeans import assign, centres
from .shares import members, merged
from .vectors import Floats, Ints

ROWS = 5000  # held out at most
FEWEST = 200  # rows below which the figures say little


def coverage(vectors: Floats, chosen: Ints, held_out: Ints) -> tuple[float, float]:
    """Mean and largest distance from the held-out rows to the nearest chosen row; `vectors` is `(n, d)`."""
    if not len(chosen) or not len(held_out):
        raise ValueError("coverage needs at least one chosen and one held-out row")
    _, distances = assign(vectors[held_out], vectors[chosen])
    return float(distances.mean(dtype=np.float64)), float(distances.max())


def beside(spaces: dict[str, Floats], chosen: Ints, seed: int) -> dict[str, Any]:
    """Coverage of rows that were not chosen, in every space: by the selection, and by two others of its size,
    drawn at random and drawn at random from every cluster of a k-means.

    The held-out rows are up to a tenth of all, drawn from those that the selection leaves; the others are
    drawn from the rest. A selection made in one of the spaces was made to look well in that one.
    """
    n = len(next(iter(spaces.values())))
    draw = np.random.default_rng(seed)
    rest = np.setdiff1d(np.arange(n), chosen)
    held_out = draw.permutation(rest)[: min(ROWS, n // 10)]
    others = np.setdiff1d(np.arange(n), held_out)
    if n < FEWEST or len(others) < len(chosen) or not len(held_out):
        return {}
    random = draw.choice(others, len(chosen), replace=False)
    told: dict[str, Any] = {"coverage_rows": len(held_out)}
    for name, vectors in spaces.items():
        clustered = _from_clusters(vectors, others, len(chosen), draw)
        ways = {"selection": chosen, "random": random, "k-means and random": clustered}
        figures: dict[str, dict[str, float]] = {}
        for way, rows in ways.items():
            mean, largest = coverage(vectors, rows, held_out)
            figures[way] = {"mean": mean, "largest": largest}
        told[f"coverage_{name}"] = figures
    return told


def _from_clusters(vectors: Floats, rows: Ints, size: int, draw: np.random.Generator) -> Ints:
    """So many rows, from clusters by their size, at random inside."""
    k = max(1, min(100, size // 2))
    sample = rows if len(rows) <= 100 * k else draw.choice(rows, 100 * k, replace=False)
    middles = centres(vectors[np.sort(sample)], k, spherical=False, iterations=10, seed=0)
    labels, _ = assign(vectors[rows], middles)
    groups, _ = members(labels.astype(np.float64))
    return rows[merged([draw.permutation(group) for group in groups], "proportional")[:size]]
