"""`score length`: the smallest scorer there is, and a useful one."""

from __future__ import annotations

import numpy as np
from siftune import Column, Method, Samples, hookimpl
from siftune.samples import Array


class Length(Method):
    """How many characters the response has (of a conversation: what the assistant says last)."""

    shard = 65_536  # a row costs less than a microsecond, so a killed run loses little

    def gives(self) -> list[Column]:
        return [Column("length", unit="characters", better="higher")]

    @hookimpl
    def score(self, samples: Samples) -> Array:
        return np.fromiter((len(sample.response) for sample in samples), np.float64, len(samples))
