"""Which tasks there are, told before the run: a misspelt one must not be found out after the training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from siftune import UserError
from siftune.errors import suggestion

QUICKSTART = Path(__file__).parent / "quickstart"


def manager(folder: Path | None, everything: bool, **told: Any) -> Any:
    """lm-eval's index of tasks: the bundled group, a folder of one's own and, which takes seconds, its own.

    What is told reaches the functions that make the bundled rows.
    """
    from lm_eval.tasks import TaskManager

    folders = [QUICKSTART, *([folder] if folder else [])]
    return TaskManager(include_path=folders, include_defaults=everything, metadata=told)


@lru_cache
def check(names: Sequence[str], folder: Path | None) -> None:
    """Raises UserError for a task or group that there is not. Imports lm-eval only where it comes to that."""
    if all(_written(name, _files(folder)) for name in names):
        return
    known = manager(folder, everything=True).all_tasks
    for name in names:
        if name not in known:
            raise UserError(f"evaluate lm-eval: no task {name!r}.{_near(name, known)}")


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest of some ten thousand names; to list them would help nobody."""
    near = suggestion(name, known)
    return near if "Did you" in near else " lm-eval has a list: lm_eval ls tasks"


def _files(folder: Path | None) -> Iterator[Path]:
    found = find_spec("lm_eval")  # imports nothing
    assert found is not None and found.origin is not None
    for place in (QUICKSTART, folder, Path(found.origin).parent / "tasks"):
        yield from place.rglob("*.yaml") if place is not None else ()


def _written(name: str, files: Iterator[Path]) -> bool:
    """Whether a file says that it is this task or group, or is tagged so."""
    keys = rb"""(?:-|['"]?(?:task|group|tag)['"]?:)"""
    said = re.compile(rb"""^\s*%b\s*['"]?%b['"]?\s*$""" % (keys, re.escape(name.encode())), re.M)
    return any(said.search(file.read_bytes()) for file in files)
