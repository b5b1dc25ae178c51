"""cluster $name: a cluster for every sample that has a vector."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from siftune import Method, Outcome, Samples, hookimpl


class $kind(Method):
    """Each sample goes to the nearest of a few that were drawn."""

    k: Annotated[int, "clusters"] = 10
    seed: Annotated[int | None, "of the draw"] = None

    def needs(self) -> list[str]:
        return ["embedding"]

    @hookimpl
    def cluster(self, samples: Samples) -> Outcome:
        vectors = samples.column("embedding")
        absent = np.isnan(vectors).any(axis=1)
        drawn = np.random.default_rng(self.seed).permutation(np.flatnonzero(~absent))[: self.k]
        distances = np.linalg.norm(np.nan_to_num(vectors)[:, None] - vectors[None, drawn], axis=2)
        values = distances.argmin(axis=1), vectors[drawn], distances.min(axis=1)
        return Outcome(values, left_out={int(at): "no vector" for at in np.flatnonzero(absent)})
