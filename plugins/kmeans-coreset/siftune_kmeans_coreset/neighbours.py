"""Nearest neighbours: exact where the pairs can be gone through, by a faiss index of cells above that."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .kcenter import squared
from .vectors import Floats, Ints, blocks

Doubles = npt.NDArray[np.float64]

PAIRS = 4_000_000_000  # gone through one by one up to here: some 63,000 rows among themselves


def exact(rows: int, others: int) -> bool:
    """Whether so many pairs are gone through one by one."""
    return rows * others <= PAIRS


def nearest(points: Floats, others: Floats | None = None) -> tuple[Ints, Doubles]:
    """The nearest of the others (by default: of the other points) to each point, and how far, `(n,)` each.

    Exact up to `PAIRS` pairs: products in float32 say which others can be the nearest, float64 says which is;
    the lowest of equally near ones. Above that the best of 16 cells of an index. Needs at least one other.
    """
    among = others is None
    pool = points if others is None else others
    if not exact(len(points), len(pool)):
        found, distances = several(points, 1, others)
        return found[:, 0], distances[:, 0]
    mean = pool.mean(axis=0, dtype=np.float64).astype(np.float32)
    shifted = pool - mean
    norms = np.einsum("ij,ij->i", shifted, shifted)
    scale = float(norms.max())
    index, distance = np.empty(len(points), np.int64), np.empty(len(points))
    for part in blocks(len(points), 256):
        block = points[part] - mean
        lengths = np.einsum("ij,ij->i", block, block)
        rough = block @ shifted.T
        rough *= -2
        rough += norms
        if among:
            rough[np.arange(len(block)), np.arange(part.start, part.stop)] = np.inf
        slack = _slack(points.shape[1], max(scale, float(lengths.max())))
        at, other = np.nonzero(rough <= rough.min(axis=1, keepdims=True) + 2 * slack)
        true = squared(points[part][at], pool[other])
        order = np.lexsort((other, true, at))  # by point, then nearest, then lowest
        first = order[np.searchsorted(at[order], np.arange(len(block)))]
        index[part], distance[part] = other[first], np.sqrt(true[first])
    return index, distance


def _slack(dimensions: int, largest: float) -> float:
    """What a squared distance in float32 can be wrong by; see kcenter."""
    unit = 2.0**-24
    product = (dimensions + 1) * unit / (1 - (dimensions + 1) * unit)
    return (3 * product + 16 * unit) * largest * 1.01


def several(points: Floats, k: int, others: Floats | None = None) -> tuple[Ints, Doubles]:
    """The `k` nearest others of each point, nearest first: index and distance, `(n, k)` each; where there are
    fewer, the last are -1 at infinity. Above `PAIRS` pairs an index of cells finds them, nearly all."""
    import faiss

    among = others is None
    pool = points if others is None else others
    wanted = min(k + among, len(pool))
    if exact(len(points), len(pool)):
        index: Any = faiss.IndexFlatL2(pool.shape[1])
    else:
        cells = int(4 * len(pool) ** 0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(pool.shape[1]), pool.shape[1], cells)
        index.cp.seed, index.nprobe = 0, 16
        index.train(pool)
    index.add(pool)
    found = np.full((len(points), k), -1, np.int64)
    distance = np.full((len(points), k), np.inf)
    for part in blocks(len(points), 4096):
        _, near = index.search(points[part], wanted)
        rows = np.arange(part.start, part.stop)[:, None]
        there = near >= 0
        far = np.full(near.shape, np.inf)
        at = np.nonzero(there)
        far[at] = np.sqrt(squared(points[part][at[0]], pool[near[at]]))  # faiss rounds what is near to nothing
        if among:
            far[near == rows] = np.inf
        near = np.where(np.isfinite(far), near, -1)
        order = np.lexsort((near, far), axis=1)[:, :k]
        found[part, : order.shape[1]] = np.take_along_axis(near, order, 1)
        distance[part, : order.shape[1]] = np.take_along_axis(far, order, 1)
    return found, distance
