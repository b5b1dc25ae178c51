"""What has been computed, by fingerprint and row: cache, checkpoint and shared memory at once.

Values of row steps lie in Parquet parts, each written beside its place, synced and renamed, so that a part is
whole or absent. Results of view steps lie in a folder whose `step.json` is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import UserError
from .samples import Array

OK, LEFT_OUT, FAILED = 1, 2, 3  # 0: the step was not given the row
VECTORS = "vectors"


def default_root() -> Path:
    """The user's cache folder for siftune."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "siftune"


@dataclass
class Rows:
    """What a row step gave: columns, and state and reason of every row, in the order that was asked for."""

    columns: dict[str, Array]
    states: Array
    reasons: Array


class RowStore:
    """The parts of one fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _parts(self) -> list[tuple[Path, pa.Table]]:
        found = []
        for path in sorted(self.folder.glob("*.parquet")) if self.folder.is_dir() else []:
            try:
                found.append((path, pq.read_table(path)))
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"{path} of the store is damaged ({error}); delete the file and run again") from error
        return found

    def missing(self, keys: Sequence[str]) -> Array:
        """Positions of the keys without a value. What failed is missing: the next run tries it again."""
        known = pa.chunked_array([_done(table)["key"] for _, table in self._parts()] or [pa.array([], pa.string())])
        here = pc.is_in(pa.array(keys, pa.string()), value_set=pa.chunked_array(known.chunks, pa.string()))
        return np.flatnonzero(~np.asarray(here.to_numpy(zero_copy_only=False), bool))

    def add(self, keys: Sequence[str], rows: Rows, made_with: Mapping[str, str]) -> None:
        """Write one part. `made_with` (device, torch) is kept beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        columns: dict[str, Any] = {
            "key": pa.array(keys, pa.string()),
            "state": pa.array(rows.states, pa.int8()),
        }
        columns["reason"] = pa.array(list(rows.reasons), pa.string())
        for column, values in rows.columns.items():
            if values.ndim == 2:
                with written(self.folder / f"{name}.npy") as temporary, temporary.open("wb") as stream:
                    np.save(stream, values)
            else:
                columns[column] = _arrow(values, rows.states)
        table = pa.table(columns).replace_schema_metadata({k.encode(): v.encode() for k, v in made_with.items()})
        with written(self.folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary)

    def load(self, keys: Sequence[str], vectors_to: Path | None = None) -> tuple[Rows, set[tuple[str, ...]]]:
        """The values of these keys, and what the parts were made with. Rows that are not there are FAILED
        only if that is what was stored; otherwise their state is 0. Vectors go to the file `vectors_to`."""
        parts = self._parts()
        wanted = pa.array(keys, pa.string())
        states = np.zeros(len(keys), np.int8)
        reasons = np.full(len(keys), None, object)
        columns: dict[str, Array] = {}
        made: set[tuple[str, ...]] = set()
        if not parts:
            return Rows({}, states, reasons), made
        # newest first: a row that failed once and was computed later counts as computed
        tables = [table for _, table in reversed(parts)]
        plain = pa.concat_tables([_untyped(table) for table in tables], promote_options="permissive")
        order = np.argsort(np.asarray(plain["state"]) == FAILED, kind="stable")
        ordered = plain["key"].take(pa.array(order)).combine_chunks()
        places = pc.index_in(wanted, value_set=ordered)
        here = np.flatnonzero(np.asarray(places.is_valid().to_numpy(zero_copy_only=False), bool))
        source = order[np.asarray(places.drop_null().to_numpy(), np.int64)]
        states[here] = np.asarray(plain["state"])[source]
        taken = plain.take(pa.array(source))
        reasons[here] = np.array(taken["reason"].to_pylist(), object)
        for table in tables:
            metadata = table.schema.metadata or {}
            made.add(tuple(f"{k.decode()} {v.decode()}" for k, v in sorted(metadata.items()) if k != b"ARROW:schema"))
        for name in plain.column_names:
            if name not in ("key", "state", "reason"):
                columns[name] = _numpy(taken[name], here, len(keys))
        if vectors_to is not None:
            starts = np.cumsum([0, *(len(table) for table in tables)])
            columns[VECTORS] = _vectors(
                [path for path, _ in reversed(parts)], starts, source, here, len(keys), vectors_to
            )
        return Rows(columns, states, reasons), made


def _done(table: pa.Table) -> pa.Table:
    return table.filter(pc.not_equal(table["state"], FAILED))


