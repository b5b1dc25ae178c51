"""`score scar`: how consistent the style of an answer is, by a ranker that learned it from answers of LLMs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from siftune import Column, Context, Method, Outcome, Sample, Samples, hookimpl

if TYPE_CHECKING:
    from .ranker import Pair, Ranker

STRANGE = 0.05  # share of rows in languages that the ranker has not learned, above which a step warns
FEW = 5


class Scar(Method):
    """Style consistency by a trained ranker (SCAR): the more surprising an answer is not, and the more it is
    worded as an LLM words, the higher.

    A score has no unit: it compares answers that one ranker has read, and nothing else. Read is the last
    answer after all that the user has said, see `pair_of`.
    """

    reads: ClassVar[str] = "ranker"
    requires: ClassVar[Sequence[str]] = ("model",)
    uses: ClassVar[Sequence[str]] = ("encoding",)
    shard: ClassVar[int] = 512

    model: Annotated[str | None, "ranker: a hub id, a folder, or what train scar-ranker has left"] = None
    models: Annotated[list[str], "GROUP=RANKER for groups that --model shall not read, by commas or repeated"] = field(
        default_factory=list
    )
    group: Annotated[str | None, "column that tells the groups (input.NAME for one that the rows came with)"] = None
    max_length: Annotated[int, "tokens read of an instruction, and of an answer; at most what the encoder takes"] = 512
    dtype: Annotated[str | None, "number format of the encoder: float32 or bfloat16"] = None
    device: Annotated[str | None, "where the ranker runs: cpu, cuda, cuda:1"] = None

    def __post_init__(self) -> None:
        if bool(self.models) != (self.group is not None):
            raise ValueError("--models GROUP=RANKER and --group COLUMN go together")
        if self.max_length < 8:
            raise ValueError("--max-length is at least 8")
        self._named()

    def _named(self) -> dict[str, str]:
        """Rankers by group."""
        found: dict[str, str] = {}
        for one in (part for told in self.models for part in told.split(",")):
            name, equals, model = one.partition("=")
            if not (equals and name.strip() and model.strip()):
                raise ValueError(f"--models {one!r} is not GROUP=RANKER")
            if name.strip() in found:
                raise ValueError(f"--models names the group {name.strip()!r} twice")
            found[name.strip()] = model.strip()
        return found

    def needs(self) -> Sequence[str]:
        return [] if self.group is None else [self.group]

    def also_reads(self) -> Sequence[str]:
        return list(self._named().values())

    def gives(self) -> Sequence[Column]:
        ranked = Column("scar", "", "higher", percentile=True, within=self.group or "")
        return [ranked, Column("scar.cut", "tokens"), Column("scar.language")]

    @hookimpl
    def score(self, samples: Samples, run: Context) -> Outcome:
        from .languages import language
        from .ranker import ranker

        values = np.zeros(len(samples))
        cut = np.zeros(len(samples), np.int64)
        pairs = [pair_of(sample) for sample in samples]
        told = [language(answer) for _, answer in pairs]
        # what is too short to tell may have been asked in a language
        told = [language(pairs[at][0]) if one == "und" else one for at, one in enumerate(told)]
        left_out = {at: "empty response" if not y.strip() else "nothing is asked before the response"
                    for at, (x, y) in enumerate(pairs) if not (x.strip() and y.strip())}  # fmt: skip
        strange: Counter[str] = Counter()
        readers = self._readers(samples)
        for model, rows in readers.items():
            reader = ranker(model, self.dtype, self.device, self.max_length)
            rows = [at for at in rows if at not in left_out]
            values[rows], cut[rows] = self._read(reader, [pairs[at] for at in rows], run)
            known = reader.languages | {"und"}
            if reader.languages:
                strange.update(told[at] for at in rows if told[at] not in known)
        self._tell(samples, strange, run)
        failed = {int(at): "the ranker gave a score that is no number" for at in np.flatnonzero(~np.isfinite(values))}
        run.note(cut=run.figures.get("cut", 0) + int((cut > 0).sum()))
        return Outcome({"scar": values, "scar.cut": cut, "scar.language": told}, left_out, failed)

    def _readers(self, samples: Samples) -> dict[str, list[int]]:
        """The rows of each ranker."""
        assert self.model is not None
        found: dict[str, list[int]] = {}
        named = self._named()
        groups = [None] * len(samples) if self.group is None else samples.column(self.group).tolist()
        for at, group in enumerate(groups):
            found.setdefault(named.get(written(group), self.model), []).append(at)
        return found

    def _read(self, reader: Ranker, pairs: Sequence[Pair], run: Context) -> Any:
        if reader.words.limit < self.max_length and "max_length" not in run.figures:
            run.say(f"{reader.name} takes {reader.words.limit} tokens at most, not {self.max_length}")
            run.note(max_length=reader.words.limit)
        return reader.scores(pairs, run.advance)

    def _tell(self, samples: Samples, strange: Counter[str], run: Context) -> None:
        """What scores may be compared with, once, and where the ranker was not trained, once that is so."""
        figures = run.figures
        if "compared" not in figures:
            if self.models:
                run.warn(
                    "every ranker has a scale of its own: compare scores inside a group only, by "
                    f"--budget '... per {self.group}', or scar.percentile in the table"
                )
            else:
                run.say("these scores compare with each other, not with those of another ranker")
            run.note(compared=f"within {self.group}" if self.models else f"under {self.model}")
        seen = figures.get("read", 0) + len(samples)
        counts = Counter(figures.get("languages_not_learned", {})) + strange
        total = counts.total()
        if total >= FEW and total > STRANGE * seen and "warned_of_languages" not in figures:
            most = ", ".join(f"{name} ({count})" for name, count in counts.most_common(3))
            run.warn(
                f"{total} of the first {seen} rows are in languages that the ranker was not trained on: {most}; "
                "their scores say little. See scar.language, and name a ranker of their own: --models"
            )
            run.note(warned_of_languages=True)
        run.note(read=seen, languages_not_learned=dict(counts))


def pair_of(sample: Sample) -> tuple[str, str]:
    """What a ranker reads: the last answer, and all that the user has said before it, joined by blank lines.

    Earlier answers and the system message are left out: rankers are trained on an instruction and its answer.
    """
    asked = [message["content"] for message in sample.messages if message["role"] == "user"]
    return "\n\n".join(text for text in asked if text), sample.response


def written(value: Any) -> str:
    """A value of a column as the input has it: a column of numbers is of floats, and its 3.0 is 3."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
