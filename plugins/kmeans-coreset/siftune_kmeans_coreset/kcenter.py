"""Exact k-center greedy: the farthest point next, found without looking at every point again.

The distance from a point to the chosen ones only falls as more are chosen, so an old distance is an upper
bound on the present one. Every point keeps such a bound and the number of centres it has been compared with.
Only the points with the largest bounds are brought up to date, by matrix products in float32; what is near
the top is then measured in float64, and a pick is made only where that value is above every bound outside.
The picks are those of the plain loop in float64, whatever the blocks, the threads and the BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import local

import numpy as np
import numpy.typing as npt

from .vectors import Floats, Ints, blocks
from .workers import Workers, workers

Doubles = npt.NDArray[np.float64]

OUTER = 8192  # points kept up to date together
INNER = 256  # points measured in float64 and picked from
SAMPLE = 4096  # points that tell how far the others have come
ROWS, COLUMNS = 1024, 128  # of one matrix product: what goes in and out of it stays in the cache


@dataclass
class Picked:
    """Rows in the order they were picked, and the radius after each: how far the farthest row then is."""

    order: Ints
    radii: Doubles


def squared(points: Floats, centres: Floats) -> Doubles:
    """Squared distances of pairs of rows `(m,)`: the float64 arithmetic that defines the picks."""
    difference = points.astype(np.float64) - centres
    distances: Doubles = np.square(difference, out=difference).sum(axis=1)
    return distances


def medoid(vectors: Floats, rows: Ints) -> int:
    """The row with the least sum of squared distances to the others: the one nearest to their mean."""
    mean = _mean(vectors, rows)
    best, found = np.inf, int(rows[0])
    for part in blocks(len(rows), 8192):
        some = rows[part]
        distances = np.square(vectors[some].astype(np.float64) - mean).sum(axis=1)
        at = int(np.argmin(distances))
        if distances[at] < best:
            best, found = distances[at], int(some[at])
    return found


def k_center(
    vectors: Floats,
    k: int,
    start: int | Ints,
    rows: Ints | None = None,
    outer: int = OUTER,
    inner: int = INNER,
) -> Picked:
    """Pick `k` rows, each the farthest from those before it (Gonzalez 1985; Sener and Savarese 2018).

    `vectors` is float32 `(n, d)`. `start` is the first pick, or an array of rows that are chosen already and
    not picked again. Only `rows` (all by default) are picked and counted in the radius. Of rows at one
    distance the lowest is picked. Ends early when every row lies on a chosen one.
    """
    vectors = np.asarray(vectors, np.float32)
    rows = np.arange(len(vectors)) if rows is None else rows
    first = isinstance(start, (int, np.integer))
    if k < 1 or not len(rows):
        return Picked(np.empty(0, np.int64), np.empty(0))
    given = np.atleast_1d(np.asarray(start, np.int64))
    with workers() as work:
        search = _Search(vectors, rows, given, len(given) + k - first, work)
        radii = search.run(outer, inner)
    skip = 0 if first else len(given)
    return Picked(search.chosen[skip : search.count].copy(), np.sqrt(np.array(radii[0 if first else 1 :])))


def _mean(vectors: Floats, rows: Ints) -> Doubles:
    total = np.zeros(vectors.shape[1])
    for part in blocks(len(rows), 8192):
        total += vectors[rows[part]].sum(axis=0, dtype=np.float64)
    return total / len(rows)


class _Search:
    """What one search knows of every point, and the centres so far."""

    def __init__(self, vectors: Floats, rows: Ints, start: Ints, wanted: int, work: Workers) -> None:
        self.vectors, self.rows, self.wanted, self.work = vectors, rows, wanted, work
        self.mean = _mean(vectors, rows).astype(np.float32)  # around it products are smaller, and so are their errors
        n, d = vectors.shape
        self.bound = np.full(n, -np.inf, np.float32)  # squared distance to the first `seen` centres, in float32
        self.seen = np.zeros(n, np.int32)
        self.value = np.full(n, np.inf)  # to the first `measured` centres, in float64
        self.measured = np.zeros(n, np.int32)
        self.centres = np.empty((wanted, d + 1), np.float32)  # (-2c, |c|^2): against (x, 1), all but |x|^2
        self.chosen = np.empty(wanted, np.int64)
        self.count = 0
        self.scratch = local()
        self.sample = np.random.default_rng(0).permutation(rows)[: max(512, min(SAMPLE, len(rows) // 16))]
        largest = 0.0
        for row in start:
            self._choose(int(row))
            largest = max(largest, float(self.centres[self.count - 1, -1]))
        self.bound[rows] = np.inf
        parts = [rows[part] for part in blocks(len(rows), ROWS)]
        largest = max(largest, *self.work(self._first_look, parts))
        # what float32 can be wrong by in any order of summation (Higham, Accuracy and Stability of Numerical
        # Algorithms, section 3.1): the product, the two norms, their sum, and the shift by the mean
        unit = 2.0**-24
        product = (d + 1) * unit / (1 - (d + 1) * unit)
        self.slack = (3 * product + 16 * unit) * largest * 1.01 + float(np.finfo(np.float32).tiny)

    def _first_look(self, rows: Ints) -> float:
        """Compare points with the first centres; the largest squared length of them."""
        block = self._shifted(rows, self._room())
        self._compare(rows, block, -np.inf)
        return float(_norms(block).max())

    def run(self, outer: int, inner: int) -> list[float]:
        """Choose until enough are chosen; the squared radius before each choice, and after the last."""
        radii: list[float] = []
        wide, narrow = outer, inner
        while True:
            before = len(radii)
            if self._choose_among(self._farthest(wide), narrow, radii):
                return radii
            # nothing stood out: too many points are equally far, so look at more of them together
            wide, narrow = (outer, inner) if len(radii) > before else (wide * 4, narrow * 4)

    def _farthest(self, size: int) -> Ints:
        """About `size` points of the largest bounds, compared with every centre; the others are below."""
        if size >= len(self.rows):
            self._renew(self.rows, -np.inf)
            return self.rows
        self._renew(self.sample, -np.inf)
        # where the largest bounds begin, as the sample has it
        at = len(self.sample) - 1 - size * len(self.sample) // len(self.rows)
        floor = float(np.partition(self.bound[self.sample], at)[at])
        self._renew(np.flatnonzero(self.bound >= floor), floor)
        return np.flatnonzero(self.bound >= floor)

    def _renew(self, rows: Ints, floor: float) -> None:
        """Compare points with the centres that they have not seen, or until they are below the floor."""
        rows = rows[self.seen[rows] < self.count]
        rows = rows[np.argsort(self.seen[rows], kind="stable")]

        def renew(some: Ints) -> None:
            self._compare(some, self._shifted(some, self._room()), floor)

        self.work(renew, [rows[part] for part in blocks(len(rows), ROWS)])

    def _compare(self, rows: Ints, block: Floats, floor: float) -> None:
        norms, bound = _norms(block), self.bound[rows]
        for first in range(int(self.seen[rows[0]]), self.count, COLUMNS):
            stop = min(first + COLUMNS, self.count)
            nearest = (self.centres[first:stop] @ block.T).min(axis=0) + norms
            bound = np.minimum(bound, np.maximum(nearest, 0))
            above = bound >= floor
            if stop < self.count and np.count_nonzero(above) < 0.7 * len(rows):
                gone = rows[~above]
                self.bound[gone], self.seen[gone] = bound[~above], stop
                rows, block, norms, bound = rows[above], block[above], norms[above], bound[above]
        self.bound[rows], self.seen[rows] = bound, self.count

    def _choose_among(self, active: Ints, inner: int, radii: list[float]) -> bool:
        """Choose from these points, all up to date, while the farthest of them is the farthest of all.
        Says whether enough are chosen."""
        inside = np.zeros(len(self.bound), bool)
        inside[active] = True
        outside = float(np.max(self.bound, where=~inside, initial=-np.inf)) + self.slack
        block = self._shifted(active)
        parts = list(blocks(len(active), ROWS))
        while True:
            if self.seen[active[0]] < self.count:
                self.work(lambda part: self._compare(active[part], block[part], -np.inf), parts)
            bounds = self.bound[active]
            top, beyond = _largest(bounds, inner)
            beyond = max(outside, beyond + self.slack)
            if bounds[top].max() + self.slack <= beyond:
                return False
            before = self.count
            near, nearby = active[top], block[top]
            self._measure(near, nearby)
            if self._choose_nearby(near, nearby, beyond, radii):
                return True
            if self.count == before:
                return False

    def _choose_nearby(self, rows: Ints, block: Floats, beyond: float, radii: list[float]) -> bool:
        """Choose from these measured points while the farthest of them is beyond the rest."""
        values, norms = self.value[rows], _norms(block)
        while (best := float(values.max())) > beyond:
            radii.append(best)
            if self.count == self.wanted or best == 0:
                return True
            self._choose(int(rows[values == best].min()))
            rough = block @ self.centres[self.count - 1] + norms
            close = np.flatnonzero(rough <= values + self.slack)
            exact = squared(self.vectors[rows[close]], self.vectors[self.chosen[self.count - 1]])
            values[close] = np.minimum(values[close], exact)
        self.value[rows], self.measured[rows] = values, self.count
        return False

    def _measure(self, rows: Ints, block: Floats) -> None:
        """Bring the float64 values of up-to-date points up to date."""
        late = np.flatnonzero(self.measured[rows] < self.count)
        late = late[np.argsort(self.measured[rows[late]], kind="stable")]
        for part in blocks(len(late), ROWS):
            some = late[part]
            at = rows[some]
            limit = self.bound[at] + 2 * self.slack - _norms(block[some])  # no centre beyond it can be the nearest
            for first in range(int(self.measured[at[0]]), self.count, COLUMNS):
                stop = min(first + COLUMNS, self.count)
                centre, point = np.nonzero(self.centres[first:stop] @ block[some].T <= limit)
                exact = squared(self.vectors[at[point]], self.vectors[self.chosen[first + centre]])
                np.minimum.at(self.value, at[point], exact)
        self.measured[rows] = self.count

    def _shifted(self, rows: Ints, block: Floats | None = None) -> Floats:
        """The points around the mean, with a last column of ones; in the given block if there is one."""
        if block is None:
            block = np.empty((len(rows), self.vectors.shape[1] + 1), np.float32)
        block = block[: len(rows)]
        for part in blocks(len(rows), ROWS):
            np.subtract(self.vectors[rows[part]], self.mean, out=block[part, :-1])
        block[:, -1] = 1
        return block

    def _room(self) -> Floats:
        """A block of this thread's own: memory that is new every time costs more than the sums done in it."""
        if not hasattr(self.scratch, "block"):
            self.scratch.block = np.empty((ROWS, self.vectors.shape[1] + 1), np.float32)
        block: Floats = self.scratch.block
        return block

    def _choose(self, row: int) -> None:
        point = self._shifted(np.array([row]))[0, :-1]
        self.centres[self.count, :-1] = -2 * point
        self.centres[self.count, -1] = np.square(point, dtype=np.float64).sum()
        self.chosen[self.count] = row
        self.count += 1


def _norms(block: Floats) -> Floats:
    points = block[:, :-1]
    norms: Floats = np.einsum("ij,ij->i", points, points)
    return norms


def _largest(bounds: Floats, size: int) -> tuple[Ints, float]:
    """The places of the `size` largest bounds, and the largest of the others."""
    if size >= len(bounds):
        return np.arange(len(bounds)), -np.inf
    order = np.argpartition(bounds, len(bounds) - size - 1)
    return order[len(bounds) - size :], float(bounds[order[len(bounds) - size - 1]])
