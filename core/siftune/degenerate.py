"""Scores that say nothing, noticed before anybody chooses by them, with what most often makes them so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .samples import Array, Column

COUNTS = ("characters", "words", "tokens")  # such a column is a length, and not suspected of following it
FEW = 20  # below this many values, only how many are missing is said
MISSING = 0.2
OUTSIDE = 0.95
CORRELATED = 0.8


def warnings(
    column: Column | str, values: Array | Sequence[float], lengths: Array | Sequence[float]
) -> list[str]:
    """What is wrong with the distribution of a column of numbers, each with the likely cause; mostly nothing.

    `values` float `(n,)` with NaN where a row has none, `lengths` of the responses `(n,)` in any unit, for the
    rows that the step was given.
    """
    column = Column(column) if isinstance(column, str) else column
    numbers = np.asarray(values, np.float64)
    known = np.isfinite(numbers)
    if not len(numbers) or column.unit in COUNTS:
        return []
    told = []
    missing = 1 - known.mean()
    if missing > MISSING:
        told.append(
            f"{column.name} is missing for {missing:.0%} of the rows: the reasons are in the table; "
            "mostly a context too short for the prompts, or responses of a token or two"
        )
    found = numbers[known]
    if len(found) < FEW:
        return told
    low, high = np.quantile(found, [0.01, 0.99])
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        told.append(
            f"{column.name} is the same for all rows ({float(np.median(found)):.4g}): it tells nothing apart; "
            "mostly a model that was never trained, or a prompt that the context cuts off"
        )
        return told
    outside = np.zeros(len(found), bool)
    if column.below is not None:
        outside |= found >= column.below
    if column.above is not None:
        outside |= found <= column.above
    if outside.mean() >= OUTSIDE:
        told.append(
            f"{column.name} is outside of the range in which it may choose for {outside.mean():.0%} of the rows: "
            "mostly a prompt template that the model was not trained with; try --template plain"
        )
    both = known & np.isfinite(np.asarray(lengths, np.float64))
    rank = _spearman(numbers[both], np.asarray(lengths, np.float64)[both]) if both.sum() >= FEW else 0.0
    if abs(rank) > CORRELATED:
        told.append(
            f"{column.name} follows the length of the response (rank correlation {rank:+.2f}): choosing by it is "
            "choosing by length; compare with score length, or choose within lengths"
        )
    return told


def _spearman(a: Array, b: Array) -> float:
    """Rank correlation with ties at their mean rank; 0 where one of them is constant."""
    x, y = _ranks(a), _ranks(b)
    if not x.std() or not y.std():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Array) -> Array:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[group]
