"""The folder of a run: what it was asked, what happened, the table of every row, and what was kept."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import fingerprint
from .engine import Done, State
from .errors import UserError
from .plan import Planned
from .recipe import Recipe, absolute, toml
from .samples import Array
from .store import FAILED, LEFT_OUT, OK, locked, write_json, written

MANIFEST = "manifest.json"
LOCK = ".lock"  # held by the process whose run is under way in the folder
ASIDE = ".replaced"  # in a folder that is deleted as soon as the run that replaces it is finished
STATES = {0: "", OK: "ok", LEFT_OUT: "left_out", FAILED: "failed"}
LONGEST_TEXT = 200  # in the table; longer texts stay in the step's own folder


def next_free(name: str, parent: Path = Path("runs")) -> Path:
    """`runs/<recipe>-<n>`, the first that is not there; an empty folder."""
    number = 1
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            # made at once, so that two runs that begin together do not take the same
            (parent / f"{name}-{number}").mkdir()
            return parent / f"{name}-{number}"
        except FileExistsError:
            number += 1


@contextlib.contextmanager
def opened(folder: Path, recipe: Recipe, overwrite: bool = False) -> Iterator[None]:
    """The folder for one run alone. A finished run that is to be replaced stands beside it until the new one is
    finished too. Raises UserError for a folder that holds something else, or in which another run is under way."""
    place = folder.resolve()  # "." has no name, and a link is no folder that can be moved
    earlier = place.parent / f"{place.name}.previous"
    with contextlib.ExitStack() as locks:
        locks.enter_context(_alone(folder))
        if overwrite and _is_finished(folder):
            _set_aside(place, earlier)
            locks.enter_context(_alone(place))  # the lock went with the folder
        elif overwrite:
            _clear(folder)
        prepare(folder, recipe)
        try:
            yield
        except BaseException as error:
            if _was_set_aside(earlier):
                error.add_note(f"the earlier run is in {user_path(earlier)}")
            raise
        if _was_set_aside(earlier):
            shutil.rmtree(earlier)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and keep every other process out of it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name another folder: --out DIR")
    if folder.exists() and not (folder / MANIFEST).is_file() and not _is_empty(folder):
        raise UserError(f"{folder} is there and is no run of siftune; name another folder: --out DIR")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, wait=False))
        except BlockingIOError:
            raise UserError(
                f"{folder}: another run is under way in it; wait for its end, or name another folder: --out DIR"
            ) from None
        yield


def _is_empty(folder: Path) -> bool:
    # a run that was killed before it wrote anything may leave a file that was never renamed
    return all(path.name == LOCK or path.name.endswith(".tmp") for path in folder.iterdir())


def _is_finished(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file() and read_manifest(folder).get("state") == "finished"
    except UserError:
        return True  # a manifest that somebody damaged: what is in the folder may be all there is


def _set_aside(folder: Path, earlier: Path) -> None:
    """Give a run the name that it keeps until it is replaced. Raises UserError where that cannot be."""
    if Path.cwd().is_relative_to(folder):
        raise UserError(f"{folder} cannot be replaced while you are in it; call siftune from another folder")
    if _was_set_aside(earlier):
        shutil.rmtree(earlier)
    elif earlier.exists():
        raise UserError(f"{earlier} is in the way of the run that is replaced; give it another name")
    (folder / ASIDE).touch()
    folder.rename(earlier)


def _was_set_aside(earlier: Path) -> bool:
    return (earlier / ASIDE).is_file()


def prepare(folder: Path, recipe: Recipe) -> None:
    """Go on in the folder if it holds the same recipe; what another one has not finished there gives way, for its
    values are in the store. Raises UserError for a finished run of another recipe."""
    mark, manifest = asked(recipe), folder / MANIFEST
    if manifest.is_file() and read_manifest(folder).get("asked") != mark:
        if _is_finished(folder):
            raise UserError(f"{folder} holds a run of another recipe; name another folder, or replace it: --overwrite")
        _clear(folder)
    if not manifest.exists():
        write_json(manifest, {"asked": mark, "state": "running", "started": _now()})


def _clear(folder: Path) -> None:
    """Delete a run, its manifest last: a kill in between leaves what is still known for one."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def asked(recipe: Recipe) -> str:
    """What tells one recipe from another: everything that the user wrote, wherever it was called from, but how
    many failures are accepted, which may be said when they are known."""
    tables = recipe.from_here().tables()
    tables.get("run", {}).pop("min_coverage", None)
    return fingerprint.digest(tables)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run. Raises UserError if the folder is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} is no run: there is no {MANIFEST} in it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged; carry the run out again into another folder, or here with --overwrite")
    return manifest


