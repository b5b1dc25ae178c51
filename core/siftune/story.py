"""What a run says about one of its samples: all from its folder, but for the text, which the input holds."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import fingerprint, runfolder, shown
from .errors import UserError
from .samples import Sample

SHORTEST_ID = 8  # fewer digits are a row number, though an id may begin with them
OWN = ("id", "row", "parent", "made_by", "status", "reason", "kept", "rank", "weight")
# What reading says of a row (see engine.State): such a row is handed to no step.
UNREAD = ("empty response", "no messages", "duplicate of row ", "says what a sample in play says already")


@dataclass
class Folder:
    """What a finished run left behind."""

    path: Path
    manifest: Mapping[str, Any]
    recipe: Mapping[str, Any]
    table: pa.Table

    @staticmethod
    def read(path: Path) -> Folder:
        """Read it. Raises UserError if it is no run, or one that is not finished."""
        manifest = runfolder.read_manifest(path)
        if manifest.get("state") != "finished" or not (path / "table.parquet").is_file():
            raise UserError(f"{path} is a run that is not finished: run the same command again")
        recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
        return Folder(path, manifest, recipe, pq.read_table(path / "table.parquet"))

    def steps(self) -> Iterator[tuple[Mapping[str, Any], Path]]:
        """Every step of the manifest, and its own folder."""
        for number, step in enumerate(self.manifest["steps"], 1):
            yield step, self.path / f"{number:02d}-{step['hook']}-{step['method']}"

    def find(self, wanted: str) -> int:
        """The place in the table of a row number, or of the beginning of an id.

        Raises UserError for one that is not there, and for a beginning that several samples share.
        """
        rows, ids = self.table["row"], self.table["id"]
        if not len(ids):
            raise UserError(f"{self.path} is a run without rows, so there is nothing to explain")
        if wanted.isdecimal() and len(wanted) < 19:
            found = pc.index(rows, pa.scalar(int(wanted), pa.int64())).as_py()
            if found >= 0:
                return int(found)
            if len(wanted) < SHORTEST_ID:
                raise UserError(self._unknown(wanted))
        begins = pc.starts_with(ids, wanted.lower() or " ")
        places = np.flatnonzero(begins.to_numpy(zero_copy_only=False))
        distinct = list(dict.fromkeys(ids[int(place)].as_py() for place in places))
        if len(distinct) > 1:
            some = ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")
            raise UserError(f"{wanted!r} begins {len(distinct)} ids ({some}); write more of it")
        if not distinct:
            raise UserError(self._unknown(wanted))
        return int(places[0])

    def _unknown(self, wanted: str) -> str:
        for line in self._rejected():
            if str(line["row"]) == wanted:
                why = f"{line['reason']} ({self.path / 'rejected.jsonl'})"
                return f"row {wanted} could not be read: {why}"
        last = pc.max(self.table["row"]).as_py()
        where = f"a row of the input, up to {last}, or the beginning of an id"
        return f"{self.path} has no row {wanted!r}; name {where}"

    def _rejected(self) -> list[dict[str, Any]]:
        path = self.path / "rejected.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def column(self, name: str) -> Any:
        """A column of numbers as float64 with NaN, or None if the table has none of that name."""
        if name not in self.table.column_names or not pa.types.is_floating(self.table[name].type):
            return None
        return self.table[name].to_numpy(zero_copy_only=False)


def story(folder: Path, row: str) -> dict[str, Any]:
    """Everything that the run says about a sample, as `siftune explain --json` prints it.

    `row` is its row in the input or a unique beginning of its id. Raises UserError, see Folder.
    """
    run = Folder.read(folder)
    at = run.find(row)
    own = {name: run.table[name][at].as_py() for name in OWN}
    rows = run.table.select(["id", "row", "parent", "made_by", "kept"])
    same = rows.filter(pc.equal(rows["id"], own["id"])).to_pylist()
    rewrites = rows.filter(pc.fill_null(pc.equal(rows["parent"], own["id"]), False)).to_pylist()
    sample, note = _text(run, at)
    told = {
        "run": str(folder),
        **own,
        "same_text": [one["row"] for one in same if one["row"] is not None and one["row"] != own["row"]],
        "rewrites": [{name: one[name] for name in ("id", "made_by", "kept")} for one in rewrites],
        "messages": None if sample is None else [dict(message) for message in sample.messages],
        "text_note": note,
        "steps": list(_steps(run, at, own)),
    }
    told["tokens"] = [
        found for step, place in run.steps() if (found := _tokens(step, place, own["id"], sample))
    ]
    return told


# ---- the steps ----


def _steps(run: Folder, at: int, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What became of the sample in each step: its values there, and where it came out of play."""
    unread = own["status"] == "left_out" and str(own["reason"]).startswith(UNREAD) and not own["kept"]
    in_play = not unread and own["made_by"] is None
    steps = list(run.steps())
    resets = [i for i, (step, _) in enumerate(steps) if step["hook"] == "select" and step["on"] == "all"]
    # a select that a later one replaced does not decide what is said in the end
    counts_from = resets[-1] if resets else 0
    open_reason = None if unread else own["reason"]
    born = own["made_by"] is None
    for i, (step, place) in enumerate(steps):
        told: dict[str, Any] = {"step": step["step"], "hook": step["hook"], "given": False}
        told |= {"state": "", "reason": "", "values": [], "says": ""}
        given = step["hook"] != "evaluate" and born and (in_play or (step["on"] == "all" and not unread))
        before = in_play
        if given:
            told["given"] = True
            told |= _state(place, own["id"])
            told["values"] = list(_values(run, step, at))
        if step["hook"] == "select" and born and not unread:
            rank = _rank(place, own["id"])
            in_play = rank is not None
            if given:
                told |= _selected(run, step, place, at, rank)
            decides = given and rank is None and i >= counts_from and not told["reason"]
            if open_reason and decides and step["states"].get(own["status"]):
                told |= {"state": own["status"], "reason": open_reason}
        elif step["hook"] == "reflect" and given:
            told["says"] = _rewritten(run, step, own["id"])
            if open_reason and not told["reason"] and step["states"][own["status"]]:
                told |= {"state": own["status"], "reason": open_reason}
        if told["reason"] and told["reason"] == open_reason:
            open_reason = None
        if own["made_by"] == step["step"]:
            born, in_play = True, not unread
            told["says"] = "wrote this sample"
        elif not told["given"]:
            told["says"] = _why_not_given(step, born, unread, own)
        told |= {"in_play_before": before, "in_play_after": in_play}
        yield told


