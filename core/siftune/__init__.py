"""siftune: find the few instruction samples worth training on, improve them, and prove that it helped."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run, apply, run
    from .budget import Budget
    from .context import Context
    from .errors import CoverageError, UserError
    from .hookspecs import HOOKS, hookimpl
    from .methods import Evaluation, Fate, Method, Outcome, Selection, Trained
    from .recipe import Recipe, Step
    from .samples import Column, Pool, Sample, Samples

__version__ = "0.1.0"

__all__ = [
    "HOOKS",
    "Budget",
    "Column",
    "Context",
    "CoverageError",
    "Evaluation",
    "Fate",
    "Method",
    "Outcome",
    "Pool",
    "Recipe",
    "Run",
    "Sample",
    "Samples",
    "Selection",
    "Step",
    "Trained",
    "UserError",
    "apply",
    "hookimpl",
    "run",
]

# Each name is imported when it is first asked for: `siftune --help` needs none of them.
_HOME = {
    "api": ("Run", "apply", "run"),
    "budget": ("Budget",),
    "context": ("Context",),
    "errors": ("CoverageError", "UserError"),
    "hookspecs": ("HOOKS", "hookimpl"),
    "methods": ("Evaluation", "Fate", "Method", "Outcome", "Selection", "Trained"),
    "recipe": ("Recipe", "Step"),
    "samples": ("Column", "Pool", "Sample", "Samples"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module 'siftune' has no attribute {name!r}")
