"""Samples become quadruples: answers from columns of the input, or from rewrites that the chain has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from siftune import Samples, UserError

from .kinds import Asked, asked
from .quadruples import Quadruple
from .scar import pair_of, written

Names = dict[str, str]  # for each kind of answer, the column (or the reflecting step) that has it


def quality_columns(names: Names, quality: str) -> Names:
    """Columns with the quality of each kind of answer, where answers are columns."""
    return {kind: f"input.{name}_{quality}" for kind, name in names.items()}


def from_columns(samples: Samples, names: Names, quality: str, own: bool) -> list[Quadruple]:
    """A quadruple for every sample. `own`: the human's answer is the sample's response and no column."""
    texts = {kind: _column(samples, f"input.{name}") for kind, name in names.items()}
    worth = {kind: _column(samples, name) for kind, name in quality_columns(names, quality).items()}
    found = []
    for at, sample in enumerate(samples):
        instruction, response = pair_of(sample)
        given = {kind: _text(column[at], sample.id, names[kind]) for kind, column in texts.items()}
        human = _text(response, sample.id, "") if own else given["human"]
        answers = (given["direct"], given["referenced"], human)
        scores = [_number(worth[kind][at], sample.id) for kind in ("direct", "referenced", "human")]
        found.append(Quadruple(instruction, answers, (scores[0], scores[1], scores[2])))
    return found


def from_rewrites(samples: Samples, names: Names, quality: str) -> list[Quadruple]:
    """A quadruple for every sample of which a rewrite by one of the two steps is in play; of several rewrites
    by one step, the last in id order. Samples of one instruction share its direct answer, which comes as a rewrite
    of one of them: it is the same for all."""
    worth = _column(samples, quality)
    made: dict[str, dict[str, int]] = {}
    direct: dict[Asked, int] = {}
    for at, sample in enumerate(samples):
        for kind in ("direct", "referenced"):
            if sample.parent is not None and sample.made_by in (names[kind], f"reflect {names[kind]}"):
                made.setdefault(sample.parent, {})[kind] = at
                if kind == "direct":
                    direct[asked(sample)] = at
    found = []
    for at, sample in enumerate(samples):
        rewrites = made.get(sample.id, {})
        if (rewrites or sample.parent is None) and asked(sample) in direct:
            rewrites = {"direct": direct[asked(sample)], **rewrites}
        if not rewrites:
            continue
        places = [rewrites.get("direct"), rewrites.get("referenced"), at]
        answers = [None if one is None else _text(samples[one].response, sample.id, "") for one in places]
        scores = [np.nan if one is None else _number(worth[one], sample.id) for one in places]
        found.append(
            Quadruple(pair_of(sample)[0], (answers[0], answers[1], answers[2]), (scores[0], scores[1], scores[2]))
        )
    return found


def _column(samples: Samples, name: str) -> Sequence[Any]:
    """The values of a column, nothing but None for one that there is not."""
    return list(samples.column(name)) if name in samples.columns else [None] * len(samples)


def _text(value: Any, sample: str, name: str) -> str | None:
    """An answer, None where there is none; a number is the text that it is written as."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if not isinstance(value, (str, int, float, np.number)):
        raise UserError(f"train scar-ranker: {name!r} of sample {sample} is a {type(value).__name__}, no text")
    text = written(value)
    return text if text.strip() else None


def _number(value: Any, sample: str) -> float:
    if value is None:
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"train scar-ranker: the quality {value!r} of sample {sample} is no number") from None