def _untyped(table: pa.Table) -> pa.Table:
    """The table without its metadata; a column without a value does not say what the others hold."""
    columns = [pa.nulls(len(one)) if one.null_count == len(one) else one for one in table.columns]
    return pa.table(columns, names=table.column_names)


def _arrow(values: Array, states: Array) -> pa.Array:
    absent = states != OK
    if values.dtype.kind == "f":
        return pa.array(values, pa.float64(), mask=absent)
    plain = [
        None if gone else (v.tolist() if isinstance(v, np.ndarray) else v)
        for v, gone in zip(values, absent, strict=True)
    ]
    if any(isinstance(v, list) for v in plain):
        # empty lists alone do not say what the lists of other parts hold
        inner = pa.string() if _holds_text(plain) else pa.float64() if any(plain) else pa.null()
        return pa.array(plain, pa.list_(inner))
    return pa.array(plain, pa.string())


def _holds_text(values: list[Any]) -> bool:
    return any(isinstance(one, str) for value in values if value for one in value)


def _numpy(column: pa.ChunkedArray, here: Array, total: int) -> Array:
    if pa.types.is_null(column.type):
        return np.full(total, np.nan)
    if pa.types.is_floating(column.type):
        numbers = np.full(total, np.nan)
        numbers[here] = column.to_numpy()
        return numbers
    objects = np.full(total, None, object)
    for place, value in zip(here, column.to_pylist(), strict=True):
        objects[place] = np.array(value, np.float64) if isinstance(value, list) and not _holds_text([value]) else value
    return objects


def _vectors(paths: list[Path], starts: Array, source: Array, here: Array, total: int, target: Path) -> Array:
    """Gather vectors of all parts into one file in the order asked for, and map it."""
    parts = [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in paths]
    width = next((part.shape[1] for part in parts if part.shape[1]), 0)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as temporary:
        kind = parts[0].dtype if parts else np.dtype(np.float32)
        mapped = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            temporary, "w+", dtype=kind, shape=(total, width))
        mapped[:] = 0
        which = np.searchsorted(starts, source, side="right") - 1
        for number, part in enumerate(parts):
            chosen = np.flatnonzero(which == number)
            if len(chosen) and part.shape[1]:
                mapped[here[chosen]] = part[source[chosen] - starts[number]]
        mapped.flush()
        del mapped
    gathered: Array = np.load(target, mmap_mode="r")
    return gathered


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary place for a file that is synced and renamed when all of it is there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a file that one process has at a time; BlockingIOError where another has it and none is to wait."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs may compute the same, and both results are whole
        yield
        return
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or absent."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_json)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Store:
    """A folder that runs share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the folder. Raises UserError where it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the store {self.root} cannot be written: {error}; name another: --store DIR") from error

    def rows(self, fingerprint: str) -> RowStore:
        """Where the values of a row step lie."""
        return RowStore(self.root / "rows" / fingerprint)

    def view(self, key: str) -> Path:
        """The folder of a view step; it is done when `step.json` is in it."""
        return self.root / "views" / key

    @property
    def answers(self) -> Path:
        """The teacher's answers."""
        return self.root / "answers.sqlite"

    @contextlib.contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Keep a second run from computing the same step at the same time; it waits, then finds it done."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / key):
            yield

    def entries(self) -> list[dict[str, Any]]:
        """Everything that is kept, biggest first: kind, key, step, bytes, time of last use."""
        found = []
        for kind in ("rows", "views"):
            for folder in (self.root / kind).glob("*"):
                files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
                label = folder / "label"
                found.append(
                    {
                        "kind": kind,
                        "key": folder.name,
                        "step": label.read_text(encoding="utf-8") if label.is_file() else "",
                        "bytes": sum(p.stat().st_size for p in files),
                        "used": max((p.stat().st_mtime for p in files), default=0.0),
                    }
                )
        return sorted(found, key=lambda entry: -int(entry["bytes"]))

    def name(self, folder: Path, label: str) -> None:
        """Say in words what a folder holds, for `siftune store ls`, and that it is used now."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "label").exists():
            (folder / "label").write_text(label, encoding="utf-8")
        os.utime(folder / "label")

    def prune(self, older_than: float) -> int:
        """Delete what no run has used for so many seconds; gives the bytes that became free. What a run is
        computing just now is waited for."""
        freed, limit = 0, time.time() - older_than
        for entry in self.entries():
            if entry["used"] < limit:
                with self.claimed(entry["key"]):
                    shutil.rmtree(self.root / entry["kind"] / entry["key"], ignore_errors=True)
                freed += int(entry["bytes"])
        return freed
