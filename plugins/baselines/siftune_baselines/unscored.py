"""`select random`, `longest` and `all`: they read no score, and a score has to beat them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated

import numpy as np
from siftune import Method, Samples, hookimpl
from siftune.samples import Array


class Random(Method):
    """A random choice that hangs on the seed and the samples' own content: rows that are added, moved or
    computed elsewhere leave the order of the others as it was."""

    seed: Annotated[int | None, "another seed, another choice"] = None

    @hookimpl
    def select(self, samples: Samples) -> Array:
        # a keyed hash of the id is a random number that belongs to the sample, not to its place
        key = str(self.seed or 0).encode()
        drawn = (int.from_bytes(blake2b(id.encode(), digest_size=8, key=key).digest()) for id in samples.ids)
        return np.argsort(np.fromiter(drawn, np.uint64, len(samples)), kind="stable")


class Longest(Method):
    """The longest responses first, in characters."""

    @hookimpl
    def select(self, samples: Samples) -> Array:
        lengths = np.fromiter((len(sample.response) for sample in samples), np.int64, len(samples))
        return np.argsort(-lengths, kind="stable")


class All(Method):
    """Everything that is handed over, in the order of the ids."""

    @hookimpl
    def select(self, samples: Samples) -> Array:
        return np.arange(len(samples))
