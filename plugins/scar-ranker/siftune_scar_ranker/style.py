"""`score style`: how near an answer's form and surprisal are to a centre, by counting and without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from siftune import Column, Context, Method, Outcome, Pool, Samples, UserError, hookimpl
from siftune.samples import Array

from . import kinds
from .form import LAYOUT, PROSE, measures
from .languages import UNTOLD, language

SURPRISAL = "ifd.loss_conditioned"
QUALITY = ("quality.helpfulness", "quality.correctness")  # shown beside the spread, as the paper does; never scored
WINSOR = 5.0  # robust deviations beyond which a value counts no further
DENSEST = 0.25  # share of the rows that the densest cluster holds
SEEN = 2048  # rows among which it is looked for
FEW = 10  # rows from which on a centre is taken among those with enough words only
STRANGE = 0.05  # share of rows that are not English, above which a step warns
ASKED = 500  # rows whose language is looked at


class Style(Method):
    """Closeness of an answer's form (words, sentences, punctuation, layout, readability) and surprisal to the
    teacher's direct answers, to the densest cluster of the pool, or to a file of examples.

    Every measure is set off from its median in robust deviations; the score is 1 / (1 + d), with d the root mean
    square over the measures of the distance from the centre: 1 in the centre, and 1/2 where the answer is one
    deviation away in each. No training and no model; after the analysis in https://arxiv.org/abs/2406.10882.
    """

    scope: ClassVar[Literal["rows", "view"]] = "view"

    centre: Annotated[
        Literal["direct", "densest"] | None,
        "what to be close to: the rewrites of reflect direct (default where there are any), or the densest cluster",
    ] = None
    like: Annotated[Path | None, "or a file of examples in any format that siftune reads"] = None
    surprisal: Annotated[
        str | None, f"column of the answer's loss, in nats per token (default: {SURPRISAL}, where it is there)"
    ] = None
    min_words: Annotated[int, "a measure of fewer words is drawn to the median, and the row is not chosen"] = 50

    def __post_init__(self) -> None:
        if self.centre is not None and self.like is not None:
            raise ValueError("--centre and --like exclude each other")
        if self.min_words < 1:
            raise ValueError("--min-words is at least 1")

    def needs(self) -> Sequence[str]:
        return [self.surprisal or f"{SURPRISAL}?", *(f"{name}?" for name in QUALITY)]

    def gives(self) -> Sequence[Column]:
        columns = [Column(f"style.{name}", unit) for name, unit in (PROSE | LAYOUT).items()]
        least = {"style.words": float(self.min_words)}
        return [Column("style", "closeness", "higher", at_least=least), *columns, Column("style.words", "words")]

    @hookimpl
    def score(self, samples: Samples, run: Context) -> Outcome:
        left_out = {at: "no response" for at, sample in enumerate(samples) if not sample.response.strip()}
        columns, words = measured([sample.response for sample in samples], run)
        there = np.ones(len(samples), bool)
        there[list(left_out)] = False
        _look_at_languages(samples, run)
        enough = there & (words >= self.min_words)
        self._tell_spread(samples, columns, enough, run)

        middle = {name: _middle(columns[name], enough, there) for name in PROSE}
        shrink(columns, words, middle, self.min_words)
        vectors = dict(columns)
        surprisal = self._surprisal(samples, run)
        if surprisal is not None:
            vectors["surprisal"] = surprisal
        scales = {name: scale(values[there]) for name, values in vectors.items()}
        constant = sorted(name for name, (_, width) in scales.items() if width == 0)
        if constant:
            run.note(constant=constant)
        standard = np.stack([standardised(values, *scales[name]) for name, values in vectors.items()], axis=1)
        centre = self._centre(samples, standard, list(vectors), scales, middle, there, enough, run)
        closeness = 1 / (1 + distance(standard, centre))
        run.note(centre={name: round(float(at), 4) for name, at in zip(vectors, centre, strict=True) if at == at})
        told: dict[str, Any] = {f"style.{name}": values for name, values in columns.items()}
        return Outcome({"style": closeness, **told, "style.words": words.astype(float)}, left_out)

    def _surprisal(self, samples: Samples, run: Context) -> Array | None:
        name = self.surprisal or SURPRISAL
        if name not in samples.columns:
            run.warn(f"form alone: there is no column {name}; put `score ifd` before it for surprisal")
            return None
        values: Array = samples.column(name)
        if values.ndim != 1 or values.dtype.kind != "f":
            raise UserError(f"score style: {name} holds no numbers")
        missing = int(np.isnan(values).sum())
        if missing == len(values):
            run.warn(f"form alone: {name} has no value in any row")
            return None
        if missing:
            run.say(f"{missing:,} of {len(values):,} rows have no {name}: they are compared by form alone")
        return values

    def _centre(
        self,
        samples: Samples,
        standard: Array,
        names: list[str],
        scales: dict[str, tuple[float, float]],
        middle: dict[str, float],
        there: Array,
        enough: Array,
        run: Context,
    ) -> Array:
        """The point to be close to, in robust deviations `(d,)`; NaN where it is not told."""
        if self.like is not None:
            examples = self._examples(self.like, middle)
            run.note(close_to=f"{len(next(iter(examples.values()))):,} examples")
            return np.array(
                [
                    np.median(standardised(examples[name], *scales[name])) if name in examples else np.nan
                    for name in names
                ]
            )
        direct = there & np.array([kinds.kind(sample) == "direct" for sample in samples], bool)
        if self.centre == "direct" and not direct.any():
            raise UserError(
                "score style: no row is the teacher's direct answer; put `reflect direct` before it, "
                "or write --centre densest or --like FILE"
            )
        if direct.any() and self.centre != "densest":
            run.note(close_to=f"{int(direct.sum()):,} direct answers")
            return _centre_of(standard[_among(direct, enough)])
        run.note(close_to="the densest cluster")
        return densest(standard[_among(there, enough)])

    def _examples(self, file: Path, middle: dict[str, float]) -> dict[str, Array]:
        texts = [sample.response for sample in Pool.read(file).samples if sample.response.strip()]
        if not texts:
            raise UserError(f"score style: --like {file} holds no response")
        columns, words = measured(texts)
        shrink(columns, words, middle, self.min_words)
        return columns

    def _tell_spread(self, samples: Samples, columns: dict[str, Array], enough: Array, run: Context) -> None:
        """The spread of every measure, of texts with enough words; the smaller, the more consistent. Taken before
        anything that hangs on the other rows is done, so that the figures of two steps can be compared."""
        shown = dict(columns)
        beside = {self.surprisal or SURPRISAL: "surprisal"} | {name: name for name in QUALITY}
        for name, told in beside.items():
            if name in samples.columns and (values := samples.column(name)).dtype.kind == "f":
                shown[told] = values
        rows = np.flatnonzero(enough)
        told = f"{len(rows):,} of {len(samples):,} responses have {self.min_words} words or more"
        run.note(measured=told)
        if not len(rows):
            run.warn(f"{told}: all measures of words are drawn to the median, and the score means little")
            return
        spread = kinds.spread(shown, rows)
        run.note(spread=spread)
        run.say(kinds.table(f"spread; {told}", {"mean ± sd": spread}))
        pairs = kinds.paired(list(samples), enough)
        if pairs:
            figures = {which: kinds.spread(shown, at) for which, at in pairs.items()}
            run.note(paired_by_instruction=figures)
            run.say(kinds.table("paired by instruction", {f"{len(at):,} {k}": figures[k] for k, at in pairs.items()}))


def measured(texts: Sequence[str], run: Context | None = None) -> tuple[dict[str, Array], Array]:
    """Columns of every measure, NaN for one that a text without words has not, and the number of words."""
    columns = {name: np.full(len(texts), np.nan) for name in PROSE | LAYOUT}
    words = np.zeros(len(texts), np.int64)
    for at, text in enumerate(texts):
        found, words[at] = measures(text)
        for name, value in found.items():
            columns[name][at] = value
        if run is not None:
            run.advance(rows=1)
    return columns, words


def shrink(columns: dict[str, Array], words: Array, middle: dict[str, float], least: int) -> None:
    """Draw the measures of words towards the middle, the more the fewer words a text has under `least`."""
    share = np.minimum(words / least, 1.0)
    for name, centre in middle.items():
        known = np.where(np.isnan(columns[name]), centre, columns[name])
        columns[name] = share * known + (1 - share) * centre


def scale(values: Array) -> tuple[float, float]:
    """Median and robust deviation: 1.4826 times the median absolute deviation, or the standard deviation where
    more than half of the values are one. 0 where nothing differs."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 0.0
    middle = float(np.median(known))
    width = 1.4826 * float(np.median(np.abs(known - middle))) or float(known.std())
    # what differs in the last bits alone does not differ
    return middle, width if width > 1e-9 * max(1.0, abs(middle)) else 0.0


