"""What the quickstart says of its student: the change of a loss, each response beside itself."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from siftune import Evaluation
from siftune.quickstart import lowered


def measured(bits: Any, size: int = 100) -> Any:
    """A run that has found so many bits per byte for responses of `size` bytes each."""
    items = [
        {"id": str(at), "loss": one * size * math.log(2), "bits_per_byte": one} for at, one in enumerate(bits)
    ] + [{"id": "choice", "loss": 3.0, "bits_per_byte": None}]
    return SimpleNamespace(state=SimpleNamespace(done=[SimpleNamespace(evaluation=Evaluation({}, items))]))


def test_a_change_is_measured_within_each_response() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(0.5, 3.0, 200)
    # half a hundredth less in each, where responses differ by hundreds of times that
    value, low, high = lowered(measured(before - 0.005 + rng.normal(0, 0.002, 200)), measured(before))
    assert value == pytest.approx(-0.005, abs=0.001) and low < value < high < -0.004
    value, low, high = lowered(measured(before + rng.normal(0, 0.01, 200)), measured(before))
    assert low < 0 < high
    assert lowered(measured(before), measured(before)) == (0.0, 0.0, 0.0)
