"""embed $name: a vector for every sample."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from siftune import Method, Samples, hookimpl


class $kind(Method):
    """How often each letter stands in the response."""

    letters: Annotated[str, "letters that are counted, one dimension each"] = "abcdefghijklmnopqrstuvwxyz"

    @hookimpl
    def embed(self, samples: Samples) -> npt.NDArray[np.float32]:
        texts = [sample.response.lower() for sample in samples]
        return np.array([[text.count(letter) for letter in self.letters] for text in texts], np.float32)
