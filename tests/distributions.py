"""A distribution as it looks when it is installed: a module and its dist-info in a folder on the path."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

HEAD = """
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from siftune import Column, Evaluation, Fate, Method, Outcome, Sample, Samples, Selection, Trained, hookimpl

"""


def write(site: Path, package: str, code: str, entries: Mapping[str, Mapping[str, str]]) -> Path:
    """Write version 0.1 of a package with one module, named after it, whose objects are the entry points:
    `{"siftune.score": {"name": "Class"}}`. Gives the folder that belongs on the path."""
    module = package.replace("-", "_")
    info = site / f"{module}-0.1.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(HEAD + textwrap.dedent(code), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n", encoding="utf-8")
    lines = []
    for group, objects in entries.items():
        lines += [f"[{group}]", *(f"{name} = {module}:{thing}" for name, thing in objects.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return site
