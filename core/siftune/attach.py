"""What a hook gave back, checked: count, shape, type and finiteness, or a Fault that names step and distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .calling import Fault
from .methods import Evaluation, Outcome, Selection, Trained
from .samples import Array, Column, Samples
from .store import FAILED, LEFT_OUT, OK, VECTORS, Rows


@dataclass(frozen=True)
class Checker:
    """Checks answers of one step. `name` is the method's, `columns` what it promised to make."""

    label: str
    source: str
    name: str = ""
    columns: Sequence[Column] = ()

    def fault(self, problem: str) -> Fault:
        return Fault(f"{self.label} ({self.source}) {problem}")

    def embedding(self, answer: Any, samples: Samples) -> Rows:
        """Vectors `float (n, d)`; float16 stays so, everything else becomes float32."""
        rows, values = self._states(answer, len(samples))
        vectors = self._array(values)
        if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
            raise self.fault(f"returned {_described(values)}; embed gives numbers of the shape ({len(samples)}, d)")
        self._count(len(vectors), len(samples))
        vectors = vectors.astype(np.float16 if vectors.dtype == np.float16 else np.float32)
        self._finite(np.isfinite(vectors).all(axis=1), rows.states, samples, "a vector that is not finite")
        vectors[rows.states != OK] = 0
        rows.columns[VECTORS] = vectors
        return rows

    def scores(self, answer: Any, samples: Samples) -> Rows:
        """Columns of numbers, texts or lists, exactly those that were promised."""
        rows, values = self._states(answer, len(samples))
        given = values if isinstance(values, Mapping) else {self.name: values}
        promised = [column.name for column in self.columns]
        if set(given) != set(promised):
            extra, absent = sorted(set(given) - set(promised)), sorted(set(promised) - set(given))
            said = [f"returned {', '.join(map(repr, extra))}, which gives() does not name"] if extra else []
            said += [f"did not return {', '.join(map(repr, absent))}, which gives() names"] if absent else []
            raise self.fault(" and ".join(said))
        for name in promised:
            rows.columns[name] = self._column(name, given[name], rows.states, samples)
        for about in self.columns:
            if about.numeric and (text := next((v for v in rows.columns[about.name] if isinstance(v, str)), None)):
                raise self.fault(f"returned {_described(text)} for {about.name!r}, which gives() promises as a number")
        return rows

    def clusters(self, answer: Any, samples: Samples) -> tuple[Rows, Array]:
        """Labels, distances and centres."""
        rows, values = self._states(answer, len(samples))
        if not (isinstance(values, tuple) and len(values) == 3):
            raise self.fault(f"returned {_described(values)}; cluster gives (labels, centres, distances)")
        labels, centres, distances = (self._array(one) for one in values)
        self._count(len(labels), len(samples))
        self._count(len(distances), len(samples))
        if centres.ndim != 2 or not np.isfinite(centres).all():
            raise self.fault("returned centres that are not finite numbers of the shape (k, d)")
        ok = rows.states == OK
        if labels.dtype.kind not in "iu" or (
            ok.any() and not (0 <= labels[ok].min() and labels[ok].max() < len(centres))
        ):
            raise self.fault(f"returned labels that are not whole numbers from 0 to {len(centres) - 1}")
        self._finite(np.isfinite(distances), rows.states, samples, "a distance that is not finite")
        for column, numbers in (("cluster", labels), ("cluster_distance", distances)):
            rows.columns[column] = np.where(ok, numbers.astype(np.float64), np.nan)
        return rows, centres.astype(np.float32)

    def selection(self, answer: Any, samples: Samples) -> Selection:
        """Distinct positions inside the view, weights that are positive, and reasons, all of one length."""
        chosen = answer if isinstance(answer, Selection) else Selection(answer)
        positions = self._array(chosen.positions)
        positions = positions if positions.size else np.empty(0, np.int64)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise self.fault(
                f"returned {_described(chosen.positions)}; select gives whole numbers, the positions to keep"
            )
        positions = positions.astype(np.int64)
        if len(positions) and not (0 <= positions.min() and positions.max() < len(samples)):
            raise self.fault(f"returned a position outside of the view of {len(samples)} samples")
        if len(np.unique(positions)) != len(positions):
            raise self.fault("returned a position twice")
        self._fates(chosen.left_out, len(samples), "left_out")
        both = set(positions.tolist()) & set(chosen.left_out)
        if both:
            raise self.fault(f"both kept and left out position {min(both)}")
        weights = chosen.weights
        if weights is not None:
            weights = self._array(weights, np.float64)
            self._count(len(weights), len(positions), "weights")
            if not (np.isfinite(weights).all() and (weights > 0).all()):
                raise self.fault("returned a weight that is not a finite number above 0")
        if chosen.reasons is not None:
            self._count(len(chosen.reasons), len(positions), "reasons")
        return Selection(positions, weights, chosen.reasons, dict(chosen.left_out))

    def trained(self, answer: Any) -> Trained:
        """A model that lies in its folder."""
        if not isinstance(answer, Trained):
            raise self.fault(f"returned {_described(answer)}; train gives Trained(folder, base)")
        folder = Path(answer.folder)
        if not (folder / "config.json").is_file():
            raise self.fault(f"returned the folder {folder}, which holds no config.json")
        return Trained(folder, answer.base, answer.kind, dict(answer.figures), self._metrics(answer.metrics))

    def evaluation(self, answer: Any) -> Evaluation:
        """Figures that are finite, by name."""
        if not isinstance(answer, Evaluation):
            raise self.fault(f"returned {_described(answer)}; evaluate gives Evaluation(metrics, items)")
        return Evaluation(self._metrics(answer.metrics), [dict(item) for item in answer.items])

    def _metrics(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in metrics.items():
            numbers = value.values() if isinstance(value, Mapping) else [value]
            for number in numbers:
                if isinstance(number, (int, float, np.number)) and not np.isfinite(number):
                    raise self.fault(f"returned {number} for the figure {name!r}; leave out what could not be measured")
        return dict(metrics)

    def _array(self, value: Any, kind: Any = None) -> Any:
        try:
            return np.asarray(value, kind)
        except (ValueError, TypeError) as error:
            raise self.fault(f"returned {_described(value)} that is no array: {error}") from error

    def _states(self, answer: Any, total: int) -> tuple[Rows, Any]:
        outcome = answer if isinstance(answer, Outcome) else Outcome(answer)
        states = np.full(total, OK, np.int8)
        reasons = np.full(total, None, object)
        for fates, state, what in (
            (outcome.left_out, LEFT_OUT, "left_out"),
            (outcome.failed, FAILED, "failed"),
        ):
            self._fates(fates, total, what)
            for position, reason in fates.items():
                states[position], reasons[position] = state, str(reason)
        both = set(outcome.left_out) & set(outcome.failed)
        if both:
            raise self.fault(f"named position {min(both)} both as left out and as failed")
        return Rows({}, states, reasons), outcome.values

    def _fates(self, fates: Mapping[int, str], total: int, what: str) -> None:
        for position, reason in fates.items():
            if isinstance(position, bool) or not isinstance(position, (int, np.integer)) or not 0 <= position < total:
                raise self.fault(f"named position {position!r} in {what}; there are {total}, from 0")
            if not reason:
                raise self.fault(f"gave no reason for position {position} in {what}")

    def _column(self, name: str, values: Any, states: Array, samples: Samples) -> Array:
        if values is None or isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
            raise self.fault(f"returned {_described(values)} for the column {name!r}; it gives one value per sample")
        self._count(len(values), len(samples), f"values for the column {name!r}")
        ok = states == OK
        array = values if isinstance(values, np.ndarray) else None
        if array is not None and array.ndim == 1 and array.dtype.kind in "fiub":
            numbers = array.astype(np.float64)
        else:
            plain = list(values)
            first = next((v for v, good in zip(plain, ok, strict=True) if good and v is not None), None)
            if first is None or _is_number(first):
                numbers = self._numbers(name, plain, ok, samples)
            else:
                return self._objects(name, plain, ok, samples, str if isinstance(first, str) else list)
        self._finite(np.isfinite(numbers), states, samples, f"a value for {name!r} that is not finite", numbers)
        return np.where(ok, numbers, np.nan)

    def _numbers(self, name: str, plain: list[Any], ok: Array, samples: Samples) -> Array:
        numbers = np.full(len(plain), np.nan)
        for at, value in enumerate(plain):
            if not ok[at]:
                continue
            if not _is_number(value):
                raise self._at(at, samples, f"returned {_described(value)} for {name!r}")
            numbers[at] = float(value)
        return numbers

    def _objects(self, name: str, plain: list[Any], ok: Array, samples: Samples, kind: type) -> Array:
        objects = np.full(len(plain), None, object)
        for at, value in enumerate(plain):
            if not ok[at]:
                continue
            if kind is str and isinstance(value, str):
                objects[at] = value
            elif kind is list and isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
                if len(value) and all(isinstance(one, str) for one in value):
                    objects[at] = list(value)
                    continue
                numbers = self._array(value, np.float64)
                if numbers.ndim != 1 or not np.isfinite(numbers).all():
                    raise self._at(at, samples, f"returned a list for {name!r} that is not of finite numbers")
                objects[at] = numbers
            else:
                raise self._at(
                    at,
                    samples,
                    f"returned {_described(value)} for {name!r}, where other rows have {kind.__name__}",
                )
        return objects

    def _at(self, position: int, samples: Samples, problem: str) -> Fault:
        return self.fault(
            f"{problem} at position {position} (sample {samples[position].id}); "
            "a row without a value is named in Outcome(left_out=...) or Outcome(failed=...)"
        )

    def _finite(self, finite: Array, states: Array, samples: Samples, what: str, numbers: Any = None) -> None:
        bad = np.flatnonzero(~finite & (states == OK))
        if len(bad):
            shown = f"returned {numbers[bad[0]]} for" if numbers is not None else "returned"
            what = what.removeprefix("a value for ") if numbers is not None else what
            raise self._at(int(bad[0]), samples, f"{shown} {what}")

    def _count(self, got: int, wanted: int, what: str = "values") -> None:
        if got != wanted:
            raise self.fault(
                f"returned {got} {what} for {wanted}; a row without one is named in an Outcome, never dropped"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number, np.bool_))


def _described(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    return (
        f"{value!r}" if isinstance(value, (int, float, str)) and len(repr(value)) < 60 else f"a {type(value).__name__}"
    )
