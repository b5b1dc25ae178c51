"""A column that says how good a row is: its values, which end is better, and what may not be chosen by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from siftune import Samples, UserError


@dataclass
class Worth:
    """Values `(n,)` with the better end up (NaN for none), and why some rows may not be chosen."""

    values: npt.NDArray[np.float64]
    left_out: dict[int, str]


def needed(column: str) -> list[str]:
    """What has to be read to obey a column's range: its token counts, if it has any."""
    own = column.partition(".")[0]
    return [column] if column.startswith("input.") else [column, f"{own}.tokens?"]


def worth(samples: Samples, column: str) -> Worth:
    """A column in the sense and range that its scorer gives it. Raises UserError if it holds no numbers."""
    values = samples.column(column)
    if values.ndim != 1 or values.dtype.kind != "f":
        raise UserError(f"the column {column!r} holds no numbers, so it has no better end")
    about = samples.about(column)
    left_out = {int(at): f"no {column}" for at in np.flatnonzero(np.isnan(values))}

    def leave(broken: npt.NDArray[np.bool_], shown: npt.NDArray[np.float64], name: str, rule: str) -> None:
        for at in np.flatnonzero(broken).tolist():
            left_out.setdefault(at, f"{name} {shown[at]:.6g} {rule}")

    if about.below is not None:
        leave(values >= about.below, values, column, f"is not below {about.below:g}")
    if about.above is not None:
        leave(values <= about.above, values, column, f"is not above {about.above:g}")
    for other, least in about.at_least.items():
        if other in samples.columns:
            counted = samples.column(other)
            leave(counted < least, counted, other, f"is not at least {least:g}")
    return Worth(-values if about.better == "lower" else values, left_out)