def _why_not_given(step: Mapping[str, Any], born: bool, unread: bool, own: Mapping[str, Any]) -> str:
    if step["hook"] == "evaluate":
        return "evaluates the model, not the samples"
    if not born:
        return "the sample was not yet written"
    return f"not given: {own['reason']}" if unread else "not given: out of play"


def _state(place: Path, wanted: str) -> dict[str, Any]:
    """State and reason that the step's own file has for this sample; nothing where the step keeps none."""
    path = place / "values.parquet"
    if not path.is_file():
        return {}
    rows = _rows(path, ["state", "reason"], wanted)
    return {"state": rows[0]["state"], "reason": rows[0]["reason"] or ""} if rows else {}


def _rows(path: Path, columns: list[str], wanted: str) -> list[dict[str, Any]]:
    """What a file of a step holds for one id; twice, where two samples say the same."""
    found: list[dict[str, Any]] = pq.read_table(
        path, columns=columns, filters=[("id", "=", wanted)]
    ).to_pylist()
    return found


def _values(run: Folder, step: Mapping[str, Any], at: int) -> Iterator[dict[str, Any]]:
    """The numbers and short texts that a step gave the sample, each with where it stands in the pool."""
    for name in step["columns"]:
        if name not in run.table.column_names:
            continue
        value, every = run.table[name][at].as_py(), run.column(name)
        told = {"column": name, "value": value}
        # a count, or the number of a cluster, is no place among others
        ordered = name in step.get("better", {}) or (step["hook"] == "score" and name == step["columns"][0])
        if every is not None and value is not None and ordered:
            finite = every[np.isfinite(every)]
            lower, equal = int((finite < value).sum()), int((finite == value).sum())
            told |= {"percentile": round(100 * (lower + equal / 2) / len(finite), 2)}
            told |= {"rank_from_top": len(finite) - lower - equal + 1, "equal": equal, "of": len(finite)}
        yield told


