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
from .samples import ROW, Array, Held

CORE = Path(__file__).parent


def digest(*parts: Any) -> str:
    """Hash of anything that JSON can say."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def of_file(path: Path) -> str:
    """Hash of a file's content."""
    about = path.stat()
    return _of_content(path, about.st_size, about.st_mtime_ns)


@cache
def _of_content(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@cache
def of_code(kind: Any) -> str:
    """Hash of every file of the plugin that a class (or a module) comes from, prompts and data files included."""
    top = getattr(kind, "__module__", kind.__name__).partition(".")[0]
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
    files: dict[str, Any] = {k: _file_digest(v) for k, v in named.items() if isinstance(v, Path)}
    files |= {k: list(map(_file_digest, v)) for k, v in named.items() if _are_paths(v)}
    told = {k: sorted(map(str, v)) if isinstance(v, set) else v for k, v in named.items() if k not in files}
    kind: Any = type(method)  # the hash of the class, which mypy takes for that of its instances
    code = (of_code(kind), of_core(type(method).uses))
    return digest(hook, name, package, told, files, code, model, sorted(columns.items()))


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Path) for one in value)


def _file_digest(path: Path) -> str:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return digest([(str(p.relative_to(path)), of_file(p)) for p in files])
    return of_file(path)


def row_keys(ids: list[str], rows: Array, helds: Iterable[Held], total: int) -> list[str]:
    """What the store files each row under: its id, a hash of the `input.*` values that the step sees with it,
    and which of its columns have no value there, so that added rows cost themselves, a changed value costs its
    row, and so does one that came later (of a request that failed, of a row that was out of play)."""
    keys = list(ids)
    for number, held in enumerate(helds):
        if held.about.name.startswith("input.") or held.about.name == ROW:
            suffixes: Iterable[str] = (digest(_plain(value))[:12] for value in held.at(rows, total))
        else:
            known = held.known(rows)
            if held.suffix is None and known.all():
                continue
            above = held.suffix[rows] if held.suffix is not None else [""] * len(rows)
            told = zip(above, known, strict=True)
            suffixes = (f"{number}{'' if there else 'none'}:{one}" if one or not there else "" for one, there in told)
        keys = [f"{key}-{suffix}" if suffix else key for key, suffix in zip(keys, suffixes, strict=True)]
    return keys


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
