"""select facility: facility location, by lazy greedy on a graph of nearest neighbours."""

from __future__ import annotations

import heapq
from typing import Annotated

import numpy as np
import numpy.typing as npt
from siftune import Budget, Context, Method, Samples, Selection, hookimpl

from . import vectors
from .neighbours import several
from .vectors import Floats, Ints

Doubles = npt.NDArray[np.float64]


class Facility(Method):
    """The rows that together are most like all rows: facility location on a graph of nearest neighbours."""

    neighbours: Annotated[int, "edges of each row; rows further apart than these are not alike at all"] = 32
    embedding: Annotated[str, "column of vectors"] = "embedding"

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError("--neighbours is at least 1")

    def needs(self) -> list[str]:
        return [self.embedding]

    @hookimpl
    def select(self, samples: Samples, budget: Budget, run: Context) -> Selection:
        points, present = vectors.read(samples, self.embedding)
        graph = Graph.of(points, self.neighbours)
        order, gains = graph.greedy(budget.rows)
        np.save(run.folder / "gains.npy", gains)
        run.note(objective=float(gains.sum()), of=len(points))
        missing = np.setdiff1d(np.arange(len(samples)), present)
        return Selection(present[order], left_out={int(at): "no vector" for at in missing})


class Graph:
    """Who is like whom: for each row the rows that it would serve, with a likeness between 0 and 1."""

    def __init__(self, starts: Ints, served: Ints, likeness: Doubles) -> None:
        self.starts, self.served, self.likeness = starts, served, likeness

    @staticmethod
    def of(points: Floats, k: int) -> Graph:
        """Every row is served by itself (likeness 1) and by its `k` nearest rows (exp(-(distance / s)^2), s
        the median length of an edge)."""
        n = len(points)
        near, far = several(points, k)
        edge = np.isfinite(far)
        scale = float(np.median(far[edge])) if edge.any() else 1.0
        likeness = np.exp(-np.square(far[edge] / scale)) if scale > 0 else np.ones(int(edge.sum()))
        serving = np.concatenate([np.arange(n), near[edge]])
        served = np.concatenate([np.arange(n), np.nonzero(edge)[0]])
        likeness = np.concatenate([np.ones(n), likeness])
        order = np.lexsort((served, serving))
        starts = np.searchsorted(serving[order], np.arange(n + 1))
        return Graph(starts, served[order], likeness[order])

    def greedy(self, k: int) -> tuple[Ints, Doubles]:
        """The rows of the largest gains in turn, and the gains; the lowest row of equal ones.

        A gain only falls as more is chosen (Minoux 1978), so an old one that stays on top when it is brought
        up to date is the largest.
        """
        n = len(self.starts) - 1
        best = np.zeros(n)  # how well each row is served so far
        sums = np.add.reduceat(self.likeness, self.starts[:-1])
        heap = list(zip((-sums).tolist(), range(n), strict=True))
        heapq.heapify(heap)
        fresh = np.zeros(n, np.int64)
        order: list[int] = []
        gains: list[float] = []
        while heap and len(order) < k:
            gain, row = heapq.heappop(heap)
            if fresh[row] < len(order):
                edges = slice(self.starts[row], self.starts[row + 1])
                gain = -float(np.maximum(self.likeness[edges] - best[self.served[edges]], 0).sum())
                fresh[row] = len(order)
                if heap and (gain, row) > heap[0]:
                    heapq.heappush(heap, (gain, row))
                    continue
            edges = slice(self.starts[row], self.starts[row + 1])
            served = self.served[edges]
            best[served] = np.maximum(best[served], self.likeness[edges])
            order.append(row)
            gains.append(-gain)
        return np.array(order, np.int64), np.array(gains)
