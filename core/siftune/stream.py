"""The stream of rewrites that `reflect` yields, taken in one by one, each sample of the view accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .attach import Checker
from .context import Context
from .methods import Fate
from .samples import Sample, Samples
from .store import FAILED, LEFT_OUT, OK, Rows


@dataclass
class Rewrites:
    """New samples in an order that does not hang on arrival, and what became of every request."""

    samples: list[Sample]
    rows: Rows
    already_good: int = 0
    repeated: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def take(answer: Any, samples: Samples, checker: Checker, run: Context) -> Rewrites:
    """Drain the stream. Raises Fault for an item that is neither a rewrite nor a Fate, for one that answers a
    sample that was not handed over, and for samples that nothing was said about."""
    if not isinstance(answer, Iterator):
        raise checker.fault(
            f"returned a {type(answer).__name__}; reflect yields samples and fates, or gives an iterator of them"
        )
    positions = {sample_id: at for at, sample_id in enumerate(samples.ids)}
    states = np.zeros(len(samples), np.int8)
    reasons = np.full(len(samples), None, object)
    # the same sample may be in play twice: what is said of one is said of both
    twins: dict[str, list[int]] = {}
    for at, sample_id in enumerate(samples.ids):
        twins.setdefault(sample_id, []).append(at)
    made: dict[str, Sample] = {}
    already_good = repeated = 0
    for item in answer:
        if isinstance(item, Fate):
            if not 0 <= item.position < len(samples) or bool(item.left_out) == bool(item.failed):
                raise checker.fault(f"yielded {item}; a fate has a position of the view, and a reason or an error")
            parent = samples[item.position].id
            for at in twins[parent]:
                if states[at] != OK:
                    states[at], reasons[at] = (FAILED, item.failed) if item.failed else (LEFT_OUT, item.left_out)
            run.advance(rows=1, failed=int(bool(item.failed)))
            continue
        if not isinstance(item, Sample) or item.parent is None:
            raise checker.fault(f"yielded {type(item).__name__}; it yields sample.rewrite(...), or a Fate")
        if item.parent not in positions:
            raise checker.fault(f"yielded a rewrite of {item.parent}, which it was not handed")
        for at in twins[item.parent]:
            states[at], reasons[at] = OK, None
        if item.id == item.parent:
            already_good += 1
        else:
            other = made.get(item.id)
            repeated += other is not None
            # two samples may be rewritten to the same: whose it is does not hang on which came first
            if other is None or positions[item.parent] < positions[other.parent or ""]:
                made[item.id] = replace(item, made_by=checker.label)
        run.advance(rows=1)
    silent = np.flatnonzero(states == 0)
    if len(silent):
        raise checker.fault(
            f"said nothing of {len(silent)} of {len(samples)} samples, the first {samples[int(silent[0])].id}; "
            "yield a rewrite or a Fate for each"
        )
    ordered = sorted(made.values(), key=lambda sample: (positions[sample.parent or ""], sample.id))
    return Rewrites(ordered, Rows({}, states, reasons), already_good, repeated)
