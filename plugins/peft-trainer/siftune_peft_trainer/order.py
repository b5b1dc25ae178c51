"""Which rows each step sees: a function of the seed alone, so that a resumed training sees the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

GROUPED = 50  # batches that are sorted by length together: less padding, and still mixed


def order(
    lengths: Sequence[int], batch_size: int, epochs: float, steps: int | None, seed: int
) -> npt.NDArray[np.int64]:
    """Row numbers one after the other; every `batch_size` of them are a step, of rows of similar length.

    Each row comes once before any comes again. `steps` goes before `epochs`.
    """
    drawing = np.random.default_rng(seed)
    total = steps * batch_size if steps is not None else max(1, round(epochs * len(lengths)))
    passes = [drawing.permutation(len(lengths)) for _ in range(math.ceil(total / len(lengths)))]
    rows = np.concatenate(passes)[:total]
    for start in range(0, total, GROUPED * batch_size):
        block = rows[start : start + GROUPED * batch_size]
        block = block[np.argsort([-lengths[row] for row in block], kind="stable")]
        batches = [block[i : i + batch_size] for i in range(0, len(block), batch_size)]
        # an unfilled batch can only be the last of all
        full = batches[:-1] if len(batches[-1]) < batch_size else batches
        drawing.shuffle(shuffled := list(range(len(full))))
        mixed = [batches[i] for i in [*shuffled, *range(len(full), len(batches))]]
        rows[start : start + len(block)] = np.concatenate(mixed)
    return rows
