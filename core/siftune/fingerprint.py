"""What a step's values hang on, as one hash: method, options, code, model, files, and the columns it reads."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .methods import Method
from .samples import Array, Held

CORE = Path(__file__).parent


def digest(*parts: Any) -> str:
    """Hash of anything that JSON can say."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@cache
def of_file(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@cache
def of_code(kind: type[Method]) -> str:
    """Hash of every file of the plugin that a method comes from, prompts and data files included."""
    top = kind.__module__.partition(".")[0]
    spec = importlib.util.find_spec(top) if top != "__main__" else None
    if spec is not None and spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        files = sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return digest([(str(p.relative_to(root)), of_file(p)) for p in files])
    if spec is not None and spec.origin and Path(spec.origin).is_file():
        return of_file(Path(spec.origin))
    try:
        return digest(inspect.getsource(kind))
    except (OSError, TypeError):  # typed at a prompt: nothing to tell one version from the next
        return digest(kind.__qualname__, id(kind))


def of_core(modules: Iterable[str]) -> str:
    """Hash of the core modules that a method declares in `uses`."""
    return digest([(name, of_file(CORE / f"{name}.py")) for name in sorted(modules)])


def of_step(hook: str, name: str, package: str, method: Method, model: str, columns: Mapping[str, str]) -> str:
    """The fingerprint of a step. `model` identifies the model it reads; `columns` maps each column that it
    needs to where that came from. The device is no part of it: the same numbers are wanted everywhere."""
    named = {k: v for k, v in method.options().items() if k not in ("device", "model")}
    files = {k: _file_digest(v) for k, v in named.items() if isinstance(v, Path)}
    told = {k: sorted(map(str, v)) if isinstance(v, set) else v for k, v in named.items() if k not in files}
    kind: Any = type(method)  # the hash of the class, which mypy takes for that of its instances
    code = (of_code(kind), of_core(type(method).uses))
    return digest(hook, name, package, told, files, code, model, sorted(columns.items()))


def _file_digest(path: Path) -> str:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest([(str(p.relative_to(path)), of_file(p)) for p in files])
    return of_file(path)


def row_keys(ids: list[str], rows: Array, helds: Iterable[Held], total: int) -> list[str]:
    """What the store files each row under: its id, and a hash of the `input.*` values that the step sees
    with it, so that added rows cost themselves and a changed value costs its row."""
    keys = list(ids)
    for held in helds:
        if held.about.name.startswith("input."):
            suffixes: Iterable[str] = (digest(_plain(value))[:12] for value in held.at(rows, total))
        elif held.suffix is not None:
            suffixes = held.suffix[rows]
        else:
            continue
        keys = [f"{key}-{suffix}" for key, suffix in zip(keys, suffixes, strict=True)]
    return keys


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
