"""embed columns: what earlier steps measured, as vectors to cluster and select by."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from siftune import Context, Method, Outcome, Samples, UserError, hookimpl


class Columns(Method):
    """A vector per sample out of numeric columns, each measured from its median in robust deviations."""

    # the median is that of all rows, so they come in one piece and are kept as one
    scope: ClassVar[Literal["rows", "view"]] = "view"
    shard: ClassVar[int] = 1 << 40

    columns: Annotated[list[str], "columns, or patterns such as 'style*'"]
    limit: Annotated[float, "deviations beyond which a value counts no further"] = 10.0

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("--columns names at least one column")
        if self.limit <= 0:
            raise ValueError("--limit is above 0")

    def needs(self) -> list[str]:
        return self.columns

    @hookimpl
    def embed(self, samples: Samples, run: Context) -> Any:
        names = [n for n in sorted(samples.columns) if any(fnmatchcase(n, one) for one in self.columns)]
        dimensions: dict[str, npt.NDArray[np.float64]] = {}
        constant = []
        for name in names:
            values = samples.column(name)
            if values.dtype.kind != "f" or values.ndim != 1:
                if name in self.columns:
                    raise UserError(f"embed columns: {name!r} holds no numbers")
                continue  # a pattern may well match texts and vectors too
            standard = standardised(values)
            if standard is None:
                constant.append(name)
            else:
                dimensions[name] = np.clip(standard, -self.limit, self.limit)
        if constant:
            run.warn(f"{', '.join(constant)} have one value in all rows and are left out")
        if not dimensions:
            asked = ", ".join(self.columns)
            raise UserError(f"embed columns: no column with numbers that differ matches {asked}")
        run.note(dimensions=list(dimensions))
        vectors = np.stack(list(dimensions.values()), axis=1)
        absent = {int(at): "no value in " + ", ".join(np.array(list(dimensions))[np.isnan(vectors[at])])
                  for at in np.flatnonzero(np.isnan(vectors).any(axis=1))}  # fmt: skip
        vectors[list(absent)] = 0
        return Outcome(vectors.astype(np.float32), left_out=absent)


def standardised(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Distance from the median in robust standard deviations: 1.4826 times the median absolute deviation, or
    where more than half of the rows share one value, the standard deviation. None if nothing differs."""
    apart = values - np.nanmedian(values) if not np.isnan(values).all() else values
    spread = 1.4826 * float(np.nanmedian(np.abs(apart))) if not np.isnan(apart).all() else 0.0
    if spread == 0:
        spread = float(np.nanstd(apart)) if not np.isnan(apart).all() else 0.0
    return apart / spread if spread > 0 else None
