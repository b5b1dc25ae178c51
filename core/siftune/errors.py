"""A mistake of the person who types: one clear sentence, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Says who is at fault and what to type next."""


class CoverageError(UserError):
    """A step gave no value for too many of its rows."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where something near is known, else ' Known: ...', else nothing."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if not known:
        return ""
    return " Known: " + ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") + "."
