"""How a budget is shared among clusters: one order of all rows whose every beginning has the right shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .vectors import Ints

Share = Literal["proportional", "equal", "root"]


def weights(sizes: Ints, share: Share) -> npt.NDArray[np.float64]:
    """What each cluster weighs: its size, one, or the root of its size."""
    return sizes.astype(np.float64) ** {"proportional": 1.0, "equal": 0.0, "root": 0.5}[share]


def due(sizes: Ints, share: Share) -> tuple[Ints, Ints]:
    """In which order the clusters have their turns: cluster and place inside it, for every row of every one.

    The r-th row of a cluster of weight w is due at (r + 1/2) / w, so that after any number of turns each
    cluster has had its share, rounded, and one that has run out leaves its share to the others.
    """
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    places = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.empty(0, np.int64)
    times = (places + 0.5) / weights(sizes, share)[clusters]
    # the larger cluster first where two are due at once, then the lower number
    order = np.lexsort((clusters, -sizes[clusters], times))
    return clusters[order], places[order]


def merged(orders: Sequence[Ints], share: Share, sizes: Ints | None = None) -> Ints:
    """One order out of one per cluster; `sizes` are the clusters' own, if the orders are but beginnings."""
    held = np.array([len(order) for order in orders], np.int64)
    clusters, places = due(held if sizes is None else sizes, share)
    there = places < held[clusters]
    starts = np.concatenate([[0], np.cumsum(held)[:-1]]).astype(np.int64)
    flat = np.concatenate(list(orders)) if len(orders) else np.empty(0, np.int64)
    merged: Ints = flat[starts[clusters[there]] + places[there]]
    return merged


def members(labels: npt.NDArray[np.float64]) -> tuple[list[Ints], Ints]:
    """Positions of every cluster, by number, and of the rows that have none."""
    known = np.flatnonzero(~np.isnan(labels))
    order = known[np.argsort(labels[known], kind="stable")]
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:]) if len(order) else [], np.flatnonzero(np.isnan(labels))
