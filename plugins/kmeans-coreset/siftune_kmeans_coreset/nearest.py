"""score nearest: how far the nearest other sample is, in this pool or in another file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from siftune import Column, Context, Method, Outcome, Pool, Samples, Step, UserError, hookimpl

from . import vectors
from .neighbours import exact, nearest
from .vectors import Floats


class Nearest(Method):
    """Distance to the nearest other sample, and its id; or to the nearest row of another file."""

    scope: ClassVar[Literal["rows", "view"]] = "view"
    uses: ClassVar[Sequence[str]] = ("formats", "shapes")

    against: Annotated[Path | None, "another file: rows, or their vectors as .npy"] = None
    encoder: Annotated[str, "the embed step that made the vectors, for the rows of --against"] = "sentence"
    embedding: Annotated[str, "column of vectors"] = "embedding"

    def __post_init__(self) -> None:
        if self.against is not None and self.against.suffix != ".npy":
            try:
                self._encoder().method()
            except UserError as error:
                raise ValueError(f"--encoder: {error}") from error

    def needs(self) -> list[str]:
        return [self.embedding]

    def gives(self) -> list[Column]:
        return [Column("nearest", "distance", "higher"), Column("nearest.id")]

    @hookimpl
    def score(self, samples: Samples, run: Context) -> Any:
        points, present = vectors.read(samples, self.embedding)
        if self.against is None:
            others, names = None, samples.ids
            if len(points) < 2:
                raise UserError("score nearest: a single row has no other; name a file with --against")
            names = [names[at] for at in present]
        else:
            others, names = self._others(samples, points, run)
        if not exact(len(points), len(points if others is None else others)):
            run.say("too many pairs to go through one by one; an index finds the nearest of nearly all rows")
        at, distances = nearest(points, others)
        run.note(
            exact=exact(len(points), len(names)),
            median=float(np.median(distances)),
            zero=int((distances == 0).sum()),
        )
        values, ids = np.full(len(samples), np.nan), np.full(len(samples), None, object)
        values[present] = distances
        ids[present] = [names[i] for i in at]
        missing = np.setdiff1d(np.arange(len(samples)), present)
        return Outcome({"nearest": values, "nearest.id": ids}, left_out={int(i): "no vector" for i in missing})

    def _others(self, samples: Samples, points: Floats, run: Context) -> tuple[Floats, list[str]]:
        """The other file's vectors, and what to call its rows."""
        assert self.against is not None
        if self.against.suffix == ".npy":
            others = np.load(self.against, allow_pickle=False).astype(np.float32)
            names = [f"row {i + 1}" for i in range(len(others))]
        else:
            call = self._encode(samples, points, run)
            pool = Pool.read(self.against)
            others = call(Samples(pool, np.arange(len(pool))))
            there = np.isfinite(others).all(axis=1)
            names = [sample.id for sample, good in zip(pool.samples, there, strict=True) if good]
            if not there.all():
                run.warn(f"{int((~there).sum())} rows of {self.against} have no vector")
            others = others[there]
        if others.ndim != 2 or others.shape[1] != points.shape[1] or not len(others):
            raise UserError(
                f"score nearest: the vectors of {self.against} have the shape {others.shape}, "
                f"those of {self.embedding!r} {points.shape[1]} dimensions"
            )
        if not np.isfinite(others).all():
            raise UserError(f"score nearest: a vector in {self.against} has a NaN or an infinity in it")
        return np.ascontiguousarray(others), names

    def _encoder(self) -> Step:
        return Step.parse(f"embed {self.encoder.removeprefix('embed ')}")

    def _encode(self, samples: Samples, points: Floats, run: Context) -> Any:
        """A function from samples to vectors `(n, d)`, NaN for none, as the column's own step makes them."""
        from siftune.calling import caller

        step = self._encoder()
        method = step.method()
        embed = caller("embed", method, step.label, step.found().source)
        size = min(type(method).shard, 1024)

        def call(some: Samples) -> Floats:
            parts = []
            for start in range(0, len(some), size):
                answer = embed(samples=some[start : start + size], run=run)
                values = np.array(answer.values if isinstance(answer, Outcome) else answer, np.float32)
                if isinstance(answer, Outcome):
                    values[[*answer.left_out, *answer.failed]] = np.nan
                parts.append(values)
            return np.concatenate(parts) if parts else np.empty((0, points.shape[1]), np.float32)

        probe = samples[: min(4, len(samples))]
        known, again = probe.column(self.embedding), call(probe)
        there = np.isfinite(known).all(axis=1)
        if known.shape != again.shape or not np.allclose(known[there], again[there], atol=2e-2):
            raise UserError(
                f"score nearest: 'embed {self.encoder}' does not make the vectors of {self.embedding!r}; "
                "write the step as it stands in the chain: --encoder 'sentence --view prompt'"
            )
        return call
