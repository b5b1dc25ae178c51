"""Budgets: what they say, and the longest prefix that fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from siftune import Budget, Samples, UserError

from .conftest import row


@pytest.mark.parametrize(
    ("text", "total", "rows"),
    [
        ("1000", 5000, 1000),
        (1000, 5000, 1000),
        ("5%", 999, 49),
        ("0.5%", 100, 1),
        ("100%", 7, 7),
        ("2k", 5000, 2000),
        ("12.5%", 80, 10),
        ("0.7%", 1000, 7),
        ("29%", 100, 29),
    ],
)
def test_rows_and_shares(text: str | int, total: int, rows: int) -> None:
    assert Budget.parse(text).of(total) == rows


@pytest.mark.parametrize(
    "text", ["", "many", "0", "0%", "101%", "-5", "5 %%", "1.5", "5k%", "ten tokens", "5% per", "1e3"]
)
def test_what_is_no_budget_says_what_is(text: str) -> None:
    with pytest.raises(UserError, match="budget"):
        Budget.parse(text)


def test_it_is_said_as_it_was_written() -> None:
    assert [str(Budget.parse(t)) for t in ("5%", "200k tokens per input.source", "30")] == [
        "5%",
        "200000 tokens per input.source",
        "30",
    ]


def no_tokens() -> np.ndarray:
    raise AssertionError("rows need no tokens")


def test_tokens_take_the_longest_prefix_that_fits() -> None:
    samples = Samples.of([row(n) for n in range(5)])
    lengths = np.array([10, 20, 30, 40, 50])
    order = np.array([4, 0, 1, 2, 3])
    assert Budget.parse("80 tokens").cut(order, samples, lambda: lengths)[0].tolist() == [4, 0, 1]
    assert Budget.parse("49 tokens").cut(order, samples, lambda: lengths)[0].tolist() == []
    assert Budget.parse("150 tokens").cut(order, samples, lambda: lengths) == (pytest.approx(order), True)


def test_per_column_takes_a_prefix_of_each_group() -> None:
    samples = Samples.of([row(n) for n in range(10)], group=["a"] * 6 + ["b"] * 4)
    order = np.arange(10)[::-1]
    assert Budget.parse("2 per group").cut(order, samples, no_tokens)[0].tolist() == [9, 8, 5, 4]
    assert Budget.parse("50% per group").cut(order, samples, no_tokens)[0].tolist() == [9, 8, 5, 4, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 500))
def test_a_budget_over_the_view_keeps_everything_and_says_so(total: int, wanted: int) -> None:
    samples = Samples.of([row(n) for n in range(3)])
    samples.rows = np.zeros(total, int)
    kept, over = Budget.parse(wanted).cut(np.arange(total), samples, no_tokens)
    assert len(kept) == min(total, wanted) and over == (wanted > total)
