"""Texts and figures of strangers made fit to be shown: cut, counted, and with nothing in them that acts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

# What a terminal would obey or an eye be misled by: control characters and overrides of writing direction.
_ACTS = {c: chr(0x2400 + c) for c in range(32) if chr(c) not in "\n\t"}
_ACTS |= {c: "\ufffd" for c in (*range(0x80, 0xA0), *range(0xD800, 0xE000))}
_ACTS |= {c: f"<U+{c:04X}>" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))} | {0x7F: "\u2421"}


def visible(text: str) -> str:
    """The text with everything that acts made a sign that can be seen."""
    return text.replace("\r\n", "\n").translate(_ACTS)


def shortened(text: str, most: int) -> tuple[str, int]:
    """The beginning of a text, fit to be shown, and how many characters were cut off."""
    # cutting a few characters would save less than saying so
    if len(text) <= most * 1.1:
        return visible(text), 0
    return visible(text[:most].rstrip()), len(text) - most


def number(value: Any) -> str:
    """A figure as a person reads it: four digits that count, thousands set apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return visible(str(value))
    if not math.isfinite(value):
        return "none"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def rows(count: int) -> str:
    """A number of rows in words."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def duration(seconds: float) -> str:
    """A time in the two units that count."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def alike(reasons: Iterable[str]) -> list[tuple[str, list[int]]]:
    """Reasons that differ in their numbers alone as one: `ifd … is not below 1`, and where it was given;
    the most frequent first."""
    places: dict[tuple[str, ...], list[int]] = {}
    words: dict[tuple[str, ...], list[str]] = {}
    for at, reason in enumerate(reasons):
        said = reason.split(" ")
        key = tuple("" if re.search(r"\d", word) else word for word in said)
        places.setdefault(key, []).append(at)
        shared = words.setdefault(key, said)
        words[key] = [old if old == new else "…" for old, new in zip(shared, said, strict=True)]
    found = [(" ".join(words[key]), at) for key, at in places.items()]
    return sorted(found, key=lambda one: -len(one[1]))
