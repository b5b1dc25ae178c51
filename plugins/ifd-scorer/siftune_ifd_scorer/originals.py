"""The two readings of a pair as the three original programs take them: prefixes, limits, boundaries.

A span begins where they count it: after as many tokens as the prefix has when it is encoded by itself.
Where a vocabulary merges over a boundary, or ends a text with a token of its own, that is not exactly the
response; it is what the published numbers are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from siftune import Sample, Samples

from .pairs import ASKED_AFTER, ASKED_BEFORE, Pair, Row

if TYPE_CHECKING:
    from siftune.models import Encoded, Reader

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# (without an input, with one): what stands before the response, which follows without a gap
PROMPTS = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n{instruction}\n\n### Response:",
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    ),
    "wiz": ("{instruction}\n\n### Response:", "{instruction}\n{input}\n\n### Response:"),
    "vicuna": (
        VICUNA + " USER: {instruction} ASSISTANT:",
        VICUNA + " USER: {instruction}\nInput:\n{input} ASSISTANT:",
    ),
    "none": ("{instruction}\n", "{instruction}\n{input}\n"),
}


@dataclass(frozen=True)
class Original:
    """Constants of one program: `lead` stands before the response in the reading alone, and `allowance` is
    what the limit of that reading grows by, meant as the tokens of the lead and of what opens a text."""

    templates: tuple[str, ...]  # the first is its own
    max_length: int
    lead: dict[str, str]
    allowance: dict[str, int]


ORIGINALS = {
    "cherry": Original(
        ("alpaca", "vicuna", "wiz"),
        512,
        {"alpaca": "### Response:", "wiz": "### Response:", "vicuna": "ASSISTANT:"},
        {"alpaca": 4, "wiz": 4, "vicuna": 6},
    ),
    "superfiltering": Original(("none",), 1024, {"none": ""}, {"none": 1}),
    "reflection": Original(
        ("vicuna", "wiz", "alpaca"),
        2048,
        dict.fromkeys(("vicuna", "wiz", "alpaca"), ""),
        dict.fromkeys(("vicuna", "wiz", "alpaca"), 1),
    ),
}


def check(reference: str, template: str | None, *, reverse: bool) -> None:
    """Raises ValueError for what the program does not know."""
    if reverse and reference != "reflection":
        raise ValueError(f"{reference} has no r-IFD; --reference reflection has")
    known = ORIGINALS[reference].templates
    if template not in (None, "auto", *known):
        raise ValueError(
            f"--reference {reference} has no template {template!r}; give --template {' or '.join(known)}"
        )


def forward(
    reference: str, template: str | None, max_length: int | None, samples: Samples, reader: Reader
) -> list[Row]:
    """IFD's readings: response after prompt, and response after the program's lead."""
    original = ORIGINALS[reference]
    name = original.templates[0] if template in (None, "auto") else str(template)
    limit = max_length or original.max_length
    encoder = Encoder(reader)
    rows: list[Row] = []
    for sample in samples:
        problem = _unread(sample)
        if problem or not sample.response:
            rows.append(problem or "empty response")
            continue
        prompt = _filled(name, sample.instruction, sample.input)
        taken = min(encoder.count(prompt), limit)
        lead, room = original.lead[name], limit - taken + original.allowance[name]
        alone = encoder.reading(lead, sample.response, room)
        conditioned = encoder.reading(prompt, sample.response, limit)
        # its length check counts the tokens that are read alone, which overshoot where the lead is shorter
        # than the allowance
        too_long = reference == "cherry" and (taken >= limit or taken + len(alone) > limit)
        rows.append(_row(conditioned, alone, "longer than the program reads" if too_long else ""))
    return rows


def backward(template: str | None, max_length: int | None, samples: Samples, reader: Reader) -> list[Row]:
    """r-IFD's readings: instruction with input after the response and a request, and alone."""
    original = ORIGINALS["reflection"]
    name = original.templates[0] if template in (None, "auto") else str(template)
    limit = max_length or original.max_length
    encoder = Encoder(reader)
    rows: list[Row] = []
    for sample in samples:
        problem = _unread(sample)
        if problem or not sample.response:
            rows.append(problem or "empty response")
            continue
        prompt = _filled(name, ASKED_BEFORE + sample.response + ASKED_AFTER, "")
        target = sample.instruction + sample.input
        alone = encoder.reading("", target, limit - min(encoder.count(prompt), limit) + 1)
        # it looks for the last place where the instruction stands, which may be inside the input
        text = prompt + target
        at = text.rfind(sample.instruction)
        conditioned = encoder.reading(text[:at], text[at:], limit)
        rows.append(_row(conditioned, alone, ""))
    return rows


def _unread(sample: Sample) -> str:
    """The programs read one instruction and one response."""
    roles = [message["role"] for message in sample.messages]
    return (
        ""
        if roles == ["user", "assistant"]
        else "the original program reads one instruction and one response"
    )


def _row(conditioned: Encoded, alone: Encoded, problem: str) -> Row:
    if problem:
        return problem
    if not len(conditioned):
        return "no token of it is within the length that the program reads"
    if not len(alone):
        return "no token of it has anything before it when the program reads it alone"
    return [(1, Pair(conditioned, alone, conditioned.cut))]


def _filled(name: str, instruction: str, input: str) -> str:
    """The variant with an input wherever there is one, were it a blank."""
    without, with_input = PROMPTS[name]
    first, rest = (with_input if input else without).split("{instruction}")
    return first + instruction + (rest.replace("{input}", input, 1) if input else rest)


class Encoder:
    """A tokenizer as the programs call it: special tokens always, truncation at the right."""

    def __init__(self, reader: Reader) -> None:
        from siftune.readers import clean

        self._words = reader.tokenizer.backend_tokenizer
        self._clean = clean

    def count(self, text: str) -> int:
        """Tokens of a text with its special tokens."""
        return len(self._words.encode(self._clean(text), add_special_tokens=True).ids)

    def reading(self, before: str, text: str, limit: int) -> Encoded:
        """`text` scored after `before`, whose length in tokens is where scoring starts."""
        from siftune.readers import Encoded

        whole = self._words.encode(self._clean(before + text), add_special_tokens=True)
        ids, added = whole.ids, whole.special_tokens_mask
        start = max(self.count(before), 1) if before else 1
        total = len(ids)
        if total > limit:  # special tokens stay, words go
            head = next((i for i, one in enumerate(added) if not one), total)
            tail = next((i for i, one in enumerate(reversed(added)) if not one), total)
            keep = max(limit - tail, head)
            ids = [*ids[:keep], *ids[total - tail :]]
        end = max(len(ids), start)
        return Encoded(np.array(ids, np.int64), start, end, [], cut=total - len(ids))
