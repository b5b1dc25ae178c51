"""What a ranker learns by: a margin between better and worse answers, and two triplets that part its halves.

For each of the three ordered pairs a > b (SCAR, 2406.10882), over the rows in which it is allowed:

    L_r  = sum over pairs of mean max(0, 0.5 - (s_a - s_b))

and over the rows in which all three are, with d(a, p, n) = mean max(0, 1 + |a - p| - |a - n|):

    L_rl = (d(v_c: referenced, human, direct) + d(v_p: direct, referenced, human)) / 2
    L    = L_r + weight * L_rl

A rewrite says what the human said (surprise) in the words of an LLM (form): that is what the triplets hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .quadruples import PAIRS

MARGIN = 0.5
APART = 1.0
DIRECT, REFERENCED, HUMAN = range(3)


@dataclass
class Loss:
    """Every part as a tensor, None for one that no row of the batch has; `total` is None if none has any."""

    ranks: list[Any]
    surprise: Any = None
    form: Any = None
    total: Any = None


def loss(scores: Any, surprise: Any, form: Any, allowed: Any, weight: float) -> Loss:
    """The loss of a batch: scores `(3, n)`, v_c and v_p `(3, n, width)` by kind of answer, allowed `(n, 3)`."""
    import torch
    from torch.nn.functional import relu, triplet_margin_loss

    made = Loss([None] * len(PAIRS))
    for at, (a, b) in enumerate(PAIRS):
        rows = allowed[:, at]
        if rows.any():
            made.ranks[at] = relu(MARGIN - (scores[a] - scores[b])[rows]).mean()
    parts = [one for one in made.ranks if one is not None]
    if parts:
        made.total = torch.stack(parts).sum()
    every = allowed.all(1)
    if weight and every.any():
        v_c, v_p = surprise[:, every], form[:, every]
        made.surprise = triplet_margin_loss(v_c[REFERENCED], v_c[HUMAN], v_c[DIRECT], margin=APART)
        made.form = triplet_margin_loss(v_p[DIRECT], v_p[REFERENCED], v_p[HUMAN], margin=APART)
        made.total = made.total + weight * (made.surprise + made.form) / 2
    return made
