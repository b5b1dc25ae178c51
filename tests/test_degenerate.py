"""Distributions that say nothing are noticed, with the likely cause; ordinary ones are left in peace."""

from __future__ import annotations

import numpy as np
import pytest
from siftune.degenerate import warnings
from siftune.samples import Column

IFD = Column("ifd", "ratio", "higher", below=1.0)
SPREAD = np.random.default_rng(0).uniform(0.5, 1.1, 200)
LENGTHS = np.random.default_rng(1).integers(5, 500, 200).astype(float)


def test_an_ordinary_distribution_draws_none() -> None:
    assert warnings(IFD, SPREAD, LENGTHS) == []


@pytest.mark.parametrize(
    ("values", "lengths", "said"),
    [
        (SPREAD + 1, LENGTHS, "template"),
        (np.full(200, 0.9), LENGTHS, "same for all"),
        (np.where(np.arange(200) % 3 == 0, np.nan, SPREAD), LENGTHS, "missing for 34%"),
        (np.log(LENGTHS) / 10, LENGTHS, "follows the length"),
        (-np.log(LENGTHS) / 10, LENGTHS, "-1.00"),
    ],
)
def test_each_degenerate_one_is_named_with_its_cause(values: np.ndarray, lengths: np.ndarray, said: str) -> None:
    (told,) = warnings(IFD, values, lengths)
    assert said in told and "ifd" in told


def test_a_column_without_a_range_is_not_outside_of_it() -> None:
    assert warnings(Column("perplexity"), SPREAD + 1, LENGTHS) == []


def test_few_values_and_none_at_all() -> None:
    assert warnings(IFD, [], []) == []
    assert warnings(IFD, [1.5, 1.5, 1.5], [3, 3, 3]) == []
    (told,) = warnings(IFD, [np.nan] * 5, [1.0] * 5)
    assert "missing for 100%" in told


def test_lengths_that_are_not_known_and_ties() -> None:
    assert warnings(IFD, SPREAD, np.full(200, np.nan)) == []
    assert warnings(IFD, SPREAD, np.full(200, 7.0)) == []
