"""select coreset: k-center greedy over the vectors, from wherever the user starts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from siftune import Budget, Context, Method, Pool, Samples, Selection, UserError, hookimpl

from . import vectors
from .coverage import beside
from .draw import shuffled
from .kcenter import Picked, k_center, medoid
from .neighbours import exact, several
from .shares import Share, due, members, merged
from .vectors import Floats, Ints
from .worth import needed, worth

Init = Literal["medoid", "random", "first"]
NEIGHBOURS = 10  # whose mean distance says how far out a row lies


class Coreset(Method):
    """The rows that leave no other row far from a kept one: exact k-center greedy, in order."""

    uses: ClassVar[Sequence[str]] = ("formats", "shapes")

    scope_: Annotated[Literal["global", "cluster"], "one search in all rows, or one in each cluster"] = "global"
    share: Annotated[Share, "of a cluster: by its size, the same for all, or by the root of it"] = "proportional"
    init: Annotated[Init, "first pick: the most central row, one at random, or the lowest id"] = "medoid"
    metric: Annotated[Literal["euclidean", "cosine"], "between the vectors, or between directions"] = "euclidean"
    already: Annotated[Path | None, "file of rows of this input that are chosen already and not chosen again"] = None
    quality: Annotated[str | None, "column that says how good a row is"] = None
    keep_above: Annotated[str | None, "drop rows of a quality below 3.5, or the worst 20%"] = None
    outliers: Annotated[str | None, "drop the share of rows that lie farthest out, such as 1%"] = None
    embedding: Annotated[str, "column of vectors"] = "embedding"
    clusters: Annotated[str, "column of clusters"] = "cluster"
    seed: Annotated[int | None, "of a random first pick"] = None

    def __post_init__(self) -> None:
        if (self.quality is None) != (self.keep_above is None):
            raise ValueError("--quality COLUMN and --keep-above VALUE go together")
        if self.keep_above is not None:
            _number(self.keep_above, "--keep-above")
        if self.outliers is not None and not _number(self.outliers, "--outliers").share:
            raise ValueError("--outliers is a share, such as 1%")

    def needs(self) -> list[str]:
        by_cluster = [self.clusters] if self.scope_ == "cluster" else [f"{self.clusters}?"]
        return [self.embedding, *by_cluster, *([] if self.quality is None else needed(self.quality))]

    @hookimpl
    def select(self, samples: Samples, budget: Budget, run: Context) -> Selection:
        points, present = vectors.read(samples, self.embedding)
        ids = [samples[int(position)].id for position in present]
        field = _Field(points, present, np.ones(len(points), bool), {}, _absent(len(samples), present), ids)
        if self.metric == "cosine":
            field.points = vectors.unit(points, ids, self.embedding)
        if self.quality is not None:
            self._drop_worst(samples, field)
        self._fold(field)
        labels = samples.column(self.clusters)[present] if self.clusters in samples.columns else None
        if labels is not None and self.scope_ == "cluster":
            field.drop(np.isnan(labels), f"no {self.clusters}")
        start = self._already(field, run)
        if self.outliers is not None:
            self._drop_outliers(field, labels, run)
        rows = np.flatnonzero(field.open)
        if not len(rows):
            raise UserError(f"select coreset: no row is left to choose from; {field.why()}")
        if self.scope_ == "cluster" and labels is not None:
            picked = self._by_cluster(field, rows, labels, start, budget.rows)
        else:
            picked = self._search(field.points, rows, start, budget.rows, field.ids)
        np.save(run.folder / "radii.npy", picked.radii)
        run.note(distinct=len(rows))
        if self.scope_ == "global":
            run.note(radius_after=_some(picked.radii))
        if budget.unit != "tokens" and budget.per is None:  # else the engine cuts further
            if len(rows) < budget.rows:
                run.warn(f"all {len(rows)} rows that can be chosen are, though {budget.rows} were asked for")
            run.note(**beside(self._spaces(samples, field), picked.order, self.seed or 0))
        chosen = present[picked.order]
        left_out = {int(present[at]): reason for at, reason in field.left_out.items()} | field.absent
        return Selection(chosen, reasons=_reasons(picked, self.scope_, bool(len(start))), left_out=left_out)

    def _drop_worst(self, samples: Samples, field: _Field) -> None:
        assert self.quality is not None and self.keep_above is not None
        judged = worth(samples, self.quality)
        place = {int(position): at for at, position in enumerate(field.present)}
        for position, reason in judged.left_out.items():
            if position in place:
                field.drop_one(place[position], reason)
        limit = _number(self.keep_above, "--keep-above")
        values = judged.values[field.present]
        if limit.share:
            least = float(np.quantile(values[field.open], limit.value)) if field.open.any() else 0.0
            field.drop(values < least, f"among the worst {self.keep_above} by {self.quality}")
        else:
            # worth() turns a column round where lower is better; the value is meant as the column shows it
            lower = samples.about(self.quality).better == "lower"
            word = "above" if lower else "below"
            least = -limit.value if lower else limit.value
            field.drop(values < least, f"{self.quality} {word} {limit.value:g}")

    def _fold(self, field: _Field) -> None:
        """Of rows with exactly the same vector only the lowest stays."""
        open_rows = np.flatnonzero(field.open)
        points = field.points if len(open_rows) == len(field.points) else field.points[open_rows]
        first = vectors.firsts(points)
        for at in np.flatnonzero(first != np.arange(len(first))).tolist():
            twin = field.ids[int(open_rows[first[at]])]
            field.drop_one(int(open_rows[at]), f"the same vector as sample {twin}")

    def _already(self, field: _Field, run: Context) -> Ints:
        """Rows that are chosen already; they count as centres and are not chosen again."""
        if self.already is None:
            return np.empty(0, np.int64)
        wanted = {sample.id for sample in Pool.read(self.already).samples}
        start = np.flatnonzero([one in wanted for one in field.ids])
        if not len(start):
            raise UserError(
                f"select coreset: no row of {self.already} is in play, nothing to start from; "
                "rows that are chosen already have to be in the input too, with vectors like the others"
            )
        absent = len(wanted) - len({field.ids[at] for at in start})
        if absent:
            run.warn(f"{absent} of {len(wanted)} samples of {self.already} are not in play")
        # a twin of a chosen row may be the one that stands for both
        mask = np.zeros(len(field.points), bool)
        mask[start] = True
        field.drop(mask, f"already chosen in {self.already.name}")
        return start

    def _drop_outliers(self, field: _Field, labels: npt.NDArray[np.float64] | None, run: Context) -> None:
        assert self.outliers is not None
        share = _number(self.outliers, "--outliers").value
        rows = np.flatnonzero(field.open)
        if len(rows) <= NEIGHBOURS:
            run.warn(f"{len(rows)} rows are too few to say which lie far out")
            return
        _, distances = several(field.points[rows], NEIGHBOURS)
        out = np.where(np.isfinite(distances), distances, np.nan)
        mean = np.nanmean(out, axis=1)
        limit = float(np.quantile(mean, 1 - share))
        far = np.flatnonzero(mean > limit)
        for at in far.tolist():
            reason = f"outlier: {mean[at]:.4g} from its {NEIGHBOURS} neighbours on average, above {limit:.4g}"
            field.drop_one(int(rows[at]), reason)
        note: dict[str, object] = {"removed": len(far), "limit": limit, "exact": exact(len(rows), len(rows))}
        if labels is not None:
            names, counts = np.unique(labels[rows[far]], return_counts=True)
            note["by_cluster"] = {f"{name:g}": int(count) for name, count in zip(names, counts, strict=True)}
        run.note(outliers=note)

    def _start(self, points: Floats, rows: Ints, ids: Sequence[str]) -> int:
        if self.init == "medoid":
            return medoid(points, rows)
        if self.init == "random":
            return int(rows[shuffled((ids[row] for row in rows), self.seed or 0)[0]])
        return int(rows[0])

    def _search(self, points: Floats, rows: Ints, start: Ints, k: int, ids: Sequence[str]) -> Picked:
        return k_center(points, k, start if len(start) else self._start(points, rows, ids), rows)

    def _by_cluster(self, field: _Field, rows: Ints, labels: npt.NDArray[np.float64], start: Ints, k: int) -> Picked:
        """A search in every cluster, and one order out of all."""
        places, _ = members(labels[rows])
        groups = [rows[place] for place in places]
        sizes = np.array([len(group) for group in groups], np.int64)
        turns, _ = due(sizes, self.share)
        quotas = np.bincount(turns[:k], minlength=len(groups))
        orders, radii = [], []
        for group, quota in zip(groups, quotas, strict=True):
            inside = start[labels[start] == labels[group[0]]]
            union = np.concatenate([inside, group])
            own = field.points[union]  # a search goes over all it is given
            fixed, free = np.arange(len(inside)), np.arange(len(inside), len(union))
            picked = self._search(own, free, fixed, int(quota), [field.ids[row] for row in union])
            orders.append(union[picked.order])
            radii.append(picked.radii)
        order = merged(orders, self.share, sizes)[:k]
        radius = np.full(len(field.points), np.nan)
        for rows_of, values in zip(orders, radii, strict=True):
            radius[rows_of] = values
        return Picked(order, radius[order])

    def _spaces(self, samples: Samples, field: _Field) -> dict[str, Floats]:
        """Every column of vectors that the rows have: how it looks in others is only told, never used."""
        spaces = {self.embedding: field.points}
        for name, held in samples.pool.columns.items():
            if name != self.embedding and held.index is not None:
                other = held.at(samples.rows[field.present], len(samples.pool)).astype(np.float32)
                if np.isfinite(other).all():
                    spaces[name] = other
        return spaces


def _some(radii: npt.NDArray[np.float64]) -> dict[str, float]:
    """The radius after 1, 2, 5, 10, ... picks, and after the last."""
    steps = [digit * 10**power for power in range(8) for digit in (1, 2, 5)]
    told = [k for k in steps if k < len(radii)] + [len(radii)]
    return {str(k): float(radii[k - 1]) for k in told if k}


@dataclass
class _Field:
    """The rows that have a vector: which may still be chosen, and why the others may not."""

    points: Floats
    present: Ints
    open: npt.NDArray[np.bool_]
    left_out: dict[int, str]
    absent: dict[int, str]
    ids: Sequence[str]

    def drop(self, which: npt.NDArray[np.bool_], reason: str) -> None:
        for at in np.flatnonzero(which & self.open).tolist():
            self.drop_one(at, reason)

    def drop_one(self, at: int, reason: str) -> None:
        self.open[at] = False
        self.left_out[at] = reason

    def why(self) -> str:
        reasons = list(self.left_out.values())
        return f"for instance: {reasons[0]}" if reasons else "none has a vector"


def _absent(total: int, present: Ints) -> dict[int, str]:
    return {int(at): "no vector" for at in np.setdiff1d(np.arange(total), present)}


@dataclass(frozen=True)
class _Number:
    value: float
    share: bool


def _number(text: str, option: str) -> _Number:
    """A value, or a share between 0% and 100%. Raises ValueError."""
    share = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(f"{option}: {text!r} is neither a number nor a share such as 1%") from None
    if not np.isfinite(value) or (share and not 0 <= value < 100):
        raise ValueError(f"{option}: {text!r} is not a share of at least 0% and below 100%")
    return _Number(value / 100 if share else value, share)


def _reasons(picked: Picked, scope: str, going_on: bool) -> list[str]:
    """Why each row was picked, for whoever asks later."""
    if scope == "cluster":
        return [f"leaves its cluster within {radius:.4g} of those picked" for radius in picked.radii]
    before = [None, *picked.radii[:-1]]
    first = "the farthest from those chosen already" if going_on else "the first pick"
    return [first if far is None else f"{far:.4g} from the picks before it, the farthest" for far in before]
