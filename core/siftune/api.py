"""siftune from Python: a whole run, or one method on its own, on the same engine as the command line."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import plan, runfolder, shapes, shown
from .engine import Engine, State
from .errors import UserError
from .hookspecs import HOOKS
from .methods import Found, Method, found
from .progress import Quiet
from .recipe import Arm, Data, Defaults, Recipe, Step
from .samples import DERIVED, Array, Pool, Sample, Samples
from .store import Store, default_root


@dataclass(repr=False)
class Run:
    """A run that is over: its folder, and what is in it."""

    folder: Path
    state: State
    manifest: Mapping[str, Any]
    arms: dict[str, Run] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = self.manifest["counts"]
        arms = f", arms: {', '.join(self.arms)}" if self.arms else ""
        return f"<siftune run {self.folder}: {shown.rows(counts['rows'])}, {counts['kept']:,} kept{arms}>"

    @property
    def table(self) -> Any:
        """`table.parquet` as a pyarrow table; `.to_pandas()` where pandas is at hand."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "table.parquet")

    @property
    def selected(self) -> list[Sample]:
        """The samples that are in play in the end, best first."""
        return [self.state.pool.samples[row] for row in runfolder.kept_rows(self.state)]

    @property
    def models(self) -> dict[str, Path]:
        """The trained models by kind."""
        return {kind: trained.folder for kind, (trained, _) in self.state.models.items()}

    @property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """Figures by evaluating step, and by training step that measured some itself."""
        return {d.planned.label: d.evaluation.metrics for d in self.state.done if d.evaluation}

    @property
    def all(self) -> dict[str, Run]:
        """This run and its arms, by name."""
        return {"this run": self, **self.arms}

    @property
    def compared(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By step and figure, what it came to in this run and in each arm that has it."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, one in self.all.items():
            for step, metrics in one.results.items():
                for figure, value in metrics.items():
                    found.setdefault(step, {}).setdefault(figure, {})[name] = value
        return found

    @property
    def computed(self) -> int:
        """How many rows, or whole views, were computed and not found in the store."""
        return sum(done.computed for done in self.state.done)


def run(
    data: str | Path | Sequence[str | Path] | None,
    steps: Sequence[str | Step],
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    overwrite: bool = False,
    arms: Sequence[Arm] = (),
    input_format: str = "",
    limit: int | None = None,
    on_bad_row: str = "stop",
    keep_duplicates: bool = False,
    **defaults: Any,
) -> Run:
    """Carry out a chain.

        siftune.run("pool.jsonl", ["score ifd --model nano", Step("select", "top", by="ifd", budget="5%")])

    `defaults` are the run's `seed`, `model`, `template`, `teacher`, `teacher_model`, `dtype`, `device` and
    `min_coverage`. Without `out` the run goes to `runs/chain-<n>`. Raises UserError for a mistake in the chain
    before anything runs, and whatever a plugin raises.
    """
    paths = () if data is None else (data,) if isinstance(data, (str, Path)) else tuple(data)
    parsed = tuple(Step.parse(step) if isinstance(step, str) else step for step in steps)
    told = Data(tuple(map(str, paths)), input_format, on_bad_row, limit, keep_duplicates)
    unknown = set(defaults) - set(vars(Defaults()))
    if unknown:
        raise TypeError(f"run() has no argument {sorted(unknown)[0]!r}")
    recipe = Recipe(parsed, told, Defaults(**defaults), tuple(arms))
    return carry_out(recipe, out=out, store=store, overwrite=overwrite)


def carry_out(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    overwrite: bool = False,
    format: str = "",
    progress: Quiet | None = None,
) -> Run:
    """Carry out a recipe, then each of its arms into `arms/<name>` of the same folder."""
    if format:
        shapes.named(format)
    for step in recipe.steps:
        step.method()
    pool = _read(recipe)
    inputs = None if pool is None else (pool.source.column_names() if pool.source else [])
    texts = pool.source.text_names() if pool is not None and pool.source else []
    arms = [recipe.arm(arm) for arm in recipe.arms]
    for one in (recipe, *arms):
        plan.check(one, inputs, texts)
    folder = Path(out) if out is not None else runfolder.next_free(recipe.name)
    shared = Store(Path(store) if store is not None else default_root())
    shared.prepare()
    told = progress or Quiet()
    with (
        runfolder.opened(folder, recipe, overwrite),
        teachers(partial(told.say, "teacher")) as chat_with,
    ):
        carry = partial(_carry, store=shared, format=format, progress=told, chat_with=chat_with, inputs=inputs)
        whole = carry(recipe, pool, folder)
        for arm, said in zip(arms, recipe.arms, strict=True):
            at = recipe.replaced(said)
            told.say(f"arm {arm.name}", f"the same with {arm.steps[at].said} in the place of {recipe.steps[at].label}")
            place = folder / "arms" / arm.name
            place.mkdir(parents=True, exist_ok=True)
            runfolder.prepare(place, arm)
            whole.arms[arm.name] = carry(arm, _fresh(pool), place)
        from . import report

        report.write(whole)
    return whole


def _read(recipe: Recipe) -> Pool | None:
    data = recipe.data
    if not data.path:
        return None
    return Pool.read(*data.path, shape=data.format, on_bad_row=data.on_bad_row, limit=data.limit)


def _fresh(pool: Pool | None) -> Pool | None:
    """The originals of a pool without what a run has added to it."""
    if pool is None or pool.source is None:
        return pool
    return Pool(pool.samples[: len(pool.source.rows)], pool.source)


def _carry(
    recipe: Recipe,
    pool: Pool | None,
    folder: Path,
    *,
    store: Store,
    format: str,
    progress: Quiet,
    chat_with: Any,
    inputs: Any,
) -> Run:
    steps = plan.check(recipe, inputs)
    state = State.of(pool if pool is not None else Pool([]), recipe.data.keep_duplicates)
    engine = Engine(state, store, folder, recipe, chat_with, progress)
    engine.carry_out(steps)
    manifest = runfolder.write(folder, recipe, steps, state, format)
    return Run(folder, state, manifest)


@contextlib.contextmanager
def teachers(say: Callable[[str], None] = lambda text: None) -> Iterator[Any]:
    """One client for each teacher of a run, with the server it may have started, closed whatever happens."""
    clients: dict[tuple[str, str | None], Any] = {}

    def chat(teacher: str, model: str | None, *, memory: Path | None = None) -> Any:
        from .teacher import Chat

        if (teacher, model) not in clients:
            clients[teacher, model] = Chat(teacher, model, memory=memory, say=say)
        return clients[teacher, model]

    try:
        yield chat
    finally:
        for client in clients.values():
            client.close()


def apply(
    method: Method,
    samples: Samples | Iterable[Sample | Mapping[str, Any]] | None = None,
    *,
    budget: str | int | None = None,
    folder: str | Path | None = None,
    **columns: Any,
) -> Any:
    """Run one method through the engine and leave nothing behind.

    `samples` are samples, rows, or a view; `columns` are what the method needs (`ifd__tokens` is `ifd.tokens`).
    Gives, in the order that came in: a scorer's columns by name (NaN or None for no value), vectors, `(labels,
    centres, distances)`, the rewrites, the positions kept, a Trained or an Evaluation. A trainer needs `folder`.
    """
    if not isinstance(samples, Samples):
        samples = Samples.of(samples or [], **columns)
    hook = next((h for h in HOOKS if hasattr(getattr(type(method), h, None), "siftune_impl")), None)
    if hook is None:
        raise TypeError(f"{type(method).__name__} implements no hook; is @hookimpl missing?")
    step = Step(hook, _name(hook, type(method)), budget=budget)
    if hook == "train" and folder is None:
        raise UserError("a trainer needs a place for its model: apply(..., folder=...)")
    pool = samples.pool.copy()
    state = State.of(pool, keep_duplicates=True)
    inside = np.zeros(len(pool), bool)
    inside[samples.rows] = True
    state.in_play &= inside
    known = plan.Known({name: "the caller" for name in pool.names()}, [])
    known.columns |= dict.fromkeys(DERIVED, "the caller")
    known.about = {name: held.about for name, held in pool.columns.items()}
    planned = plan.plan_method(
        1, step, method, _source(type(method), hook, step.name), Defaults(min_coverage=0.0), known
    )
    with tempfile.TemporaryDirectory(prefix="siftune-") as scratch, teachers() as chat_with:
        engine = Engine(
            state,
            Store(Path(scratch) / "store"),
            Path(scratch),
            Recipe((step,), run=Defaults(min_coverage=0.0)),
            chat_with,
        )
        before = len(pool)
        engine.carry_out([planned])
        trained = engine.state.done[-1].model
        if trained is not None and folder is not None:
            return replace(trained, folder=Path(shutil.copytree(trained.folder, folder)))
        return _fruit(hook, engine.state, samples.rows, before)


def _fruit(hook: str, state: State, rows: Array, before: int) -> Any:
    done, pool = state.done[-1], state.pool
    if hook == "evaluate":
        return done.evaluation
    if hook == "reflect":
        return pool.samples[before:]
    if hook == "select":
        assert done.kept is not None
        place = {int(row): at for at, row in enumerate(rows)}
        return [place[int(row)] for row in done.kept]
    values = {name: np.array(pool.columns[name].at(rows, len(pool))) for name in done.columns}
    if hook == "embed":
        return next(iter(values.values()))
    if hook == "cluster":
        centres = np.load(done.figures["centres"])
        return values["cluster"], centres, values["cluster_distance"]
    return values


def _name(hook: str, kind: type[Method]) -> str:
    """The name under which a class is installed, else that of the class."""
    value = f"{kind.__module__}:{kind.__qualname__}"
    for name, one in found(hook).items():
        if one.entry.value == value or (one.entry.value.endswith(f":{kind.__qualname__}") and one.entry.load() is kind):
            return name
    return kind.__name__.lower()


def _source(kind: type[Method], hook: str, name: str) -> Found:
    from importlib.metadata import EntryPoint

    one = found(hook).get(name)
    if one is not None:
        return one
    entry = EntryPoint(name, f"{kind.__module__}:{kind.__qualname__}", f"siftune.{hook}")
    return Found(hook, name, entry, kind.__module__, "not installed")