def write(folder: Path, recipe: Recipe, plan: Sequence[Planned], state: State, format: str = "") -> dict[str, Any]:
    """Write everything that DESIGN promises of a run folder, and give the manifest."""
    before = read_manifest(folder)
    write_json(folder / MANIFEST, before | {"state": "running"})  # what follows replaces file after file
    _lock(folder / "recipe.toml", recipe, plan)
    steps = [_step(folder, done, state) for done in state.done]
    write_table(folder / "table.parquet", state)
    pool = state.pool
    if len(pool):
        fresh = pool.write(folder / ".selected.jsonl", kept_rows(state), format)
        os.replace(fresh, folder / "selected.jsonl")  # whole, or what was there
    (folder / "rejected.jsonl").unlink(missing_ok=True)
    if pool.source is not None and pool.source.rejected:
        with written(folder / "rejected.jsonl") as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in pool.source.rejected)
    write_evaluation(folder, state)
    codes, reasons = state.final()
    manifest = {
        "asked": before["asked"],
        "state": "finished",
        "started": before.get("started"),
        "finished": _now(),
        "siftune": version("siftune") if _installed("siftune") else "",
        "python": platform.python_version(),
        "data": _lineage(recipe),
        "counts": {
            "rows": len(pool.source.rows) if pool.source else len(pool),
            "rejected": len(pool.source.rejected) if pool.source else 0,
            "rewrites": sum(sample.parent is not None for sample in pool.samples),
            **{name: int((codes == code).sum()) for code, name in STATES.items() if name},
            "kept": int(state.in_play.sum()),
            "reasons": Counter(_kind(reason) for reason in reasons if reason).most_common(),
        },
        "steps": steps,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def _kind(reason: str) -> str:
    """A reason without its numbers, so that a thousand of them count as one."""
    words = [("N" if any(c.isdigit() for c in word) else word) for word in str(reason).split(" ")]
    return " ".join(words)


def kept_rows(state: State) -> Array:
    """Rows in play, by rank where the last select gave one, then by their place in the pool."""
    rows = np.flatnonzero(state.in_play)
    return rows[np.argsort(np.nan_to_num(state.rank[rows], nan=np.inf), kind="stable")]


def _lock(path: Path, recipe: Recipe, plan: Sequence[Planned]) -> None:
    """The recipe with everything filled in: what the run used, whatever the defaults become later."""
    steps = []
    for one in plan:
        table = one.step.table() | {
            name.rstrip("_"): absolute(value)
            for name, value in one.method.options().items()
            if value is not None and value != [] and not (name == "model" and one.travelling)
        }
        steps.append(table)
    tables = recipe.from_here().tables()
    tables["step"] = steps
    packages = sorted({(one.found.package, one.found.version) for one in plan})
    tables["lock"] = {
        "python": platform.python_version(),
        "packages": {name: told for name, told in packages}
        | {name: version(name) for name in _STACK if _installed(name)},
    }
    with written(path) as temporary:
        temporary.write_text(toml(tables), encoding="utf-8")


_STACK = (
    "siftune",
    "torch",
    "transformers",
    "numpy",
    "faiss-cpu",
    "peft",
    "lm-eval",
    "sentence-transformers",
)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _lineage(recipe: Recipe) -> list[dict[str, Any]]:
    told = []
    for path in recipe.data.path:
        file = Path(path)
        told.append(
            {"path": path}
            | ({"blake2b": fingerprint.of_file(file), "bytes": file.stat().st_size} if file.is_file() else {})
        )
    return told


def _step(folder: Path, done: Done, state: State) -> dict[str, Any]:
    """One step's own folder, and its entry in the manifest."""
    planned = done.planned
    place = folder / planned.folder
    place.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {
        "step": planned.label,
        "hook": planned.step.hook,
        "method": planned.step.name,
        "on": planned.step.on,
        "budget": None if planned.step.budget is None else str(planned.step.budget),
        "package": planned.found.source,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in planned.method.options().items()},
        "fingerprint": done.key,
        "given": done.given,
        "found": done.found,
        "computed": done.computed,
        "states": {name: int((done.states == code).sum()) for code, name in STATES.items() if name},
        "seconds": round(done.seconds, 3),
        "took": round(_took(place / "step.json", done), 3),
        "columns": done.columns,
        "better": {name: way for name in done.columns if (way := state.pool.columns[name].about.better)},
        "figures": done.figures,
        "warnings": done.warnings,
    }
    if planned.step.hook in ("cluster", "score", "reflect", "select"):
        write_columns(place / "values.parquet", done, state)
    if done.kept is not None:
        chosen = [state.pool.samples[row].id for row in done.kept]
        with written(place / "kept.parquet") as temporary:
            pq.write_table(pa.table({"id": chosen, "rank": pa.array(range(1, len(chosen) + 1), pa.int64())}), temporary)
    if done.model is not None:
        told["model"] = str(done.model.folder)
        _link(place / "model", done.model.folder)
    if done.evaluation is not None:
        told["metrics"] = done.evaluation.metrics
    write_json(place / "step.json", told)
    return told


