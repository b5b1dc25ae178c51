"""What a teacher's reply may mean: JSON where it was made to write it, and whatever it wrote elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from siftune.asking import objects

# "[New Answer]" anywhere; where there are no brackets, "**Better answer:**" at the start of a line
NAME = r"(?:new|better|improved)\s+(instruction|answer|response)"
BRACKETED = re.compile(rf"\*{{0,2}}\[\s*{NAME}\s*\]\*{{0,2}}:?\*{{0,2}}", re.IGNORECASE)
AT_LINE = re.compile(rf"^[#*\s\d.)-]*{NAME}[*\s]*:[*]{{0,2}}", re.IGNORECASE | re.MULTILINE)
# only the bracketed word: "the end" and "Endangered" are part of an answer
END = re.compile(r"\*{0,2}\[\s*end\s*\]\*{0,2}", re.IGNORECASE)
# an echo of the form that was asked for, or nothing; whole texts, for "check your answer" is an answer
EMPTY = {"", "...", "n/a", "your answer", "your response", "your instruction"}


def readings(reply: str) -> Iterator[dict[str, Any]]:
    """Every way to read a reply as named fields, the likeliest first.

    Where the form is echoed before it is filled in, the filled one stands last; so the last is tried first.
    """
    yield from reversed(objects(reply))
    yield from reversed(objects(_escaped(reply)))
    marked = _marked(reply)
    if marked:
        yield marked


def text(value: Any) -> str:
    """The text of a field without blanks around it; empty if it is no text or only holds its place."""
    if not isinstance(value, str):
        return ""
    return "" if value.strip(" \n<>[]*\"'").casefold().removesuffix(".") in EMPTY else value.strip()


def true(value: Any) -> bool:
    """Whether a field says yes."""
    return value is True or (isinstance(value, str) and value.strip().casefold() in ("true", "yes"))


def _escaped(said: str) -> str:
    r"""Backslashes that JSON does not know, as in LaTeX's \( and \alpha, made into ones that it does."""
    return re.sub(r"\\(?:([\"\\/bfnrt]|u[0-9a-fA-F]{4})|)", lambda m: m[0] if m[1] else r"\\", said)


def _marked(said: str) -> dict[str, str]:
    """The last filled-in section of each name, from its mark to [End], the next mark, or the end."""
    marks = [(m, _field(m)) for m in BRACKETED.finditer(said)]
    bracketed = {field for _, field in marks}
    marks += [(m, _field(m)) for m in AT_LINE.finditer(said) if _field(m) not in bracketed]
    marks.sort(key=lambda mark: mark[0].start())
    ends = [*(mark.start() for mark, _ in marks), len(said)][1:]
    sections: dict[str, str] = {}
    for (mark, field), end in zip(marks, ends, strict=True):
        section = said[mark.end() : end]
        closed = list(END.finditer(section))
        # the answer itself may speak of [End], so the last one closes it
        section = section[: closed[-1].start()] if closed else re.sub(r"\n\s*\d+[.)]\s*$", "", section)
        if text(section):
            sections[field] = text(section)
    return sections


def _field(mark: re.Match[str]) -> str:
    return "instruction" if mark[1].lower() == "instruction" else "response"
