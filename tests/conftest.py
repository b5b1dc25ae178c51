"""Toy methods as an installed distribution, rows to run them on, and a store of their own for every test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parent / "toys"
SHARED = Path(__file__).parents[2] / "shared"
sys.path.insert(0, str(TOYS))


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test reads or leaves anything in the user's cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    yield cache / "siftune"


@pytest.fixture
def toys_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What the toy methods computed since it was last asked."""
    path = tmp_path / "toys.log"
    monkeypatch.setenv("TOYS_LOG", str(path))

    def read() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return lines

    return read


def row(number: int, **extra: Any) -> dict[str, Any]:
    """An Alpaca row; its response has `number % 7 + 1` words."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"][: number % 7 + 1]
    return {"instruction": f"Say {number}", "input": "", "output": " ".join(words) + f" {number}", **extra}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [row(number) for number in range(40)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def student(folder: Path, config: str = "{}") -> Path:
    """A folder that looks whole from outside; nobody here loads it."""
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


@pytest.fixture
def pool_file(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_jsonl(tmp_path / "pool.jsonl", rows)


def siftune(
    *words: Any, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as a user starts it, toys at hand."""
    path = os.pathsep.join([str(TOYS), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **(env or {})}
    command = [sys.executable, "-m", "siftune", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=told, cwd=cwd, timeout=120)


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    return siftune
