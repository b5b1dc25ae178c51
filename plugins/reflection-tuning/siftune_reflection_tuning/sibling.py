"""`select sibling`: of each sample and its rewrites the best by a column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from siftune import Column, Method, Sample, Samples, Selection, UserError, hookimpl
from siftune.samples import Array


class Sibling(Method):
    """Of each family, a sample and all that was rewritten from it, the best by a column. Which way is better
    and in which range the column may choose is what its scorer says. A rewrite has to be better than what it
    was made from: ties go to the original, and a missing value never wins.

    The student's choice in https://arxiv.org/abs/2402.10110: `--by ifd` after reflect instruction, and
    `--by r-ifd` after reflect response.
    """

    numeric: ClassVar[tuple[str, ...]] = ("by",)

    by: Annotated[str, "column to choose by, such as ifd, or input.NAME for one that the rows came with"]
    lowest: Annotated[bool, "the lowest value, whatever the scorer says is better"] = False
    any: Annotated[bool, "drop the scorer's own bounds"] = False

    def needs(self) -> list[str]:
        tokens = self.by.partition(".")[0] + ".tokens"
        return [self.by] if self.by.startswith("input.") or self.by == tokens else [self.by, tokens + "?"]

    @hookimpl
    def select(self, samples: Samples) -> Selection:
        values, about = _numbers(samples, self.by), samples.about(self.by)
        goodness = -values if self.lowest or about.better == "lower" else values
        barred = dict(_barred(samples, about, values, bounded=not self.any))
        generations = _generations(samples)
        winners: list[int] = []
        reasons: list[str] = []
        left_out: dict[int, str] = {}
        for family in _families(samples):
            able = [at for at in family if at not in barred]
            left_out |= {at: barred[at] for at in family if at in barred}
            if not able:
                continue
            best = min(able, key=lambda at: (-goodness[at], generations[at]))
            winners.append(best)
            reasons.append(_why(family, best, values, self.by))
            said = f"{samples[best].id} of its family has {self.by} {values[best]:.6g}"
            left_out |= {at: f"{self.by} {values[at]:.6g}: {said}" for at in able if at != best}
        # the best first, for a budget to cut; equal values stay in id order
        order = sorted(range(len(winners)), key=lambda place: (-goodness[winners[place]], winners[place]))
        chosen = np.array([winners[place] for place in order], np.int64)
        return Selection(chosen, reasons=[reasons[place] for place in order], left_out=left_out)


def _numbers(samples: Samples, name: str) -> Array:
    values = samples.column(name)
    if values.ndim != 1 or values.dtype.kind != "f":
        raise UserError(f"select sibling: {name} holds no numbers, and only numbers have an order")
    return values


def _barred(samples: Samples, about: Column, values: Array, bounded: bool) -> Iterator[tuple[int, str]]:
    """Positions that cannot win, and why; the reason that comes last counts."""
    if bounded:
        for column, least in about.at_least.items():
            counted = _numbers(samples, column)
            for at in np.flatnonzero(~(counted >= least)).tolist():
                yield at, f"{column} {counted[at]:.6g} is not at least {least:g}"
        if about.below is not None:
            for at in np.flatnonzero(values >= about.below).tolist():
                yield at, f"{about.name} {values[at]:.6g} is not below {about.below:g}"
        if about.above is not None:
            for at in np.flatnonzero(values <= about.above).tolist():
                yield at, f"{about.name} {values[at]:.6g} is not above {about.above:g}"
    for at in np.flatnonzero(np.isnan(values)).tolist():
        yield at, f"no {about.name}"


def _families(samples: Samples) -> Iterator[list[int]]:
    """Positions by family, each in id order."""
    numbers = samples.column("family")
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return (one.tolist() for one in np.split(order, starts) if len(one))


def _generations(samples: Samples) -> list[int]:
    """How many rewrites lie between each sample and the eldest of its family in the view."""
    here = {sample.id: sample for sample in samples}

    def age(sample: Sample) -> int:
        seen = {sample.id}
        while (parent := here.get(sample.parent or "")) is not None and parent.id not in seen:
            sample = parent
            seen.add(sample.id)
        # what was made from a sample that is not in play is no original either
        return len(seen) - 1 + (sample.parent is not None)

    return [age(sample) for sample in samples]


def _why(family: list[int], best: int, values: Array, by: str) -> str:
    others = [f"{values[at]:.6g}" if np.isfinite(values[at]) else "none" for at in family if at != best]
    return (
        f"{by} {values[best]:.6g}, in its family also {', '.join(others)}"
        if others
        else "alone in its family"
    )
