"""A draw that hangs on the seed and what the rows say: not on their order, nor on which others there are."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from .vectors import Ints


def shuffled(ids: Iterable[str], seed: int) -> Ints:
    """Positions of the rows with these ids in a random order."""
    key = seed.to_bytes(8, "big", signed=True)
    drawn = [blake2b(one.encode(), digest_size=8, key=key).digest() for one in ids]
    return np.array(sorted(range(len(drawn)), key=drawn.__getitem__), np.int64)
