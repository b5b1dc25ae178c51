"""Imports go downward or sideways inside a layer; a plugin imports siftune, and never another plugin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "siftune"

# from the top; imports inside functions count, those for type checking do not
LAYERS = [
    {"__main__"},
    {"cli"},
    {"quickstart", "doctor"},
    {"compare", "explain", "story", "export", "scaffold", "testing", "loopback"},
    {"api"},
    {"report", "chart"},
    {"runfolder", "engine"},
    {"plan", "progress", "stream", "attach", "calling", "degenerate"},
    {"chain", "recipe"},
    {"options", "store", "fingerprint"},
    {
        "methods", "budget", "models", "readers", "encoding", "packing", "prompts", "teacher", "answers",
        "asking", "endpoint", "vllm_server", "context", "registry", "shown",
    },
    {"samples", "shapes", "formats"},
    {"hookspecs", "errors", "shipped", "threads", "intervals"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path.stem for path in CORE.glob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of everything that a file imports when it runs; dots begin a relative module."""

    def walk(node: ast.AST) -> Iterator[tuple[int, str, str]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from walk(other)
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, module, alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def inside(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of the core modules that a core module imports."""
    for line, module, name in imports(path):
        parts = (
            module.replace("siftune", "", 1).lstrip(".") if module.startswith("siftune") else module.removeprefix(".")
        )
        if module in (".", "siftune"):
            yield line, name if name in MODULES else "__init__"
        elif module.startswith((".", "siftune.")):
            yield line, parts.partition(".")[0]


def test_every_module_has_its_layer() -> None:
    assert {*MODULES} - {"__init__", *LEVEL} == set(), "name them in LAYERS"


@pytest.mark.parametrize("module", sorted({*MODULES} - {"__init__"}))
def test_imports_go_downward(module: str) -> None:
    # the package itself only names what its modules hold
    upward = [
        f"{module}.py:{line} imports {name}"
        for line, name in inside(CORE / f"{module}.py")
        if name in LEVEL and LEVEL[name] < LEVEL.get(module, len(LAYERS))
    ]
    assert not upward


def test_the_package_imports_nothing_by_itself() -> None:
    assert list(inside(CORE / "__init__.py")) == []


@pytest.mark.parametrize("plugin", sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()))
def test_a_plugin_imports_no_other(plugin: str) -> None:
    own = "siftune_" + plugin.replace("-", "_")
    others = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sorted((ROOT / "plugins" / plugin).rglob("*.py"))
        for line, module, _ in imports(path)
        if module.startswith("siftune_") and module.partition(".")[0] != own
    ]
    assert not others


def test_the_core_imports_no_plugin() -> None:
    found = [
        f"{path.name}:{line}"
        for path in CORE.glob("*.py")
        for line, module, _ in imports(path)
        if module.startswith("siftune_")
    ]
    assert not found
