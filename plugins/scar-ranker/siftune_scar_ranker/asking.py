"""Asking a teacher about every row, and reading what it writes: what the methods of this package that have a teacher
have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, ClassVar

from siftune import Context, Method, Sample, Samples
from siftune.teacher import Answer, Request

WARMER = 0.4  # what each further attempt adds to the temperature, up to 1


class Asking(Method):
    """The options of a teacher, and how often it is asked."""

    requires = ("teacher",)
    uses = ("teacher", "endpoint")
    prompt: ClassVar[str]  # the file with the teacher's task
    shows_response: ClassVar[bool] = True

    teacher: Annotated[str | None, "address of an OpenAI-compatible server, or vllm:MODEL"] = None
    teacher_model: Annotated[str | None, "its model; may be left out where it serves only one"] = None
    temperature: Annotated[float, "of the first attempt; further ones are warmer"] = 0.0
    max_tokens: Annotated[int, "longest answer; one that is cut there is none"] = 2048
    attempts: Annotated[int, "how often a row is sent whose answer cannot be read"] = 3

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.max_tokens < 1:
            raise ValueError("--attempts and --max-tokens are at least 1")
        if not 0 <= self.temperature <= 2:
            raise ValueError("--temperature is between 0 and 2")

    def task(self) -> str:
        """What the teacher is told to do."""
        return text_of(self.prompt)

    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of its answer; None for free text."""
        return None

    def read(self, reply: str) -> Any:
        """What a reply means; None if it means nothing."""
        raise NotImplementedError

    def unfit(self, sample: Sample) -> str:
        """Why a row cannot be asked about."""
        if not sample.prompt.strip():
            return "no instruction"
        return "" if sample.response.strip() or not self.shows_response else "no response"

    def asked(self, samples: Samples, positions: list[int], run: Context) -> Iterator[tuple[int, Any, str]]:
        """Each position with what was read of its answer, or None and the reason; in the order of answers."""
        assert self.teacher is not None
        chat = run.chat(self.teacher, self.teacher_model)
        for attempt in range(self.attempts):
            again = []
            for answer in chat.ask(self._request(samples[at], at, attempt) for at in positions):
                run.advance(tokens=answer.tokens)
                error = self._failed(answer)
                found = None if error else self.read(answer.text.rpartition("</think>")[2])
                if found is None and not error and attempt + 1 < self.attempts:
                    again.append(answer.key)
                    continue
                begins = f"{answer.text[:60]!r}" if answer.text.strip() else "empty"
                unread = f"no answer that can be read in {self.attempts} attempts; the last is {begins}"
                yield answer.key, found, error or ("" if found is not None else unread)
            positions = again

    def _request(self, sample: Sample, position: int, attempt: int) -> Request:
        return Request(
            position,
            [{"role": "user", "content": f"{self.task()}\n{shown(sample, self.shows_response)}"}],
            self.schema(),
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


@cache
def text_of(prompt: str) -> str:
    """A file of the package with a task."""
    return (files(__package__) / prompt).read_text(encoding="utf-8")


def shown(sample: Sample, with_response: bool) -> str:
    """A row as the teacher reads it, each part in a tag of its own."""
    last = max(i for i, message in enumerate(sample.messages) if message["role"] == "user")
    before = [message for message in sample.messages[:last] if message["content"]]
    parts = {
        "earlier_turns": "\n\n".join(f"{message['role']}: {message['content']}" for message in before),
        "instruction": sample.instruction,
        "input": sample.input,
        "response": sample.response if with_response else "",
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
