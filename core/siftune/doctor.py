"""What this machine and this installation have, for a question or a bug report."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from . import threads
from .store import default_root

PACKAGES = (
    "siftune",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "lm-eval",
    "sentence-transformers",
    "faiss-cpu",
    "vllm",
)


def findings() -> Iterator[tuple[str, str]]:
    """Name and value, one by one; imports nothing heavy."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
    yield from threads.shown().items()
    yield "GPU", "nvidia-smi is there" if shutil.which("nvidia-smi") else "none seen"
    root = default_root()
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free
    yield "store", f"{root} ({free / 1e9:.0f} GB free)"