def _rank(place: Path, wanted: str) -> int | None:
    return min((one["rank"] for one in _rows(place / "kept.parquet", ["rank"], wanted)), default=None)


def _selected(run: Folder, step: Mapping[str, Any], place: Path, at: int, rank: int | None) -> dict[str, Any]:
    """How a select decided, and how near it was: the value beside that of the last one kept."""
    kept = pq.read_table(place / "kept.parquet")
    says = f"kept, rank {rank:,} of {len(kept):,}" if rank is not None else ""
    says = says or f"not among the {len(kept):,} kept of {step['given']:,}"
    told: dict[str, Any] = {"rank": rank, "kept": len(kept), "by": None, "value": None, "last_kept": None}
    by = step["options"].get("by")
    values = run.column(by) if isinstance(by, str) else None
    if values is not None and math.isfinite(values[at]):
        among, where = _rivals(run, step, kept, at)
        told |= {"by": by, "value": float(values[at])}
        says += f"; its {by} is {shown.number(float(values[at]))}"
        if len(among):
            told["last_kept"] = float(values[among[-1]])
            says += f", that of the last one kept{where} {shown.number(told['last_kept'])}"
    return told | {"says": says}


def _rivals(run: Folder, step: Mapping[str, Any], kept: pa.Table, at: int) -> tuple[Any, str]:
    """Places in the table of what was kept, by rank; under a budget per column only of its own group."""
    ids = kept.sort_by("rank")["id"].combine_chunks()
    places = pc.drop_null(pc.index_in(ids, value_set=run.table["id"].combine_chunks())).to_numpy()
    per = str(step["budget"]).rpartition(" per ")[2] if " per " in str(step["budget"]) else ""
    if per in run.table.column_names:
        group = run.table[per].to_pylist()
        return [place for place in places if group[place] == group[at]], f" with the same {per}"
    return places, ""


def _rewritten(run: Folder, step: Mapping[str, Any], wanted: str) -> str:
    mine = pc.and_(pc.equal(run.table["parent"], wanted), pc.equal(run.table["made_by"], step["step"]))
    ids = run.table["id"].filter(mine).to_pylist()
    return f"rewritten as {', '.join(ids)}" if ids else "no rewrite of it"


# ---- the text ----


def _text(run: Folder, at: int) -> tuple[Sample | None, str]:
    """The sample as it was read or written, and what has to be said about where it comes from."""
    row, wanted = run.table["row"][at].as_py(), run.table["id"][at].as_py()
    if row is None:
        found = _among_selected(run, at)
        return found, "" if found else "the text of a rewrite that was not kept is not in the run folder"
    sample, problem = _from_input(run, row, wanted)
    if sample is None:
        sample = _among_selected(run, at)
        problem = (
            f"the text is that of selected.jsonl: {problem}"
            if sample
            else f"the text cannot be had: {problem}"
        )
    return sample, problem


def _from_input(run: Folder, row: int, wanted: str) -> tuple[Sample | None, str]:
    from . import formats

    data = run.recipe.get("data", {})
    paths = [data["path"]] if isinstance(data.get("path"), str) else list(data.get("path", []))
    if not paths:
        return None, "the run names no input file"
    remote = next((path for path in paths if "://" in path), None)
    if remote:
        return None, f"{remote} is not read again"
    told = zip(paths, run.manifest["data"], strict=True)
    changed = [path for path, about in told if _changed(Path(path), about)]
    limit = min(row, data.get("limit") or row)
    try:
        pool = formats.read(paths, shape=data.get("format", ""), on_bad_row="leave-out", limit=limit)
    except UserError as error:
        return None, str(error)
    assert pool.source is not None
    samples = dict(zip(pool.source.numbers, pool.samples, strict=True))
    sample = samples.get(row)
    if sample is None or sample.id != wanted:
        return None, f"{', '.join(changed) or ', '.join(paths)} has changed since the run, and so has the row"
    return sample, f"{', '.join(changed)} has changed since the run; this row has not" if changed else ""


