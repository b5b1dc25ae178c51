"""A mistake of the person who types: one clear sentence, never a traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_ENDS = re.compile(r"^--|\.(toml|jsonl?|parquet)$")


class UserError(Exception):
    """Says who is at fault and what to type next."""


class CoverageError(UserError):
    """A step gave no value for too many of its rows."""


def near(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where something near is known, else nothing."""
    # what all options begin with, or files end in, makes none of them like another
    plain = {_ENDS.sub("", one): one for one in sorted(set(known))}
    found = difflib.get_close_matches(_ENDS.sub("", word), plain, n=1, cutoff=0.65)
    return f" Did you mean {plain[found[0]]!r}?" if found else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where something near is known, else ' Known: ...', else nothing."""
    known = sorted(set(known))
    if (said := near(word, known)) or not known:
        return said
    return " Known: " + ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") + "."