def standardised(values: Array, middle: float, width: float) -> Array:
    """Robust deviations from the middle, winsorised. NaN for no value, and for a measure that does not vary, which
    tells nothing apart."""
    if width == 0:
        return np.full(len(values), np.nan)
    found: Array = np.clip((values - middle) / width, -WINSOR, WINSOR)
    return found


def distance(points: Array, centre: Array) -> Array:
    """Root mean square over the measures that both have, `(n,)`; 0 where they have none in common."""
    apart = np.square(points - centre)
    known = np.isfinite(apart)
    total: Array = np.where(known, apart, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.sqrt(total)


def densest(points: Array) -> Array:
    """The centre of the tightest group that holds a share of DENSEST of the rows: around the row whose neighbours
    are nearest, moved to the median of its group until it stands."""
    if not len(points):
        return np.full(points.shape[1], np.nan)
    # ids are hashes and a view is in their order, so its beginning is a fair sample; every row moves the centre
    seen = np.where(np.isfinite(points), points, 0.0)[:SEEN]
    reach = max(1, round(DENSEST * len(seen)))
    squares = np.square(seen).sum(axis=1)
    apart = squares[:, None] + squares[None, :] - 2 * seen @ seen.T
    centre: Array = seen[np.partition(apart, reach - 1, axis=1)[:, reach - 1].argmin()]
    group = max(1, round(DENSEST * len(points)))
    for _ in range(20):
        nearest = np.argsort(distance(points, centre), kind="stable")[:group]
        moved = _centre_of(points[nearest])
        if np.allclose(moved, centre, equal_nan=True):
            break
        centre = moved
    return centre


def _centre_of(points: Array) -> Array:
    """Median of each measure; NaN for one that no row has."""
    known = [column[np.isfinite(column)] for column in points.T]
    return np.array([np.median(values) if len(values) else np.nan for values in known])


def _among(rows: Array, enough: Array) -> Array:
    """Those of the rows that have enough words, if they are not too few for a centre."""
    both: Array = rows & enough
    return both if both.sum() >= FEW else rows


def _middle(values: Array, enough: Array, there: Array) -> float:
    for rows in (enough, there):
        known = values[rows & np.isfinite(values)]
        if len(known):
            return float(np.median(known))
    return 0.0


def _look_at_languages(samples: Samples, run: Context) -> None:
    """Function words and syllables are counted as English has them."""
    told = [one for at in range(min(len(samples), ASKED)) if (one := language(samples[at].response)) != UNTOLD]
    strange = sorted({one for one in told if one != "en"}, key=told.count, reverse=True)
    count = sum(one != "en" for one in told)
    if told and count > STRANGE * len(told):
        names = ", ".join(f"{one} {told.count(one) / len(told):.0%}" for one in strange[:3])
        run.warn(
            f"{count / len(told):.0%} of the responses are not English ({names}): function words and readability "
            "are measured as of English, and tell languages apart before they tell styles"
        )
