"""What a ranker is trained on: an instruction with the answers of a human, of an LLM that rewrote the human's,
and of an LLM by itself, and which of two of them may be said to be better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

KINDS = ("direct", "referenced", "human")
# better, worse: places in KINDS
PAIRS = ((0, 1), (1, 2), (0, 2))
NAMES = tuple(f"{KINDS[a]} > {KINDS[b]}" for a, b in PAIRS)

Gate = Literal["abs", "abs_pos", "diff", "abs_diff", "none"]


@dataclass(frozen=True)
class Quadruple:
    """Answers in the order of KINDS, None for one that there is not, and what each is worth, NaN for unknown."""

    instruction: str
    answers: tuple[str | None, str | None, str | None]
    quality: tuple[float, float, float] = field(default=(np.nan, np.nan, np.nan))


def allowed(rows: Sequence[Quadruple], gate: Gate, low: float, high: float) -> npt.NDArray[np.bool_]:
    """For every row and each of PAIRS, whether it is learned from: `bool (n, 3)`.

    Both answers are there, they differ, and their quality passes the gate: "abs" wants both between the
    bounds, "abs_pos" the better one, "diff" wants them less than `high` apart, "abs_diff" that and both above
    `low`. Bounds are exclusive; an unknown quality passes no gate but "none".
    """
    answers = np.array([row.answers for row in rows], object).reshape(-1, 3)
    quality = np.array([row.quality for row in rows], np.float64).reshape(-1, 3)
    found = np.zeros((len(rows), 3), bool)
    for at, (a, b) in enumerate(PAIRS):
        there = np.array([x is not None and y is not None and x != y for x, y in answers[:, (a, b)]], bool)
        found[:, at] = there & _passes(gate, low, high, quality[:, a], quality[:, b])
    return found


def _passes(gate: Gate, low: float, high: float, better: Any, worse: Any) -> Any:
    if gate == "none":
        return np.ones(len(better), bool)
    lesser, greater, apart = np.minimum(better, worse), np.maximum(better, worse), np.abs(better - worse)
    rules = {
        "abs": (lesser > low) & (greater < high),
        "abs_pos": (better > low) & (better < high),
        "diff": apart < high,
        "abs_diff": (apart < high) & (lesser > low),
    }
    return rules[gate]