def _changed(path: Path, about: Mapping[str, Any]) -> bool:
    if "blake2b" not in about or not path.is_file():
        return False
    return path.stat().st_size != about["bytes"] or bool(fingerprint.of_file(path) != about["blake2b"])


def _among_selected(run: Folder, at: int) -> Sample | None:
    """The sample out of selected.jsonl, which holds what was kept by rank, then by place in the table."""
    from . import formats

    if not run.table["kept"][at].as_py():
        return None
    ranks = run.table["rank"].to_numpy(zero_copy_only=False).astype(float)
    places = np.flatnonzero(run.table["kept"].to_numpy(zero_copy_only=False))
    order = places[np.argsort(np.nan_to_num(ranks[places], nan=np.inf), kind="stable")]
    try:
        samples = formats.read([str(run.path / "selected.jsonl")]).samples
    except UserError:
        return None
    return samples[int(np.flatnonzero(order == at)[0])] if len(samples) == len(order) else None


# ---- tokens ----


def _tokens(
    step: Mapping[str, Any], place: Path, wanted: str, sample: Sample | None
) -> dict[str, Any] | None:
    """The loss of each token after its context and alone, where the step kept them; and the token's text, if
    its place is known."""
    name = next((c.removesuffix(GIVEN) for c in step["columns"] if c.endswith(GIVEN)), None)
    if name is None or name + ALONE not in step["columns"]:
        return None
    more = [name + part for part in (EDGES, TURNS, EACH) if name + part in step["columns"]]
    rows = _rows(place / "values.parquet", [name + GIVEN, name + ALONE, *more], wanted)
    if not rows or rows[0][name + GIVEN] is None:
        return None
    values = {column.removeprefix(name): value for column, value in rows[0].items()}
    if len(values[GIVEN]) != len(values[ALONE]):
        return None
    pieces, note = _pieces(values, sample)
    told = [{"conditioned": a, "alone": b, "helped": b - a} for a, b in zip(values[GIVEN], values[ALONE], strict=True)]
    for token, piece in zip(told, pieces or (), strict=False):
        token["text"] = piece
    return {"step": step["step"], "column": name, "note": note, "tokens": told}


GIVEN, ALONE = ".token_losses_conditioned", ".token_losses_alone"
EDGES, TURNS, EACH = ".token_edges", ".turns.at", ".turns.tokens"


def _pieces(values: Mapping[str, Any], sample: Sample | None) -> tuple[list[str] | None, str]:
    """The text of each scored token, by the characters between which the step says that it stands."""
    if sample is None:
        return None, "the text cannot be had"
    edges, count = [int(edge) for edge in values.get(EDGES) or ()], len(values[GIVEN])
    if len(edges) == count + 1:
        # of the two texts that a step may score, the one that the last token ends
        text = next((t for t in (sample.response, sample.prompt) if len(t) == edges[-1]), sample.response)
        return _cut(text, edges), ""
    turns = [(int(at), int(n)) for at, n in zip(values.get(TURNS) or (), values.get(EACH) or (), strict=False)]
    said = [message["content"] for message in sample.messages if message["role"] == "assistant"]
    pieces: list[str] = []
    if turns and len(edges) == count + len(turns):
        for at, n in turns:
            pieces += _cut(said[at - 1], edges[: n + 1])
            edges = edges[n + 1 :]
    return (pieces, "") if len(pieces) == count else (None, "the step did not keep where its tokens end")


def _cut(text: str, edges: Sequence[int]) -> list[str]:
    """The text in pieces. Of the tokens that share a character, all but the first get nothing of it."""
    return [text[low:high] for low, high in pairwise(edges)]
