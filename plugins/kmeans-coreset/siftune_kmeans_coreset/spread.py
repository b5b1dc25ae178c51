"""select spread: so many rows from every cluster."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from siftune import Method, Samples, Selection, hookimpl

from .draw import shuffled
from .shares import Share, members, merged
from .vectors import Ints
from .worth import needed, worth

Pick = Literal["random", "nearest", "farthest"]


class Spread(Method):
    """Rows from every cluster in turn: at random, by the distance to its centre, or the best by a column."""

    numeric: ClassVar[tuple[str, ...]] = ("by",)

    pick: Annotated[Pick, "inside a cluster: at random, or by the distance to its centre"] = "random"
    by: Annotated[str | None, "inside a cluster: the best by this column, instead of --pick"] = None
    per: Annotated[int | None, "rows from every cluster at most"] = None
    share: Annotated[Share, "of a cluster: by its size, the same for all, or by the root of it"] = "equal"
    clusters: Annotated[str, "column of clusters"] = "cluster"
    seed: Annotated[int | None, "of a random pick"] = None

    def __post_init__(self) -> None:
        if self.per is not None and self.per < 1:
            raise ValueError("--per is at least 1")
        if self.by is not None and self.pick != "random":
            raise ValueError("name either --pick or --by")

    def needs(self) -> list[str]:
        if self.by is not None:
            return [self.clusters, *needed(self.by)]
        return [self.clusters] if self.pick == "random" else [self.clusters, f"{self.clusters}_distance"]

    @hookimpl
    def select(self, samples: Samples) -> Selection:
        keys, left_out = self._keys(samples)
        labels = samples.column(self.clusters).copy()
        for at in np.flatnonzero(np.isnan(labels)).tolist():
            left_out.setdefault(at, f"no {self.clusters}")
        labels[list(left_out)] = np.nan
        groups, _ = members(labels)
        sizes = np.array([len(group) for group in groups], np.int64)
        # stable: equal keys stay in id order
        orders: list[Ints] = [group[np.argsort(keys[group], kind="stable")][: self.per] for group in groups]
        return Selection(merged(orders, self.share, sizes), left_out=left_out)

    def _keys(self, samples: Samples) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
        """What the rows of a cluster are sorted by, the least first."""
        if self.by is not None:
            judged = worth(samples, self.by)
            return -judged.values, dict(judged.left_out)
        if self.pick == "random":
            places = np.empty(len(samples))
            places[shuffled(samples.ids, self.seed or 0)] = np.arange(len(samples))
            return places, {}
        distances = samples.column(f"{self.clusters}_distance")
        return (distances if self.pick == "nearest" else -distances), {}
