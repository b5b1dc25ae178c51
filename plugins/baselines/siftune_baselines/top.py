"""`select top`: the best rows by a column, inside the range in which that column may choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from siftune import Column, Method, Samples, Selection, UserError, hookimpl
from siftune.samples import Array

Rule = tuple[str, Array, str]  # column, which rows break the rule, what is said of such a value


class Top(Method):
    """The best rows by a column. Which way is better and in which range the column may choose is what its
    scorer says; rows without a value, or outside the range, are left out with the reason."""

    numeric: ClassVar[tuple[str, ...]] = ("by",)

    by: Annotated[str, "column to choose by, such as ifd, or input.NAME for one that the rows came with"]
    lowest: Annotated[bool, "the lowest values, whatever the scorer says is better"] = False
    highest: Annotated[bool, "the highest values, whatever the scorer says is better"] = False
    below: Annotated[float | None, "only values below this, instead of the scorer's own bound"] = None
    above: Annotated[float | None, "only values above this, instead of the scorer's own bound"] = None
    min_tokens: Annotated[int | None, "only responses of so many tokens, instead of the scorer's"] = None
    any: Annotated[bool, "drop the scorer's own bounds"] = False

    def __post_init__(self) -> None:
        if self.lowest and self.highest:
            raise ValueError("--lowest and --highest exclude each other")

    @property
    def tokens(self) -> str:
        """Where the scorer that made the column counts its tokens."""
        return self.by.partition(".")[0] + ".tokens"

    def needs(self) -> list[str]:
        if self.by.startswith("input.") or self.by == self.tokens:
            return [self.by]
        # a column has token counts or has not; asked for by name, they have to be there
        return [self.by, self.tokens if self.min_tokens else self.tokens + "?"]

    @hookimpl
    def select(self, samples: Samples) -> Selection:
        values = _numbers(samples, self.by)
        about = self._range(samples)
        left_out = {int(at): f"no {self.by}" for at in np.flatnonzero(np.isnan(values))}
        for column, broken, reason in _rules(samples, about, values):
            measured = samples.column(column)
            for at in np.flatnonzero(broken).tolist():
                left_out.setdefault(at, f"{column} {measured[at]:.6g} {reason}")
        allowed = np.setdiff1d(np.arange(len(samples)), np.fromiter(left_out, np.int64, len(left_out)))
        ranked = values[allowed] if self._low_first(about) else -values[allowed]
        # stable: equal values stay in id order
        return Selection(allowed[np.argsort(ranked, kind="stable")], left_out=left_out)

    def _low_first(self, about: Column) -> bool:
        return self.lowest or (about.better == "lower" and not self.highest)

    def _range(self, samples: Samples) -> Column:
        """The scorer's promise, with what the options put in its place."""
        about = samples.about(self.by)
        if self.any:
            about = Column(about.name, about.unit, about.better)
        least: Mapping[str, float] = about.at_least
        if self.min_tokens is not None:
            if self.tokens not in samples.columns:
                raise UserError(f"select top: {self.by} has no token counts: drop --min-tokens")
            least = {**least, self.tokens: self.min_tokens}
        below = about.below if self.below is None else self.below
        above = about.above if self.above is None else self.above
        return replace(about, below=below, above=above, at_least=least)


def _numbers(samples: Samples, name: str) -> Array:
    values = samples.column(name)
    if values.ndim != 1 or values.dtype.kind != "f":
        kind = "vectors" if values.ndim > 1 else "text or lists"
        raise UserError(f"select top: {name} holds {kind}, and only numbers have an order")
    return values


def _rules(samples: Samples, about: Column, values: Array) -> Iterator[Rule]:
    """Every bound of the range, with the rows that break it. Nulls break none: they are out already."""
    for column, least in about.at_least.items():
        counted = _numbers(samples, column)
        yield column, ~(counted >= least) & ~np.isnan(values), f"is not at least {least:g}"
    if about.below is not None:
        yield about.name, values >= about.below, f"is not below {about.below:g}"
    if about.above is not None:
        yield about.name, values <= about.above, f"is not above {about.above:g}"