def _took(path: Path, done: Done) -> float:
    """Seconds that computing the step took: a run that finds it in the store does not hide them."""
    done.took = done.seconds
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get("fingerprint") == done.key:
            done.took = before.get("took", 0.0) + (done.seconds if done.computed else 0.0)
    return done.took


def _link(place: Path, target: Path) -> None:
    """Point to a model in the store; where links are not allowed, copy it."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(target.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(target, place)


def write_columns(path: Path, done: Done, state: State) -> None:
    """Every column of a step, long texts and lists included, one row per row that it was given."""
    rows = np.flatnonzero(done.states)
    table: dict[str, Any] = {"id": [state.pool.samples[row].id for row in rows]}
    table["state"] = [STATES[int(code)] for code in done.states[rows]]
    table["reason"] = pa.array(list(done.reasons[rows]), pa.string())
    for name in done.columns:
        table[name] = arrow(state.pool.columns[name].at(rows, len(state.pool)))
    with written(path) as temporary:
        pq.write_table(pa.table(table), temporary)


def arrow(values: Array) -> pa.Array:
    """A column as Parquet holds it: nulls where there is no value."""
    if values.dtype.kind == "f":
        return pa.array(values, mask=np.isnan(values))
    return pa.array([value.tolist() if isinstance(value, np.ndarray) else value for value in values])


def write_table(path: Path, state: State) -> None:
    """`table.parquet`: one row per input row that could be read, in input order, then the rewrites."""
    pool = state.pool
    codes, reasons = state.final()
    numbers: list[int | None] = list(pool.source.numbers) if pool.source else list(range(1, len(pool) + 1))
    numbers += [None] * (len(pool) - len(numbers))
    columns: dict[str, Any] = {
        "id": pa.array([sample.id for sample in pool.samples], pa.string()),
        "row": pa.array(numbers, pa.int64()),
        "parent": pa.array([sample.parent for sample in pool.samples], pa.string()),
        "made_by": pa.array([sample.made_by for sample in pool.samples], pa.string()),
        "status": pa.array([STATES[int(code)] for code in codes], pa.string()),
        "reason": pa.array(list(reasons), pa.string()),
        "kept": pa.array(state.in_play),
        "rank": _whole(state.rank),
        "weight": pa.array(np.where(state.in_play, state.weight, np.nan), mask=~state.in_play),
    }
    every = np.arange(len(pool))
    for name, held in pool.columns.items():
        if held.index is not None or name in columns:
            continue
        values = held.at(every, len(pool))
        if values.dtype.kind == "f":
            columns[name] = arrow(values)
            if held.about.percentile:
                within = held.about.within
                groups = pool.held(within).at(every, len(pool)) if within else np.zeros(len(pool))
                columns[f"{name}.percentile"] = arrow(_percentile(values, groups, held.about.better))
        elif all(value is None or (isinstance(value, str) and len(value) <= LONGEST_TEXT) for value in values):
            columns[name] = pa.array(list(values), pa.string())
    with written(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _percentile(values: Array, groups: Array, better: str) -> Array:
    """100 * (rows of the group below + half of those that are equal, itself included) / rows with a value."""
    values = -values if better == "lower" else values
    found = np.full(len(values), np.nan)
    names = np.array([str(group) for group in groups])
    for name in np.unique(names):
        rows = np.flatnonzero((names == name) & np.isfinite(values))
        ordered = np.sort(values[rows])
        below, through = (np.searchsorted(ordered, values[rows], side) for side in ("left", "right"))
        found[rows] = 50.0 * (below + through) / max(len(rows), 1)
    return found


def _whole(values: Array) -> pa.Array:
    missing = ~np.isfinite(values)
    return pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)


def write_evaluation(folder: Path, state: State) -> None:
    """`evaluation.json` and `items.parquet`, where anything was evaluated."""
    results = [done for done in state.done if done.evaluation is not None]
    if not results:
        return
    write_json(folder / "evaluation.json", {d.planned.label: d.evaluation.metrics for d in results if d.evaluation})
    items = [{"step": d.planned.label} | dict(item) for d in results if d.evaluation for item in d.evaluation.items]
    if items:
        names = list(dict.fromkeys(name for item in items for name in item))
        columns = {name: _items(item.get(name) for item in items) for name in names}
        with written(folder / "items.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary)


def _items(values: Any) -> pa.Array:
    plain = list(values)
    try:
        return pa.array(plain)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else v if isinstance(v, str) else json.dumps(v, default=str) for v in plain])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def user_path(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return os.path.relpath(path) if not os.path.relpath(path).startswith("..") else str(path)
    except ValueError:
        return str(path)
