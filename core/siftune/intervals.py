"""95% intervals of figures, where more than one kind of step has need of them."""

from __future__ import annotations

import math

NORMAL = 1.959964  # 95% of a normal distribution lie within so many standard errors


def wilson(share: float, count: int) -> dict[str, float]:
    """A share of `count` with Wilson's interval, which stays inside 0 and 1 and does not vanish at them."""
    squared = NORMAL**2
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    half = NORMAL * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": count}
