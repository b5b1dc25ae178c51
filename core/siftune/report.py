"""The page that shows what happened to every sample: one file that needs nothing beside itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import jinja2
import numpy as np

from . import chart, shown
from .engine import Done, State
from .runfolder import STATES, kept_rows
from .samples import Array, Held, Sample
from .store import LEFT_OUT, OK, written

if TYPE_CHECKING:
    from .api import Run

LONGEST_TEXT = 400  # characters of a message on the page
EACH = 6  # samples of a kind
MOST_REASONS = 25
MOST_CHARTS = 60


def write(run: Run) -> Path:
    """Write `report.html` of a run into its folder, and give its path."""
    path = run.folder / "report.html"
    text = _template().render(page(run))
    with written(path) as temporary:
        # a lone surrogate out of an option or an error is text that no file can hold
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path


def _template() -> jinja2.Template:
    surroundings = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # what is written by others is made fit to be shown before it is escaped
        finalize=lambda value: shown.visible(value) if type(value) is str else value,
    )
    surroundings.filters |= {"number": shown.number, "duration": shown.duration, "size": shown.size}
    return surroundings.get_template("report.html.j2")


def page(run: Run) -> dict[str, Any]:
    """All that the page says."""
    fates = [fate for fate in _fates(run) if fate.rows]
    steps = [_step(number, done, run.state) for number, done in enumerate(run.state.done, 1)]
    total = sum(fate.rows for fate in fates)
    return {
        "name": run.folder.resolve().name,
        "manifest": run.manifest,
        "chain": [done.planned.step.said for done in run.state.done],
        "summary": summary(run),
        "fates": fates,
        "total": total,
        "parts": _shares(fates, total),
        "reasons": reasons(run.state),
        "most_reasons": MOST_REASONS,
        "warnings": [(step["label"], text) for step in steps for text in step["warnings"]],
        "steps": steps,
        "seconds": sum(step["seconds"] for step in steps),
        "charts": list(charts(run.state)),
        "arms": arms(run),
        "evaluations": evaluations(run),
        "chosen_by": _chosen_by(run.state),
        "groups": groups(run.state),
        "longest": LONGEST_TEXT,
        "files": files(run),
    }


# ---- what became of the rows ----


class Fate(NamedTuple):
    """How many rows ended in one way."""

    name: str
    kind: str
    rows: int


def _fates(run: Run) -> list[Fate]:
    codes, _ = run.state.final()
    counts = run.manifest["counts"]
    return [
        Fate("kept", "kept", int(run.state.in_play.sum())),
        Fate("not chosen", "passed", int(((codes == OK) & ~run.state.in_play).sum())),
        Fate("left out", "left", int((codes == LEFT_OUT).sum())),
        Fate("failed", "failed", counts["failed"]),
        Fate("could not be read", "rejected", counts["rejected"]),
    ]


def _shares(fates: Sequence[Fate], total: int) -> list[tuple[Fate, float, float]]:
    """Each fate with where its part of a bar of 1,000 begins and how long it is."""
    placed, at = [], 0.0
    for fate in fates:
        placed.append((fate, at, 1000 * fate.rows / total))
        at += 1000 * fate.rows / total
    return placed


def summary(run: Run) -> str:
    """The run in a sentence."""
    counts, selects = run.manifest["counts"], [d for d in run.state.done if d.kept is not None]
    rows = counts["rows"]
    if not rows:
        return "No rows were read: the run evaluates a model."
    words = f"{shown.rows(rows)} {'was' if rows == 1 else 'were'} read"
    if counts["rewrites"]:
        words += f" and {counts['rewrites']:,} rewrites made"
    if selects:
        share = 100 * counts["kept"] / (rows + counts["rewrites"])
        return f"{words}; {selects[-1].planned.step.said} kept {counts['kept']:,} of them ({share:.3g}%)."
    return f"{words}; nothing was selected, so {counts['kept']:,} stayed in play."


def reasons(state: State) -> list[dict[str, Any]]:
    """Why rows are not in play that might have been: who said so, how often, and for which rows."""
    codes, why = state.final()
    wrong = np.flatnonzero(codes > OK)
    said_by = np.full(len(codes), None, object)
    said_by[wrong[~state.readable[wrong]]] = "reading"
    for number, done in enumerate(state.done, 1):
        open_ = [row for row in wrong if said_by[row] is None and done.states[row] == codes[row]]
        for row in open_:
            if done.reasons[row] == why[row]:
                said_by[row] = f"{number} {done.planned.label}"
    found = []
    for code, who in sorted({(int(codes[row]), str(said_by[row])) for row in wrong}):
        rows = [row for row in wrong if codes[row] == code and str(said_by[row]) == who]
        for reason, places in shown.alike(str(why[row]) for row in rows):
            examples = [_number(state, rows[place]) for place in places[:3]]
            said = {"who": who, "reason": shown.shortened(reason, 300)[0], "examples": examples}
            found.append({"state": STATES[code].replace("_", " "), "count": len(places), **said})
    return sorted(found, key=lambda one: -one["count"])


def _number(state: State, row: int) -> str:
    """What a sample is called: its row in the input, or the beginning of its id."""
    source = state.pool.source
    if source is not None and row < len(source.numbers):
        return f"{source.numbers[row]}"
    return state.pool.samples[row].id[:8]


# ---- steps ----


def _step(number: int, done: Done, state: State) -> dict[str, Any]:
    planned = done.planned
    own = {"on", "as_", "budget", *planned.step.options}
    options = planned.method.options()
    filled = {k.rstrip("_"): v for k, v in options.items() if k not in own and v not in (None, False, [])}
    # said elsewhere, or the place of a file of the store
    hidden = {"centres", "kept"} if done.kept is not None else {"centres"}
    figures = {k: v for k, v in done.figures.items() if k not in hidden}
    return {
        "number": number,
        "label": planned.label,
        "command": planned.step.said,
        "source": planned.found.source,
        "filled": filled,
        "work": _work(done),
        "states": [
            (name.replace("_", " "), int((done.states == code).sum()))
            for code, name in STATES.items()
            if code > OK and (done.states == code).any()
        ],
        "kept": None if done.kept is None else len(done.kept),
        "seconds": done.took or done.seconds,
        "figures": [(key.replace("_", " "), figure(value)) for key, value in figures.items()],
        "warnings": done.warnings,
        "columns": [name for name in done.columns if state.pool.columns[name].index is None],
    }


def _work(done: Done) -> str:
    """How much was computed, and how much was known already."""
    if done.planned.step.hook == "evaluate":
        return "found in the store" if done.found else "measured"
    if not done.computed:
        return f"{shown.rows(done.given)}, all found in the store"
    found = f", {done.found:,} found in the store" if done.found else ""
    return f"{shown.rows(done.given)}, {done.computed:,} computed{found}"


def figure(value: Any) -> str:
    """A figure of a step or an evaluation: a number, a short list, a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {figure(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        listed = ", ".join(figure(one) for one in value[:8])
        return f"{listed}, … ({len(value):,})" if len(value) > 8 else listed
    return shown.shortened(shown.number(value), 200)[0]


# ---- scores ----


def charts(state: State) -> Iterator[dict[str, Any]]:
    """A histogram of every column of numbers, in the order in which they were made."""
    clusters = {done.columns[0] for done in state.done if done.planned.step.hook == "cluster"}
    for at, (name, held) in enumerate(list(_numeric(state))[:MOST_CHARTS]):
        pool, kept, about = held.values, held.values[state.in_play], held.about
        if state.in_play.all() or not any(done.kept is not None for done in state.done):
            kept = kept[:0]
        drawn = chart.histogram(pool, kept, about)
        notes = [*drawn.notes, *_range(held)]
        missing = int(np.isnan(held.values[state.readable]).sum())
        if missing:
            notes.append(f"{missing:,} rows have no value")
        yield {
            "name": name,
            "unit": about.unit,
            "step": held.step,
            "svg": chart.svg(drawn, f"chart-{at}", ordered=name not in clusters),
            "notes": notes,
            # the numbers of clusters are names: none is in the middle of the others
            "table": [
                _quantiles(which, values)
                for which, values in (("pool", pool), ("kept", kept))
                if name not in clusters and np.isfinite(values).any()
            ],
        }


def _numeric(state: State) -> Iterator[tuple[str, Held]]:
    for name, held in state.pool.columns.items():
        if held.index is None and held.values.dtype.kind == "f" and np.isfinite(held.values).any():
            yield name, held


def _range(held: Held) -> list[str]:
    about = held.about
    words = [f"{way} is better" for way in [about.better] if way]
    words += [f"chooses below {about.below:g}"] if about.below is not None else []
    words += [f"chooses above {about.above:g}"] if about.above is not None else []
    words += [f"chooses where {name} is at least {least:g}" for name, least in about.at_least.items()]
    return words


def _quantiles(name: str, values: Array) -> tuple[str, list[str]]:
    finite = values[np.isfinite(values)]
    figures = [*np.quantile(finite, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]), finite.mean()]
    return name, [f"{len(finite):,}", *(shown.number(float(one)) for one in figures)]


# ---- evaluations and arms ----


def arms(run: Run) -> list[dict[str, Any]]:
    """The step that each arm has of its own, what it kept, and how much of that the run itself kept too."""
    if not run.arms:
        return []
    own = {run.state.pool.samples[row].id for row in kept_rows(run.state)}
    steps = [done.planned.step for done in run.state.done]
    selects = [step for step in steps if step.hook == "select"]
    found = []
    for name, one in run.all.items():
        exchanged = [done.planned.step for done in one.state.done if done.planned.step not in steps]
        ids = {one.state.pool.samples[row].id for row in kept_rows(one.state)}
        its = (exchanged or selects)[-1:]
        said = its[0].said if its else "nothing selected"
        place = "" if one is run else quote(f"arms/{name}/selected.jsonl")
        found.append({"name": name, "said": said, "kept": len(ids), "shared": len(ids & own), "place": place})
    return found


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Every figure of every step that measured something, the arms below each other."""
    return [
        {"label": step, "metrics": [{"name": name, "rows": _rows(values)} for name, values in figures.items()]}
        for step, figures in run.compared.items()
    ]


def _rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One figure in every arm, with its interval where there is one, on a scale that they share."""
    bounds = [float(v[end]) for v in values.values() if _has_interval(v) for end in ("low", "high", "value")]
    rows = []
    for name, value in values.items():
        row = {"arm": name, "value": figure(value), "interval": "", "n": "", "rest": "", "svg": ""}
        if isinstance(value, Mapping) and "value" in value:
            row |= {"value": figure(value["value"]), "n": figure(value["n"]) if "n" in value else ""}
            row["rest"] = figure({k: v for k, v in value.items() if k not in ("value", "low", "high", "n")})
        if _has_interval(value):
            row["interval"] = f"{figure(value['low'])} to {figure(value['high'])}"
            ends = (min(bounds), max(bounds))
            row["svg"] = chart.interval(value["value"], value["low"], value["high"], ends)
        rows.append(row)
    return rows


def _has_interval(value: Any) -> bool:
    ends = ("value", "low", "high")
    return isinstance(value, Mapping) and all(
        isinstance(value.get(end), (int, float)) and math.isfinite(value[end]) for end in ends
    )


# ---- samples ----


def _chosen_by(state: State) -> str:
    """The column that the last select went by; the last score's where nothing was selected; else nothing."""
    numeric = dict(_numeric(state))
    selects = [done for done in state.done if done.kept is not None]
    if selects:
        planned = selects[-1].planned
        if (by := planned.method.options().get("by")) in numeric:
            return str(by)
        # numbers of clusters are no order
        return next((name for name in planned.needs if name in numeric and numeric[name].about.better), "")
    scores = [done.columns[0] for done in state.done if done.planned.step.hook == "score" and done.columns]
    return next((name for name in reversed(scores) if name in numeric), "")


def groups(state: State) -> list[dict[str, Any]]:
    """Some samples of each kind; none is shown twice."""
    selects = [done for done in state.done if done.kept is not None]
    by = _chosen_by(state)
    if by:
        order = _ordered(state, by, selects[-1] if selects else None)
        wanted = list(_kinds(order, state.in_play[order], by))
    elif selects:
        wanted = list(_unordered(state, selects[-1]))
    else:
        rows = np.flatnonzero(state.in_play)
        wanted = [("Some samples", "evenly spaced", _spaced(rows, EACH))]
    seen: set[int] = set()
    found = []
    for title, note, rows in wanted:
        fresh = [row for row in map(int, rows) if row not in seen]
        seen.update(fresh)
        if fresh:
            found.append({"title": title, "note": note, "samples": [_sample(state, row) for row in fresh]})
    return found


def _ordered(state: State, by: str, select: Done | None) -> Array:
    """The rows that a select chose among, best first; equal values in id order, as it is done there."""
    held = state.pool.held(by)
    options = {} if select is None else select.planned.method.options()
    low_first = bool(options.get("lowest")) or (held.about.better == "lower" and not options.get("highest"))
    among = state.readable if select is None else select.states == OK
    rows: Array = state.pool.order[(among & np.isfinite(held.values))[state.pool.order]]
    values = held.values[rows] if low_first else -held.values[rows]
    return rows[np.argsort(values, kind="stable")]


def _kinds(order: Array, kept: Array, by: str) -> Iterator[tuple[str, str, Array]]:
    yield "Best", f"the first by {by}", order[:EACH]
    count = int(kept.sum())
    if kept[:count].all() and 0 < count < len(order):
        edge = order[max(count - EACH // 2, 0) : count + EACH // 2]
        yield "The edge", "the last that were kept and the first that were not", edge
    middle = max((len(order) - EACH) // 2, 0)
    yield "Middle", f"around the median of {by}", order[middle : middle + EACH]
    yield "Worst", f"the last by {by}", order[-EACH:]


def _unordered(state: State, select: Done) -> Iterator[tuple[str, str, Array]]:
    kept = select.kept if select.kept is not None else np.zeros(0, np.int64)
    yield "First chosen", "by rank", kept[:EACH]
    middle = max((len(kept) - EACH) // 2, 0)
    yield "Middle of the chosen", "by rank", kept[middle : middle + EACH]
    yield "Last chosen", "by rank", kept[-EACH:]
    passed = np.setdiff1d(np.flatnonzero(select.states == OK), kept)
    yield "Not chosen", "evenly spaced", _spaced(passed, EACH)


def _spaced(rows: Array, count: int) -> Array:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64))]


def _sample(state: State, row: int) -> dict[str, Any]:
    sample = state.pool.samples[row]
    by = _chosen_by(state)
    values = [(name, held.values[row]) for name, held in _numeric(state) if "." not in name or name == by]
    rank = state.rank[row]
    return {
        "number": _number(state, row),
        "id": sample.id,
        "rewrite": sample.made_by,
        "kept": bool(state.in_play[row]),
        "rank": int(rank) if math.isfinite(rank) else None,
        "values": [(name, shown.number(float(value))) for name, value in values if math.isfinite(value)][:8],
        "messages": list(_messages(sample)),
    }


def _messages(sample: Sample) -> Iterator[dict[str, Any]]:
    """What is asked and answered last, and how much was said before."""
    told = list(sample.messages)
    first = max(len(told) - 2, 0)
    if len(told) == 3 and told[0]["role"] == "system":
        first = 0
    if first:
        yield {"role": "", "text": f"{first} earlier message{'s' if first > 1 else ''}", "more": 0}
    for message in told[first:]:
        text, more = shown.shortened(message["content"], LONGEST_TEXT)
        yield {"role": message["role"], "text": text, "more": more}


# ---- files ----

ABOUT_FILES = {
    "selected.jsonl": "the kept samples, best first, in the format of the input",
    "table.parquet": "one row per sample: status, reason, rank, and every score",
    "rejected.jsonl": "rows that could not be read, and why",
    "evaluation.json": "the figures of the evaluation",
    "items.parquet": "one row per test item",
    "recipe.toml": "the recipe with everything filled in: siftune run recipe.toml does it again",
    "manifest.json": "where everything came from: hashes, versions, counts, times",
}


def files(run: Run) -> list[tuple[str, str, str, int | None]]:
    """(link, name, what it is, bytes) of what lies beside this page."""
    found: list[tuple[str, str, str, int | None]] = []
    for name, about in ABOUT_FILES.items():
        if (run.folder / name).is_file():
            found.append((name, name, about, (run.folder / name).stat().st_size))
    for done in run.state.done:
        place = done.planned.folder
        if (run.folder / place).is_dir():
            told = "the trained model" if done.model else "what the step gave"
            found.append((quote(place) + "/", place + "/", f"{done.planned.label}: {told}", None))
    return found
