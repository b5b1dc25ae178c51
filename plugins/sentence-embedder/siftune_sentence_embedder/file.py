"""embed file: vectors that the user has already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from siftune import Context, Method, Outcome, Samples, UserError, hookimpl


class File(Method):
    """A vector per sample out of a .npy file in the order of the input's rows, or out of a list column."""

    path: Annotated[Path | None, "array (n, d) in .npy, row i for row i of the input"] = None
    column: Annotated[str | None, "column of the input that holds a list of numbers"] = None
    normalize: Annotated[bool, "scale every vector to length 1"] = False
    half: Annotated[bool, "keep the vectors in float16: half the disk, three digits"] = False

    def __post_init__(self) -> None:
        if (self.path is None) == (self.column is None):
            raise ValueError("name either --path VECTORS.npy or --column NAME")

    def needs(self) -> list[str]:
        return ["row"] if self.column is None else [f"input.{self.column}"]

    @hookimpl
    def embed(self, samples: Samples, run: Context) -> Any:
        vectors, left_out = self._stored(samples, run) if self.path is not None else self._listed(samples)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        failed = {int(at): "the vector has a NaN or an infinity in it" for at in broken}
        vectors[broken] = 0
        if self.normalize:
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            for at in np.flatnonzero(norms == 0).tolist():
                if at not in left_out:
                    failed.setdefault(at, "the vector is zero")
            np.divide(vectors, norms, out=vectors, where=norms > 0, casting="same_kind")
        return Outcome(vectors.astype(np.float16) if self.half else vectors, left_out=left_out, failed=failed)

    def _stored(self, samples: Samples, run: Context) -> tuple[Any, dict[int, str]]:
        assert self.path is not None
        try:
            stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"embed file: {self.path} is no array in .npy: {error}") from error
        if stored.ndim != 2 or stored.dtype.kind not in "fiu":
            raise UserError(f"embed file: {self.path} holds {stored.dtype} {stored.shape}, no numbers (n, d)")
        read = samples.pool.source
        total = len(samples.pool) if read is None else max(read.numbers, default=0)
        if total > len(stored):
            raise UserError(f"embed file: {self.path} has {len(stored)} rows, the input has {total}")
        if len(stored) > total and "vectors" not in run.figures:
            run.warn(f"{self.path} has {len(stored)} rows and {total} were read: the first are taken")
        run.note(vectors=len(stored))
        wanted = np.nan_to_num(samples.column("row"), nan=0).astype(np.int64) - 1  # rewrites have no row
        left_out = {int(at): "a rewrite, and the file has none" for at in np.flatnonzero(wanted < 0)}
        vectors = np.zeros((len(samples), stored.shape[1]), np.float32)
        vectors[wanted >= 0] = stored[wanted[wanted >= 0]]
        return vectors, left_out

    def _listed(self, samples: Samples) -> tuple[Any, dict[int, str]]:
        lists = samples.column(f"input.{self.column}")
        left_out: dict[int, str] = {}
        if lists.ndim == 2:
            return np.array(lists, np.float32), left_out
        width = next((len(one) for one in lists if isinstance(one, (list, tuple, np.ndarray))), 0)
        if not width:
            raise UserError(f"embed file: the column {self.column!r} holds no lists of numbers")
        vectors = np.zeros((len(lists), width), np.float32)
        for at, one in enumerate(lists):
            if one is None or one != one if isinstance(one, float) else one is None:
                left_out[at] = f"no {self.column}"
                continue
            try:
                vectors[at] = np.asarray(one, np.float32)
            except (ValueError, TypeError):
                raise UserError(
                    f"embed file: {self.column!r} of sample {samples[at].id} is not a list of {width} numbers"
                ) from None
        return vectors, left_out
