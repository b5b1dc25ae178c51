"""registry.toml: every known method, installed or not, and the package that brings it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from . import shipped


@dataclass(frozen=True)
class Known:
    """One method of the registry."""

    hook: str
    name: str
    package: str
    summary: str
    paper: str = ""
    source: str = ""  # folder in this repository, or an address
    status: str = "official"


@cache
def everything() -> Mapping[str, Mapping[str, Known]]:
    """Known methods by hook and name."""
    text = shipped.path("registry.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return {
        hook: {name: Known(hook, name, **entry) for name, entry in methods.items()} for hook, methods in tables.items()
    }


def methods(hook: str) -> Mapping[str, Known]:
    """Known methods of a hook by name."""
    return everything().get(hook, {})


def packages() -> dict[str, list[Known]]:
    """Known methods by the package that brings them."""
    by_package: dict[str, list[Known]] = {}
    for hook in everything().values():
        for known in hook.values():
            by_package.setdefault(known.package, []).append(known)
    return by_package
