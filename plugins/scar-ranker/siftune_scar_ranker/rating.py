"""`score quality` and `score style-judge`: the teacher rates an answer on a stated scale, or it is not rated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar

from siftune import Column, Context, Outcome, Sample, Samples, hookimpl
from siftune.asking import Asking, objects

LOWEST, HIGHEST = 0, 9  # the scale, of the paper's program too; its gate wants more than 5
UNIT = f"{LOWEST} to {HIGHEST}"

DIMENSIONS = [
    "formality: 0 as between friends, 9 as in a contract",
    "conciseness: 0 says everything twice, 9 not a word could go",
    "structure: 0 one stream of text, 9 laid out in headings, lists or steps throughout",
    "warmth: 0 impersonal, 9 speaks to the reader as a person",
    "certainty: 0 hedges every statement, 9 states everything as fact",
]


class Rating(Asking):
    """Numbers between LOWEST and HIGHEST by name, each with the teacher's reason before it."""

    min_coverage = 0.95  # some answers a teacher refuses to judge, and nothing can be done about it
    column: ClassVar[str]

    def rated(self) -> Mapping[str, str]:
        """What is rated, and what the numbers mean."""
        raise NotImplementedError

    def columns(self, ratings: Mapping[str, float]) -> dict[str, float]:
        """The columns of one row."""
        return {f"{self.column}.{name}": value for name, value in ratings.items()}

    def task(self) -> str:
        meaning = "\n".join(f"- {name}: {text}" if text else f"- {name}" for name, text in self.rated().items())
        return super().task().replace("DIMENSIONS\n", meaning + "\n")

    def schema(self, sample: Sample) -> dict[str, Any]:
        kinds: dict[str, Any] = {}
        for name in self.rated():
            # the reason stands first, so that the number follows from it
            kinds[f"{name}_reason"] = {"type": "string"}
            kinds[name] = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
        return {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}

    def read(self, sample: Sample, reply: str) -> dict[str, float] | None:
        """The last object of the reply that rates everything: a form that is echoed stands before its answer."""
        for fields in reversed(objects(reply)):
            ratings = {name: rating(fields.get(name)) for name in self.rated()}
            known = {name: value for name, value in ratings.items() if value is not None}
            if len(known) == len(ratings):
                return known
        return None

    @hookimpl
    def score(self, samples: Samples, run: Context) -> Outcome:
        left_out = {at: reason for at, sample in enumerate(samples) if (reason := self.unfit(sample))}
        rows: list[dict[str, float]] = [{}] * len(samples)
        failed: dict[int, str] = {}
        asked = [at for at in range(len(samples)) if at not in left_out]
        for at, ratings, error in self.asked(samples, asked, run):
            if error:
                failed[at] = error
            else:
                rows[at] = self.columns(ratings)
        names = [column.name for column in self.gives()]
        return Outcome({name: [row.get(name) for row in rows] for name in names}, left_out, failed)


class Quality(Rating):
    """The teacher rates how helpful and how correct an answer is, each from 0 to 9 with its reason; `quality` is the
    mean of both. What cannot be read as such a number is a failure with its reason, and never a number.

    After the quality gate of https://arxiv.org/abs/2406.10882.
    """

    prompt = "quality.md"
    column = "quality"

    def rated(self) -> Mapping[str, str]:
        return {"helpfulness": "", "correctness": ""}  # quality.md says what they mean

    def gives(self) -> Sequence[Column]:
        return [Column(name, UNIT, "higher") for name in ("quality", "quality.helpfulness", "quality.correctness")]

    def columns(self, ratings: Mapping[str, float]) -> dict[str, float]:
        return {"quality": sum(ratings.values()) / len(ratings), **super().columns(ratings)}


class StyleJudge(Rating):
    """The teacher rates declared dimensions of an answer's style, each from 0 to 9 with its reason: a column for each,
    to be clustered (`embed columns`), conditioned on (`select where`) or compared."""

    prompt = "style-judge.md"
    column = "style-judge"

    dimensions: Annotated[list[str], "NAME, or 'NAME: what 0 and 9 mean', one for each column; repeated"] = field(
        default_factory=lambda: list(DIMENSIONS)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [name for name, _ in map(_declared, self.dimensions)]
        if not names:
            raise ValueError("--dimensions names at least one")
        for name in names:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise ValueError(f"--dimensions {name!r}: a name is of letters, digits, '-' and '_'; ': ' ends it")
            if names.count(name) > 1 or name.removesuffix("_reason") in set(names) - {name}:
                raise ValueError(f"--dimensions names {name!r} twice")

    def rated(self) -> Mapping[str, str]:
        return dict(map(_declared, self.dimensions))

    def gives(self) -> Sequence[Column]:
        return [Column(f"style-judge.{name}", UNIT) for name in self.rated()]


def rating(value: Any) -> float | None:
    """A number on the scale, as a number or as nothing but a number in a text."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,3}(?:\.[0-9]{1,3})?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # NaN, which Python reads as JSON, is in no range
    return float(value) if LOWEST <= value <= HIGHEST else None


def _declared(dimension: str) -> tuple[str, str]:
    name, _, meaning = dimension.partition(":")
    return name.strip(), meaning.strip()
