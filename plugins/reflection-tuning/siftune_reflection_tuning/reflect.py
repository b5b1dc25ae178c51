"""`reflect instruction` and `reflect response`: the teacher criticises a sample and writes a better one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from siftune import Context, Fate, Sample, Samples, hookimpl
from siftune.asking import Asking

from .replies import readings, text, true

# how data sets write that there is no input
NO_INPUT = {"", "no input", "noinput", "<noinput>", "none", "n/a", "nothing"}


class Reflection(Asking):
    """What both have in common: what is asked for, and what becomes of every sample."""

    min_coverage = 0.8
    writes: ClassVar[tuple[str, ...]]  # the texts that the teacher gives

    @hookimpl
    def reflect(self, samples: Samples, run: Context) -> Iterator[Sample | Fate]:
        asked = []
        for position, sample in enumerate(samples):
            if reason := self.unfit(sample):
                yield Fate(position, left_out=reason)
            else:
                asked.append(position)
        for position, rewrite, error in self.asked(samples, asked, run):
            yield Fate(position, failed=error) if error else rewrite

    def input_of(self, sample: Sample) -> str:
        return "" if sample.input.strip().casefold().rstrip(".") in NO_INPUT else sample.input

    def schema(self, sample: Sample) -> dict[str, Any]:
        kinds: dict[str, Any] = {"critique": {"type": "string"}, "already_good": {"type": "boolean"}}
        for name in self.writes:
            kinds[name] = {"type": "string"}
            if name == "instruction" and self.input_of(sample):
                kinds["input"] = {"type": "string", "enum": ["keep", "merge"]}
        return {
            "type": "object",
            "properties": kinds,
            "required": list(kinds),
            "additionalProperties": False,
        }

    def read(self, sample: Sample, reply: str) -> Sample | None:
        """The first reading of a reply that has all that is needed. All new texts are taken, or none."""
        for fields in readings(reply):
            if true(fields.get("already_good")):
                return sample.rewrite()  # the same again, which the run counts as already good
            written = {name: text(fields.get(name)) for name in self.writes}
            if all(written[name] == getattr(sample, name).strip() for name in self.writes):
                return sample.rewrite()
            if all(written.values()):
                return self._written(sample, written, fields)
        return None

    def _written(self, sample: Sample, written: dict[str, str], fields: dict[str, Any]) -> Sample:
        raise NotImplementedError


class Response(Reflection):
    """The teacher judges the response and writes a better one to the same instruction, or finds it good
    already. Of a conversation, the last response. Response reflection of https://arxiv.org/abs/2402.10110."""

    prompt = "response.md"
    writes = ("response",)

    def _written(self, sample: Sample, written: dict[str, str], fields: dict[str, Any]) -> Sample:
        return sample.rewrite(response=written["response"])


class Instruction(Reflection):
    """The teacher judges the instruction and writes a more demanding one together with its answer, or finds
    the pair good already. Of a conversation, the last turn. An input is kept beside the new instruction, or
    merged into it. Instruction reflection of https://arxiv.org/abs/2402.10110."""

    prompt = "instruction.md"
    writes = ("instruction", "response")

    def _written(self, sample: Sample, written: dict[str, str], fields: dict[str, Any]) -> Sample:
        held, named = self.input_of(sample), str(fields.get("input")).strip().casefold()
        # where the reply does not say, the new instruction shows whether it stands without the input
        merged = named == "merge" or (named != "keep" and held in written["instruction"])
        return sample.rewrite(
            instruction=written["instruction"],
            response=written["response"],
            input="" if merged else held,
        )
