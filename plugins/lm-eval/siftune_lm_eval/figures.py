"""What lm-eval found, as figures with 95% intervals, and one row per test item."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from siftune.intervals import NORMAL, wilson

from .answering import BUNDLED

RESAMPLES = 2000

Floats = npt.NDArray[np.float64]
Sample = Mapping[str, Any]


def metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """`task.metric` (and `.filter` where there is one): value, interval and number of items.

    A metric for which lm-eval has no standard error is a plain number; one that is not a number is left out.
    """
    made: dict[str, Any] = {}
    for task, measured in {**found["results"], **found.get("groups", {})}.items():
        if task in BUNDLED:
            continue
        for key, value in measured.items():
            name, comma, filter = key.partition(",")
            if not comma or name.endswith("_stderr") or not _is_finite(value):
                continue
            label = f"{task}.{name}" if filter == "none" else f"{task}.{name}.{filter}"
            samples = [s for s in found["samples"].get(task, ()) if s["filter"] == filter]
            made[label] = _with_interval(float(value), measured.get(f"{name}_stderr,{filter}"), name, samples)
    for task in BUNDLED:
        if task in found["samples"]:
            made |= _bundled(task, found["samples"][task])
    return made


def _with_interval(value: float, error: Any, name: str, samples: Sequence[Sample]) -> Any:
    each: list[Any] = [sample.get(name) for sample in samples]
    if each and all(one in (0, 1) for one in each) and math.isclose(value, float(np.mean(each))):
        return wilson(value, len(each))
    if not _is_finite(error):
        return value
    told = {"value": value, "low": value - NORMAL * error, "high": value + NORMAL * error}
    return {**told, "n": len(samples)} if samples else told


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _bundled(task: str, samples: Sequence[Sample]) -> dict[str, Any]:
    if task == "quickstart_loss":
        return {"quickstart_loss.bits_per_byte": _loss(samples)}
    # items that share their choices are one draw: who likes a response likes it under each of them
    groups = _grouped(samples, lambda doc: tuple(sorted(doc["choices"])))
    names = samples[0]["metrics"]
    return {f"{task}.{name}": _accuracy([[s[name] for s in group] for group in groups]) for name in names}


def _grouped(samples: Sequence[Sample], by: Callable[[Mapping[str, Any]], Any]) -> list[list[Sample]]:
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(by(sample["doc"]), []).append(sample)
    return list(groups.values())


def _accuracy(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean over items; its interval by drawing groups of items again."""
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    return _told(
        sums.sum() / sizes.sum(), sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), int(sizes.sum())
    )


def _loss(samples: Sequence[Sample]) -> dict[str, Any]:
    """Bits per byte within each source, averaged over sources; its interval by drawing rows again in each."""
    drawing = np.random.default_rng(0)
    values, again = [], []
    for rows in _grouped(samples, lambda doc: doc["source"]):
        sizes = np.array([len(row["doc"]["response"].encode()) for row in rows], np.float64)
        bits = np.array([row["bits_per_byte"] for row in rows]) * sizes
        drawn = drawing.integers(0, len(rows), (RESAMPLES, len(rows)))
        values.append(bits.sum() / sizes.sum())
        again.append(bits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return _told(np.mean(values), np.mean(again, axis=0), len(samples))


def _told(value: Any, resampled: Floats, count: int) -> dict[str, Any]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high), "n": count}


def items(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per test item (and filter): what was right, what was answered, and what each metric gave.

    `correct` is the task's first metric where it is a share of right; `loss` is in nats, of the target.
    """
    return [
        _item(task, sample, found["configs"][task])
        for task in sorted(found["samples"])
        for sample in found["samples"][task]
    ]


def _item(task: str, sample: Sample, config: Mapping[str, Any]) -> dict[str, Any]:
    doc = sample["doc"]
    made: dict[str, Any] = {
        "task": task,
        "id": str(doc.get("id", sample["doc_id"])),
        "filter": sample["filter"],
    }
    if "source" in doc:
        made["source"] = doc["source"]
    scores = {name: float(sample[name]) for name in sample["metrics"] if _is_finite(sample[name])}
    made["correct"] = next((v for name, v in scores.items() if name.startswith(("acc", "exact_match"))), None)
    made["target"], made["prediction"], made["loss"] = _answer(sample, str(config.get("output_type")))
    return made | scores


def _answer(sample: Sample, kind: str) -> tuple[str | None, str | None, float | None]:
    """Target, prediction and loss of the target, as far as the kind of task has them."""
    target, answers = sample["target"], sample["filtered_resps"]
    if kind == "multiple_choice":
        # choices are continuations of one context, or contexts of one continuation
        contexts, said = zip(*(arguments[:2] for arguments in sample["arguments"]), strict=True)
        choices = [*said] if len(set(said)) > 1 else [*contexts]
        told = [likelihood for likelihood, _ in answers]
        values = told
        if "acc_mutual_info" in sample["metrics"]:  # the second half was asked without the context
            half = len(told) // 2
            told, alone = told[:half], told[half:]
            first = sample["metrics"][0] == "acc_mutual_info"
            values = [a - b for a, b in zip(told, alone, strict=True)] if first else told
        if isinstance(target, int) and 0 <= target < len(told):
            return choices[target], choices[values.index(max(values))], -float(told[target])
        return str(target), None, None
    if kind == "loglikelihood":
        return str(target), None, -float(answers[0][0])
    return str(target), str(answers[0]) if answers else None, None
