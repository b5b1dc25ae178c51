"""The vectors of a view: read, looked over, and told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from siftune import Samples, UserError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BLOCK = 65536  # rows looked at together: 100 MB at 384 dimensions


def blocks(rows: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover this many rows."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def read(samples: Samples, column: str) -> tuple[Floats, Ints]:
    """The vectors `(m, d)` of the rows that have one, and the positions `(m,)` of those rows.

    Raises UserError for a column that holds no vectors, for a NaN or an infinity inside a vector, and where
    no row has a vector. A row without any number is one that `embed` gave none.
    """
    vectors = samples.column(column)
    if vectors.ndim != 2:
        raise UserError(f"column {column!r} holds no vectors; name one of an embed step: --embedding NAME")
    vectors = np.ascontiguousarray(vectors, np.float32)
    absent = np.zeros(len(vectors), bool)
    for part in blocks(len(vectors)):
        finite = np.isfinite(vectors[part])
        absent[part] = np.isnan(vectors[part]).all(axis=1)
        broken = np.flatnonzero(~finite.all(axis=1) & ~absent[part])
        if len(broken):
            at = int(broken[0]) + part.start
            raise UserError(
                f"column {column!r}: the vector of sample {samples[at].id} has a NaN or an infinity in it; "
                "make the vectors anew, or leave the row out"
            )
    present = np.flatnonzero(~absent)
    if not len(present):
        raise UserError(f"column {column!r}: none of the {len(vectors)} rows in play has a vector")
    return (vectors if len(present) == len(vectors) else vectors[present]), present


def lengths(vectors: Floats) -> npt.NDArray[np.float64]:
    """The Euclidean length of every vector `(n,)`."""
    found = np.empty(len(vectors))
    for part in blocks(len(vectors)):
        found[part] = np.sqrt(np.square(vectors[part], dtype=np.float64).sum(axis=1))
    return found


def unit(vectors: Floats, ids: Sequence[str], column: str) -> Floats:
    """The vectors at length 1; if all have it they stay as they are. Raises UserError for a zero vector."""
    norms = lengths(vectors)
    zero = np.flatnonzero(norms == 0)
    if len(zero):
        raise UserError(
            f"column {column!r}: {len(zero)} vectors are zero and point nowhere, the first that of sample "
            f"{ids[int(zero[0])]}; leave those rows out, or measure straight distances"
        )
    if is_unit(norms):
        return vectors
    scaled = np.empty_like(vectors)
    for part in blocks(len(vectors)):
        scaled[part] = vectors[part] / norms[part, None]
    return scaled


def is_unit(norms: npt.NDArray[np.float64]) -> bool:
    """Whether all lengths are 1 but for rounding (of float16, at worst)."""
    return bool(np.all(np.abs(norms - 1) < 2e-3))


def firsts(vectors: Floats) -> Ints:
    """For every row the lowest position that holds exactly the same vector `(n,)`."""
    odd = np.random.default_rng(0).integers(0, 2**63, vectors.shape[1], dtype=np.uint64) | np.uint64(1)
    keys = np.empty(len(vectors), np.uint64)
    for part in blocks(len(vectors), 8192):
        bits = (vectors[part] + np.float32(0)).view(np.uint32)  # adding zero makes -0.0 and 0.0 one
        keys[part] = (bits * odd).sum(axis=1, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    first = np.arange(len(vectors))
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    for at in same:  # a pair of neighbours in the order; equal keys are not yet equal vectors
        left, right = order[at], order[at + 1]
        if np.array_equal(vectors[left], vectors[right]):
            first[right] = first[left]
    return first
