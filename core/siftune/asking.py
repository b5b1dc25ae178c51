"""Asking a teacher about samples, and reading what it writes: what methods with a teacher have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, ClassVar

from .context import Context
from .methods import Method
from .samples import Sample, Samples
from .teacher import Answer, Request

WARMER = 0.4  # what each further attempt adds to the temperature, up to 1


class Asking(Method):
    """The options of a teacher, and how often it is asked. A subclass says what it is told, and what a reply means."""

    requires = ("teacher",)
    uses = ("asking", "teacher", "endpoint")
    prompt: ClassVar[str]  # the file in the method's package that says what to do
    shows_response: ClassVar[bool] = True

    teacher: Annotated[str | None, "address of an OpenAI-compatible server, or vllm:MODEL"] = None
    teacher_model: Annotated[str | None, "its model; may be left out where it serves only one"] = None
    temperature: Annotated[float, "of the first attempt; further ones are warmer"] = 0.0
    max_tokens: Annotated[int, "longest answer; one that is cut there counts as none"] = 2048
    attempts: Annotated[int, "how often a sample is sent whose answer cannot be read"] = 3

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_tokens < 1:
            raise ValueError("--attempts and --max-tokens are at least 1")
        if not 0 <= self.temperature <= 2:
            raise ValueError("--temperature is between 0 and 2")

    def task(self) -> str:
        """What the teacher is told to do."""
        return _text(type(self).__module__.partition(".")[0], self.prompt)

    def schema(self, sample: Sample) -> dict[str, Any] | None:
        """The JSON schema of the answer; None for free text."""
        return None

    def input_of(self, sample: Sample) -> str:
        """The input as the teacher is shown it."""
        return sample.input

    def read(self, sample: Sample, reply: str) -> Any:
        """What a reply means; None if it means nothing, and is asked for again."""
        raise NotImplementedError

    def unfit(self, sample: Sample) -> str:
        """Why a sample cannot be asked about; empty if it can."""
        if not sample.prompt.strip():
            return "no instruction"
        return "" if sample.response.strip() or not self.shows_response else "no response"

    def asked(self, samples: Samples, positions: list[int], run: Context) -> Iterator[tuple[int, Any, str]]:
        """Each position with what was read of its answer, or None and the reason; in the order of answers."""
        assert self.teacher is not None
        chat = run.chat(self.teacher, self.teacher_model)
        known = 0
        for attempt in range(self.attempts):
            again = []
            for answer in chat.ask(self._request(samples[at], at, attempt) for at in positions):
                run.advance(tokens=answer.tokens)
                known += answer.cached
                failed = self._failed(answer)
                found = None if failed else self.read(samples[answer.key], answer.text.rpartition("</think>")[2])
                if found is None and not failed and attempt + 1 < self.attempts:
                    again.append(answer.key)
                    continue
                last = f"the last is {answer.text[:60]!r}" if answer.text.strip() else "the last is empty"
                unread = f"no answer that can be read in {self.attempts} attempts (--attempts); {last}"
                yield answer.key, found, failed or ("" if found is not None else unread)
            positions = again
        if known:  # whichever server gave them: an address that nobody listens at would do
            run.say(f"{known:,} answers of this model were known, and were not asked for again")

    def _request(self, sample: Sample, position: int, attempt: int) -> Request:
        return Request(
            position,
            [{"role": "user", "content": f"{self.task()}\n{self._shown(sample)}"}],
            self.schema(sample),
            temperature=round(max(self.temperature, min(1.0, self.temperature + WARMER * attempt)), 6),
            max_tokens=self.max_tokens,
            attempt=attempt,
        )

    def _failed(self, answer: Answer) -> str:
        """Why an answer is none, where asking again would cost the same and give the same."""
        if answer.error:
            return answer.error
        if answer.finish_reason == "length":
            return f"the answer was cut at {self.max_tokens} tokens; raise --max-tokens"
        return "the teacher's filter stopped the answer" if answer.finish_reason == "content_filter" else ""

    def _shown(self, sample: Sample) -> str:
        """The sample as the teacher reads it, each part in a tag of its own."""
        last = max(i for i, message in enumerate(sample.messages) if message["role"] == "user")
        before = [message for message in sample.messages[:last] if message["content"]]
        parts = {
            "earlier_turns": "\n\n".join(f"{message['role']}: {message['content']}" for message in before),
            "instruction": sample.instruction,
            "input": self.input_of(sample),
            "response": sample.response if self.shows_response else "",
        }
        return "\n".join(f"<{tag}>\n{content}\n</{tag}>" for tag, content in parts.items() if content)


def objects(said: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, whatever stands around them."""
    decoder = json.JSONDecoder(strict=False)  # some servers let raw line breaks into strings
    found, at = [], said.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):  # an integer of thousands of digits is a plain ValueError
            end = at + 1
        else:
            found.append(value)
        at = said.find("{", end)
    return found


@cache
def _text(package: str, prompt: str) -> str:
    return (files(package) / prompt).read_text(encoding="utf-8")
