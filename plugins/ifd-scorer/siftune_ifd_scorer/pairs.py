"""The two readings of a pair by our own rule: exactly the response's characters, the same tokens in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from siftune import Sample, Samples

if TYPE_CHECKING:
    from siftune.models import Encoded, Reader
    from siftune.prompts import Rendered, Template

# The request that r-IFD is defined with (Selective Reflection-Tuning, 2402.10110).
ASKED_BEFORE = (
    "Below is the response to an instruction, "
    "please guess the corresponding instruction for the given response.\n"
)
ASKED_AFTER = "\nGenerate the instruction for the above response."

EMPTY = "empty response"


@dataclass(frozen=True)
class Pair:
    """A text after what was asked, and alone; `cut` is how many tokens a length limit took."""

    conditioned: Encoded
    alone: Encoded
    cut: int = 0

    def edges(self) -> list[int]:
        """Characters of the response at which its scored tokens meet, first and last included; none where a
        reference counts tokens and not characters."""
        spans = self.conditioned.offsets
        return [spans[0][0], *(end for _, end in spans)] if spans else []


Row = (
    list[tuple[int, Pair]] | str
)  # the pairs of a sample with their turns, counted from 1; or why there are none


def forward(
    name: str | None, max_length: int | None, samples: Samples, reader: Reader, *, last: bool
) -> list[Row]:
    """Every assistant turn after the whole context before it. With `last`, its fate is the sample's."""
    from siftune import prompts

    template = prompts.template(name, reader.tokenizer)
    every = [[_turn(sample, turn, template) for turn in range(sample.turns)] for sample in samples]
    readable = [one for turns in every for one in turns if not isinstance(one, str)]
    encoded = iter(reader.encode(readable, template.special, max_length))
    limit = min(max_length or reader.context, reader.context)
    rows: list[Row] = []
    for turns in every:
        fates = [one if isinstance(one, str) else paired(next(encoded), limit) for one in turns]
        good: Row = [(at, one) for at, one in enumerate(fates, 1) if not isinstance(one, str)]
        why = next((one for one in reversed(fates) if isinstance(one, str)), EMPTY)
        rows.append(why if not good or (last and isinstance(fates[-1], str)) else good)
    return rows


def _turn(sample: Sample, turn: int, template: Template) -> Rendered | str:
    """One assistant turn in its context, or why it cannot be read."""
    from siftune import prompts

    at = [i for i, message in enumerate(sample.messages) if message["role"] == "assistant"][turn]
    if not sample.messages[at]["content"].strip():
        return EMPTY
    if not any(
        message["role"] != "system" and message["content"].strip() for message in sample.messages[:at]
    ):
        return "nothing is asked before the response"
    try:
        return template.pair(sample, turn)
    except prompts.Refused as error:
        return str(error)


def paired(one: Encoded, limit: int) -> Pair | str:
    """Both readings of the same tokens, or why there are none."""
    if not len(one):
        if one.cut:
            return f"what is asked fills the {limit:,} tokens that are read at once"
        return "the tokenizer makes no token of the response"
    conditioned, alone = one.alone()
    if not len(conditioned):
        return "one token, which nothing stands before when it is read alone"
    return Pair(conditioned, alone, one.cut)


def backward(name: str | None, max_length: int | None, samples: Samples, reader: Reader) -> list[Row]:
    """The last instruction after its response and the request to guess it. A response that would push the
    instruction out of the context is cut at its end."""
    from siftune import prompts

    template = prompts.template(name, reader.tokenizer)
    limit = min(max_length or reader.context, reader.context)
    rows: list[Row] = []
    asked: list[Rendered] = []
    places: list[int] = []
    for at, sample in enumerate(samples):
        if not sample.response.strip() or not sample.prompt.strip():
            rows.append("empty instruction" if sample.response.strip() else EMPTY)
            continue
        try:
            asked.append(_asked(template, sample.response, sample.prompt))
        except prompts.Refused as error:
            rows.append(str(error))
            continue
        rows.append([])
        places.append(at)
    for at, text, one in zip(places, asked, reader.encode(asked, template.special, limit), strict=True):
        shorter, cut = _shortened(text, one, samples[at], template, reader, limit)
        found = paired(shorter, limit)
        if shorter.cut:
            rows[at] = f"the instruction fills the {limit:,} tokens that are read at once"
        else:
            rows[at] = (
                found
                if isinstance(found, str)
                else [(samples[at].turns, Pair(found.conditioned, found.alone, cut))]
            )
    return rows


def _asked(template: Template, response: str, instruction: str) -> Rendered:
    from siftune.prompts import Rendered

    before = template.prompt([{"role": "user", "content": ASKED_BEFORE + response + ASKED_AFTER}])
    return Rendered(before + instruction, len(before), len(before) + len(instruction))


def _shortened(
    text: Rendered, one: Encoded, sample: Sample, template: Template, reader: Reader, limit: int
) -> tuple[Encoded, int]:
    """The reading with as much of the response as leaves room for the instruction, and how much that cut."""
    if not one.cut:
        return one, 0
    words = reader.tokenizer.backend_tokenizer.encode(sample.response, add_special_tokens=False)
    ends = [end for _, end in words.offsets]
    over, cut = one.start + len(one) + one.cut - limit, 0
    # a text that is cut is tokenised anew where it was cut, which may take a token or two more
    for _ in range(4):
        cut += over
        if cut >= len(ends):
            break
        shorter = sample.response[: ends[len(ends) - cut - 1]]
        one = reader.encode([_asked(template, shorter, sample.prompt)], template.special, limit)[0]
        if not one.cut:
            return one, cut
        over = max(one.start + len(one) + one.cut - limit, 1)
    return one, cut
