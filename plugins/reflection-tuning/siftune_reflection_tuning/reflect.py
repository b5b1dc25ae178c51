"""`reflect instruction` and `reflect response`: the teacher criticises a sample and writes a better one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, ClassVar

from siftune import Context, Fate, Method, Sample, Samples, hookimpl
from siftune.teacher import Answer, Request

from .replies import readings, text, true

# how data sets write that there is no input
NO_INPUT = {"", "no input", "noinput", "<noinput>", "none", "n/a", "nothing"}
WARMER = 0.4  # what each further attempt adds to the temperature, up to 1


class Reflection(Method):
    """What both have in common: the asking, and what becomes of every sample."""

    requires = ("teacher",)
    uses = ("teacher", "endpoint")
    min_coverage = 0.8
    prompt: ClassVar[str]  # the file with the teacher's task
    writes: ClassVar[tuple[str, ...]]  # the texts that it gives

    teacher: Annotated[str | None, "address of an OpenAI-compatible server, or vllm:MODEL"] = None
    teacher_model: Annotated[str | None, "its model; may be left out where it serves only one"] = None
    temperature: Annotated[float, "of the first attempt; further ones are warmer"] = 0.0
    max_tokens: Annotated[int, "longest answer; one that is cut there is no rewrite"] = 2048
    attempts: Annotated[int, "how often a sample is sent whose answer cannot be read"] = 3

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_tokens < 1:
            raise ValueError("--attempts and --max-tokens are at least 1")
        if not 0 <= self.temperature <= 2:
            raise ValueError("--temperature is between 0 and 2")

    @hookimpl
    def reflect(self, samples: Samples, run: Context) -> Iterator[Sample | Fate]:
        assert self.teacher is not None
        chat = run.chat(self.teacher, self.teacher_model)
        asked = []
        for position, sample in enumerate(samples):
            if reason := _unfit(sample):
                yield Fate(position, left_out=reason)
            else:
                asked.append(position)
        for attempt in range(self.attempts):
            again = []
            for answer in chat.ask(self._request(samples[at], at, attempt) for at in asked):
                run.advance(tokens=answer.tokens)
                failed = self._failed(answer)
                rewrite = None if failed else self._rewrite(samples[answer.key], answer.text)
                if rewrite is not None:
                    yield rewrite
                elif failed or attempt + 1 == self.attempts:
                    last = f"the last is {answer.text[:60]!r}" if answer.text else "the last is empty"
                    unread = f"no answer that can be read in {self.attempts} attempts (--attempts); {last}"
                    yield Fate(answer.key, failed=failed or unread)
                else:
                    again.append(answer.key)
            asked = again

    def _request(self, sample: Sample, position: int, attempt: int) -> Request:
        content = f"{_task(self.prompt)}\n{_shown(sample)}"
        warmer = max(self.temperature, min(1.0, self.temperature + WARMER * attempt))
        return Request(
            position,
            [{"role": "user", "content": content}],
            self._schema(sample),
            temperature=round(warmer, 6),
            max_tokens=self.max_tokens,
            attempt=attempt,
        )

    def _schema(self, sample: Sample) -> dict[str, Any]:
        kinds: dict[str, Any] = {"critique": {"type": "string"}, "already_good": {"type": "boolean"}}
        for name in self.writes:
            kinds[name] = {"type": "string"}
            if name == "instruction" and _input(sample):
                kinds["input"] = {"type": "string", "enum": ["keep", "merge"]}
        return {
            "type": "object",
            "properties": kinds,
            "required": list(kinds),
            "additionalProperties": False,
        }

    def _failed(self, answer: Answer) -> str:
        """Why an answer is none, where asking again would cost the same and give the same."""
        if answer.error:
            return answer.error
        if answer.finish_reason == "length":
            return f"the answer was cut at {self.max_tokens} tokens; raise --max-tokens"
        return "the teacher's filter stopped the answer" if answer.finish_reason == "content_filter" else ""

    def _rewrite(self, sample: Sample, reply: str) -> Sample | None:
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
        held, named = _input(sample), str(fields.get("input")).strip().casefold()
        # where the reply does not say, the new instruction shows whether it stands without the input
        merged = named == "merge" or (named != "keep" and held in written["instruction"])
        return sample.rewrite(
            instruction=written["instruction"],
            response=written["response"],
            input="" if merged else held,
        )


@cache
def _task(prompt: str) -> str:
    return (files(__package__) / prompt).read_text(encoding="utf-8")


def _unfit(sample: Sample) -> str:
    """Why there is nothing to reflect on."""
    if not sample.prompt.strip():
        return "no instruction"
    return "" if sample.response.strip() else "no response"


def _input(sample: Sample) -> str:
    return "" if sample.input.strip().casefold().rstrip(".") in NO_INPUT else sample.input


def _shown(sample: Sample) -> str:
    """The sample as the teacher reads it, each part in a tag of its own."""
    last = max(i for i, message in enumerate(sample.messages) if message["role"] == "user")
    before = [message for message in sample.messages[:last] if message["content"]]
    said = "\n\n".join(f"{message['role']}: {message['content']}" for message in before)
    parts = {
        "earlier_turns": said,
        "instruction": sample.instruction,
        "input": _input(sample),
        "response": sample.response,
    }
    return "\n".join(f"<{tag}>\n{content}\n</{tag}>" for tag, content in parts.items() if content)
