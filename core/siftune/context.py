"""What a hook sees of the run: its folder, and ways to say how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .teacher import Chat


def _nothing(*_: Any, **__: Any) -> None:
    """A run that leaves nothing behind and says nothing."""


@dataclass
class Context:
    """Handed to hooks as `run`.

    `folder` belongs to the step and survives a kill: a checkpoint left there is found again by the next try.
    """

    folder: Path
    say: Callable[[str], None] = _nothing
    warn: Callable[[str], None] = _nothing
    advance: Callable[..., None] = _nothing  # advance(rows=0, tokens=0, failed=0)
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    chat_with: Callable[[str, str | None], Chat] | None = None

    def note(self, **figures: Any) -> None:
        """Keep figures about the step (inertia, radius, ...) for its `step.json` and the report."""
        self.figures.update(figures)

    def chat(self, teacher: str, model: str | None) -> Chat:
        """The run's one client for this teacher; the run starts, owns and stops a server where one is needed."""
        if self.chat_with is None:
            from .teacher import Chat

            return Chat(teacher, model)
        return self.chat_with(teacher, model)
