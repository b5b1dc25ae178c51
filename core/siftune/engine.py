"""Carries out a plan: asks the store what is missing, calls the method for that, attaches what it gave.

A run that was killed is continued here: row steps from the parts that are in the store, view steps from their
`step.json`, trainers from whatever they left in their folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from . import calling, degenerate, fingerprint, stream
from .budget import Budget
from .context import Context
from .errors import CoverageError, UserError
from .methods import Evaluation, Method, Selection, Trained
from .plan import WEIGHT, Planned
from .progress import Quiet
from .recipe import Recipe
from .samples import Array, Column, Held, Pool, Sample, Samples
from .store import FAILED, LEFT_OUT, OK, VECTORS, Rows, RowStore, Store, write_json


@dataclass
class Done:
    """What became of one step."""

    planned: Planned
    states: Array  # per row of the pool: 0 where the step was not given the row
    reasons: Array
    key: str = ""
    given: int = 0
    found: int = 0  # rows (or 1 for a whole view) that the store had already
    computed: int = 0
    seconds: float = 0.0
    took: float = 0.0  # seconds that computing it has taken in this folder, in earlier tries too
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    kept: Array | None = None  # rows of the pool in the order of a selection
    columns: list[str] = field(default_factory=list)
    model: Trained | None = None
    evaluation: Evaluation | None = None


@dataclass
class State:
    """The pool on its way through the chain."""

    pool: Pool
    readable: Array  # rows not left out in reading: what `--on all` hands over
    in_play: Array
    reasons: Array  # why a row was left out in reading
    rank: Array
    weight: Array
    models: dict[str, tuple[Trained, str]] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)

    @staticmethod
    def of(pool: Pool, keep_duplicates: bool = False) -> State:
        """Everything in play but empty responses and, unless kept, the second and later of equal rows."""
        reasons = np.full(len(pool), None, object)
        first_of = {sample.id: i for i, sample in reversed(list(enumerate(pool.samples)))}
        for i, sample in enumerate(pool.samples):
            if not sample.response.strip():
                reasons[i] = "empty response" if sample.messages else "no messages"
            elif not pool.first[i] and not keep_duplicates:
                original = first_of[sample.id]
                row = pool.source.numbers[original] if pool.source else original + 1
                reasons[i] = f"duplicate of row {row}"
        readable = np.array([reason is None for reason in reasons], bool)
        return State(pool, readable, readable.copy(), reasons, np.full(len(pool), np.nan), np.ones(len(pool)))

    def add(self, samples: Sequence[Sample]) -> None:
        """Put rewrites into play; one that says what a sample in play says already stays out."""
        playing = {self.pool.samples[row].id for row in np.flatnonzero(self.in_play)}
        rows = self.pool.add(samples)
        if WEIGHT in self.pool.columns:  # those who read it find the number that the table shows
            self.pool.columns[WEIGHT].values[rows] = 1
        fresh = np.array([sample.id not in playing for sample in samples], bool)
        why = np.array([None if new else "says what a sample in play says already" for new in fresh], object)
        self.readable = np.concatenate([self.readable, fresh])
        self.in_play = np.concatenate([self.in_play, fresh])
        self.reasons = np.concatenate([self.reasons, why])
        self.rank = np.concatenate([self.rank, np.full(len(rows), np.nan)])
        self.weight = np.concatenate([self.weight, np.ones(len(rows))])
        for done in self.done:
            done.states = np.concatenate([done.states, np.zeros(len(rows), np.int8)])
            done.reasons = np.concatenate([done.reasons, np.full(len(rows), None, object)])

    def final(self) -> tuple[Array, Array]:
        """State and reason of every row in the end: what is in play is ok, else the first that went wrong
        counts, but for selects that a later `select --on all` replaced."""
        states = np.where(self.readable, OK, LEFT_OUT).astype(np.int8)
        reasons = self.reasons.copy()
        last_reset = max(
            (i for i, d in enumerate(self.done) if d.planned.step.hook == "select" and d.planned.step.on == "all"),
            default=-1,
        )
        for i, done in enumerate(self.done):
            if done.planned.step.hook == "select" and i < last_reset:
                continue
            wrong = (states == OK) & (done.states > OK)
            states[wrong], reasons[wrong] = done.states[wrong], done.reasons[wrong]
        states[self.in_play], reasons[self.in_play] = OK, None
        return states, reasons


@dataclass
class Engine:
    """One run of a plan over a pool. `folder` is the run's, or a scratch folder."""

    state: State
    store: Store
    folder: Path
    recipe: Recipe
    chat_with: Callable[..., Any] | None = None
    progress: Quiet = field(default_factory=Quiet)
    _identity: str = ""  # of the model that the step under way reads

    def carry_out(self, plan: Sequence[Planned]) -> State:
        """Every step in turn. Raises what a plugin raises, and CoverageError where too many rows have no value."""
        for planned in plan:
            started = time.perf_counter()
            if planned.travelling:
                trained, key = self.state.models[type(planned.method).reads]
                planned.method.model = str(trained.folder)  # type: ignore[attr-defined]
                self._identity = "+".join([f"trained {key}", *_digests(planned.method)])
            else:
                self._identity = "+".join(_digests(planned.method, own=True))
            done = self._step(planned)
            done.warnings += self._doubts(done)
            done.seconds = time.perf_counter() - started
            self.state.done.append(done)
            self.progress.finish(done)
        return self.state

    def _step(self, planned: Planned) -> Done:
        hook = planned.step.hook
        if hook == "evaluate":
            return self._evaluate(planned)
        rows = np.flatnonzero(self.state.in_play) if planned.step.on == "kept" else self._every()
        if not len(rows):
            raise UserError(f"{planned.label}: no sample is in play; {self._why_empty()}")
        planned.needs = [name for name in planned.needs if self.state.pool.has(name)]  # weights may never have come
        view = self.state.pool.view(rows, planned.needs)
        if hook == "embed" or (hook == "score" and type(planned.method).scope == "rows"):
            return self._row_step(planned, view)
        return self._view_step(planned, view)

    def _every(self) -> Array:
        """What `--on all` hands over: everything readable, and of equal rows the first."""
        rows = np.flatnonzero(self.state.readable)
        if self.recipe.data.keep_duplicates:
            return rows
        # a rewrite in play may say what an original out of play says
        _, first = np.unique(self.state.pool.group[rows], return_index=True)
        return rows[np.sort(first)]

    def _doubts(self, done: Done) -> list[str]:
        """What is doubtful about the distribution of a score, over the rows that the step was given."""
        if done.planned.step.hook != "score":
            return []
        held, rows = self.state.pool.columns[done.columns[0]], np.flatnonzero(done.states)
        if held.values.dtype.kind != "f":
            return []
        lengths = np.array([len(self.state.pool.samples[row].response) for row in rows], np.float64)
        return degenerate.warnings(held.about, held.values[rows], lengths)

    def _why_empty(self) -> str:
        _, reasons = self.state.final()
        counts = Counter(str(reason) for reason in reasons if reason)
        return "; ".join(f"{n} rows: {why}" for why, n in counts.most_common(3)) or "nothing was selected"

    # ---- steps that are called with shards, kept by row ----

    def _row_step(self, planned: Planned, view: Samples) -> Done:
        hook, pool = planned.step.hook, self.state.pool
        distinct = Samples(pool, view.rows[_firsts(pool.group[view.rows])], view._allowed)
        helds = [pool.held(name) for name in planned.needs]
        keys = fingerprint.row_keys(distinct.ids, distinct.rows, helds, len(pool))
        mark = self._fingerprint(planned, by_row=True)
        rows = self.store.rows(mark)
        self.store.name(rows.folder, planned.label)
        with self.store.claimed(mark):
            missing = rows.missing(keys)
            self.progress.start(planned.label, len(distinct), len(missing))
            run = self._context(planned, self.store.view(mark))
            if len(missing):
                self._compute(planned, distinct, keys, missing, rows, run)
            # while it is ours: another run may use the same folder as soon as we let go
            shutil.rmtree(run.folder, ignore_errors=True)
            told = _told_of(run)
            notes = rows.folder / f"{fingerprint.digest(keys)}.json"
            if len(missing) == len(keys):
                write_json(notes, told)
            elif not len(missing) and notes.is_file():
                told = json.loads(notes.read_text(encoding="utf-8"))
        target = self.folder / planned.folder / f"{planned.step.column}.npy" if hook == "embed" else None
        loaded, made = rows.load(keys, target)
        done = self._done(planned, mark, given=len(view), found=len(view) - len(missing), computed=len(missing))
        if len(made) > 1:
            where = " and ".join(sorted(", ".join(one) for one in made))
            done.warnings.append(f"values were computed with {where}; they agree to rounding only")
        done.figures |= told["figures"]
        done.warnings += told["warnings"]
        self._gate(planned, loaded, distinct)
        suffix = None
        if any("-" in key for key in keys):
            suffix = np.full(len(pool), "", object)
            suffix[distinct.rows] = [key.partition("-")[2] for key in keys]
            leaders = _leaders(pool, distinct.rows)
            suffix = np.where(leaders >= 0, suffix[leaders], "")
        self._spread(done, view.rows, distinct.rows, loaded, mark, suffix)
        return done

    def _compute(
        self,
        planned: Planned,
        samples: Samples,
        keys: list[str],
        missing: Array,
        rows: RowStore,
        run: Context,
    ) -> None:
        hook, method = planned.step.hook, planned.method
        checker = planned.checker()
        call = calling.caller(hook, method, planned.label, planned.found.source)
        size = type(method).shard
        for start in range(0, len(missing), size):
            shard = missing[start : start + size]
            part = samples[shard]
            answer = call(samples=part, run=run)
            got = checker.embedding(answer, part) if hook == "embed" else checker.scores(answer, part)
            rows.add([keys[i] for i in shard], got, _made_with(method))
            self.progress.rows(len(shard), failed=int((got.states == FAILED).sum()))

    # ---- steps that are called with the whole view, kept as one ----

    def _view_step(self, planned: Planned, view: Samples) -> Done:
        pool, hook = self.state.pool, planned.step.hook
        helds = [pool.held(name) for name in planned.needs]
        keys = fingerprint.row_keys(view.ids, view.rows, helds, len(pool))
        # a sample that is in play twice has two rows of its own
        keys = _numbered(keys)
        key = fingerprint.digest(self._fingerprint(planned, by_row=False), keys, *_kinship(view))
        folder = self.store.view(key)
        with self.store.claimed(key):
            self.store.name(folder, planned.label)
            warnings: list[str] = []
            complete = self._complete(planned, folder, keys, view)
            self.progress.start(planned.label, len(view), 0 if complete else len(view))
            if not complete:
                run = self._context(planned, folder)
                try:
                    extra = self._call_view(planned, view, keys, folder, run)
                    write_json(folder / "step.json", {"step": planned.label, **_told_of(run), **extra})
                except UserError as error:
                    # a teacher that is gone by now takes away nothing that was good enough before
                    if not (folder / "step.json").is_file():
                        raise
                    complete = True
                    warnings.append(f"what failed could not be tried again: {error}")
        told = json.loads((folder / "step.json").read_text(encoding="utf-8"))
        done = self._done(
            planned, key, given=len(view), found=len(view) * complete, computed=len(view) * (not complete)
        )
        done.figures = told["figures"]
        done.warnings += told.get("warnings", []) + warnings
        if hook == "train":
            metrics = told.get("metrics", {})
            done.model = Trained(folder / told["model"], told["base"], told["kind"], told["figures"], metrics)
            done.evaluation = Evaluation(metrics) if metrics else None
            self.state.models[done.model.kind] = (done.model, key)
            done.states[view.rows] = OK
            return done
        loaded, _ = RowStore(folder / "values").load(keys)
        if hook == "select":
            self._keep(done, planned, view, loaded, key)
        elif hook == "reflect":
            # what ends a line of Unicode may stand inside a text
            lines = (folder / "rewrites.jsonl").read_text(encoding="utf-8").split("\n")
            self._mark(done, view.rows, loaded)
            self.state.add([_rewrite(json.loads(line), planned.label) for line in lines if line])
            done.states = np.concatenate([done.states, np.zeros(len(self.state.pool) - len(done.states), np.int8)])
            done.reasons = np.concatenate(
                [done.reasons, np.full(len(self.state.pool) - len(done.reasons), None, object)]
            )
        else:
            if hook == "cluster":
                done.figures["centres"] = str(folder / "centres.npy")
            self._spread(done, view.rows, view.rows, loaded, key, None)
        return done

    def _complete(self, planned: Planned, folder: Path, keys: list[str], view: Samples) -> bool:
        """Whether a view step is in the store. One that too many rows failed in, for this run, is tried again, and
        a reflecting one where any did: what the teacher answered is kept, so that only the rest is asked."""
        if not (folder / "step.json").is_file():
            return False
        if planned.step.hook in ("train", "select"):
            return True
        loaded, _ = RowStore(folder / "values").load(keys)
        try:
            self._gate(planned, loaded, view)
        except CoverageError:
            (folder / "step.json").unlink()
            return False
        return planned.step.hook != "reflect" or bool(np.isin(loaded.states, (OK, LEFT_OUT)).all())

    def _call_view(
        self, planned: Planned, view: Samples, keys: list[str], folder: Path, run: Context
    ) -> dict[str, Any]:
        hook, checker, source = planned.step.hook, planned.checker(), planned.found.source
        values = RowStore(folder / "values")
        if hook != "reflect":
            shutil.rmtree(values.folder, ignore_errors=True)
        drain = partial(stream.take, samples=view, checker=checker, run=run) if hook == "reflect" else None
        call = calling.caller(hook, planned.method, planned.label, source, drain)
        budget = Budget.parse(planned.step.budget or "100%").for_view(view)
        answer = call(samples=view, budget=budget, run=run)
        if hook == "train":
            trained = checker.trained(answer)
            if not trained.folder.resolve().is_relative_to(folder.resolve()):
                raise checker.fault(f"left its model in {trained.folder}; it belongs into run.folder")
            inside = trained.folder.resolve().relative_to(folder.resolve())
            run.figures |= trained.figures
            return {"model": str(inside), "base": trained.base, "kind": trained.kind, "metrics": trained.metrics}
        if hook == "reflect":
            assert isinstance(answer, stream.Rewrites)
            run.note(rewrites=len(answer.samples), already_good=answer.already_good)
            self._gate(planned, answer.rows, view)
            (folder / "step.json").unlink(missing_ok=True)
            shutil.rmtree(values.folder, ignore_errors=True)  # not before: the earlier result may have to do
            text = "".join(json.dumps(_told(sample), ensure_ascii=False) + "\n" for sample in answer.samples)
            (folder / "rewrites.jsonl").write_text(text, encoding="utf-8")
            values.add(keys, answer.rows, _made_with(planned.method))
            return {}
        if hook == "select":
            chosen = checker.selection(answer, view)
            rows, warnings = self._cut(planned, chosen, view, budget)
            values.add(keys, rows, _made_with(planned.method))
            run.warnings += warnings
            return {}
        if hook == "cluster":
            rows, centres = checker.clusters(answer, view)
            np.save(folder / "centres.npy", centres)
        else:
            rows = checker.scores(answer, view)
        self._gate(planned, rows, view)
        values.add(keys, rows, _made_with(planned.method))
        return {}

    def _cut(self, planned: Planned, chosen: Selection, view: Samples, budget: Budget) -> tuple[Rows, list[str]]:
        """Cut an order at the budget and write it as columns over the view."""
        warnings = []
        order = chosen.positions
        if planned.step.budget is not None:
            from . import models

            count = partial(models.count_tokens, view, planned.student, planned.student_template)
            order, over = budget.cut(order, view, count)
            if over:
                warnings.append(
                    f"the budget of {budget} is over the {len(view)} samples of the view: everything is kept"
                )
        elif planned.step.name != "all":
            passed = len(chosen.left_out) if type(planned.method).numeric else 0
            if len(order) + passed == len(view):
                warnings.append(f"no budget is given: all {len(order)} rows that may be chosen are kept; see --budget")
        rank = np.full(len(view), np.nan)
        rank[order] = np.arange(1, len(order) + 1)
        weight = np.full(len(view), np.nan)
        place = {int(position): at for at, position in enumerate(chosen.positions)}
        if chosen.weights is not None:
            weight[order] = [chosen.weights[place[int(position)]] for position in order]
        why = np.full(len(view), "", object)
        if chosen.reasons is not None:
            why[order] = [chosen.reasons[place[int(position)]] for position in order]
        states, reasons = np.full(len(view), OK, np.int8), np.full(len(view), None, object)
        for position, reason in chosen.left_out.items():
            states[position], reasons[position] = LEFT_OUT, reason
        return Rows({"rank": rank, "weight": weight, "why": why}, states, reasons), warnings

    def _keep(self, done: Done, planned: Planned, view: Samples, loaded: Rows, key: str) -> None:
        state = self.state
        self._mark(done, view.rows, loaded)
        rank, weight = loaded.columns["rank"], loaded.columns["weight"]
        kept = np.flatnonzero(np.isfinite(rank))
        if planned.step.on == "all":
            state.weight[:] = 1
            state.pool.columns.pop(WEIGHT, None)
        state.in_play[:] = False
        state.rank[:] = np.nan
        state.in_play[view.rows[kept]] = True
        state.rank[view.rows[kept]] = rank[kept]
        weighted = np.isfinite(weight)
        state.weight[view.rows[weighted]] *= weight[weighted]
        if weighted.any():
            before = state.pool.columns.pop(WEIGHT, None)  # weights multiply
            origin = key if before is None else fingerprint.digest(before.origin, key)
            state.pool.attach(Held(Column(WEIGHT), state.weight.copy(), origin=origin, step=planned.label))
        done.kept = view.rows[kept[np.argsort(rank[kept])]]
        done.figures["kept"] = len(kept)
        if not len(kept):
            done.warnings.append("nothing was kept")

    def _evaluate(self, planned: Planned) -> Done:
        key = fingerprint.digest(self._fingerprint(planned, by_row=False))
        folder = self.store.view(key)
        with self.store.claimed(key):
            self.store.name(folder, planned.label)
            complete = (folder / "step.json").is_file()
            self.progress.start(planned.label, 0, 0)
            if not complete:
                run = self._context(planned, folder)
                call = calling.caller("evaluate", planned.method, planned.label, planned.found.source)
                result = planned.checker().evaluation(call(run=run))
                write_json(folder / "items.json", result.items)
                told = {"step": planned.label, **_told_of(run), "metrics": result.metrics}
                write_json(folder / "step.json", told)
        told = json.loads((folder / "step.json").read_text(encoding="utf-8"))
        items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        done = self._done(planned, key, given=1, found=int(complete), computed=int(not complete))
        done.figures, done.warnings = told["figures"], told.get("warnings", [])
        done.evaluation = Evaluation(told["metrics"], items)
        return done

    # ---- what all steps share ----

    def _fingerprint(self, planned: Planned, *, by_row: bool) -> str:
        step, pool = planned.step, self.state.pool
        columns = {}
        for name in planned.needs:
            held = pool.held(name)
            # values of input.* columns are told apart row by row, see fingerprint.row_keys
            columns[name] = held.origin or name
        told = [self._identity, sorted(calling.changes(step.hook))]
        if step.hook == "select":
            told.append(str(step.budget))
            if planned.student:
                from . import models

                counts = fingerprint.of_core(("budget", "models", "prompts"))
                told += [models.digest(planned.student), planned.student_template, counts]
        return fingerprint.of_step(
            step.hook, step.name, planned.found.package, planned.method, fingerprint.digest(told), columns
        )

    def _context(self, planned: Planned, folder: Path) -> Context:
        folder.mkdir(parents=True, exist_ok=True)
        chat = None if self.chat_with is None else partial(self.chat_with, memory=self.store.answers)
        run = Context(folder, partial(self.progress.say, planned.label), advance=self.progress.advance, chat_with=chat)

        def warn(text: str) -> None:
            self.progress.warn(planned.label, text)
            run.warnings.append(text)

        run.warn = warn
        return run

    def _done(self, planned: Planned, key: str, given: int, found: int, computed: int) -> Done:
        total = len(self.state.pool)
        return Done(planned, np.zeros(total, np.int8), np.full(total, None, object), key, given, found, computed)

    def _mark(self, done: Done, rows: Array, loaded: Rows) -> None:
        done.states[rows] = loaded.states
        done.reasons[rows] = loaded.reasons

    def _spread(
        self, done: Done, given: Array, rows: Array, loaded: Rows, origin: str, suffix: Array | None
    ) -> None:
        """Attach columns to the pool: equal rows share one value, and those that were given have a state."""
        pool, step = self.state.pool, done.planned.step
        leader = _leaders(pool, rows)  # for every row of the pool, the row that was computed for it, or -1
        place = np.full(len(pool), -1)
        place[rows] = np.arange(len(rows))
        index = np.where(leader >= 0, place[leader], -1)
        there = index >= 0
        done.states[given] = loaded.states[index[given]]
        done.reasons[given] = loaded.reasons[index[given]]
        for column, own in zip(done.planned.gives, _own_names(done.planned), strict=True):
            values = loaded.columns[own]
            if values.ndim == 2:
                good = np.where(there, loaded.states[np.maximum(index, 0)] == OK, False)
                held = Held(column, values, origin, step.label, np.where(good, index, -1), suffix)
            else:
                empty = np.full(len(pool), np.nan) if values.dtype.kind == "f" else np.full(len(pool), None, object)
                empty[there] = values[index[there]]
                held = Held(column, empty, origin, step.label, None, suffix)
            pool.attach(held)
            done.columns.append(column.name)

    def _gate(self, planned: Planned, rows: Rows, samples: Samples) -> None:
        """Stop where too many of the rows that were given have no value."""
        wanted = self.recipe.run.min_coverage
        wanted = type(planned.method).min_coverage if wanted is None else wanted
        left, failed = int((rows.states == LEFT_OUT).sum()), np.flatnonzero(rows.states == FAILED)
        asked = len(samples) - left
        share = 1.0 if not asked else (asked - len(failed)) / asked
        if share >= wanted:
            return
        why = Counter(str(rows.reasons[i]) for i in failed).most_common(3)
        first = samples.rows[failed[0]]
        numbers = self.state.pool.source.numbers if self.state.pool.source else []
        where = f"row {numbers[first]}" if first < len(numbers) else f"sample {samples[int(failed[0])].id}"
        raise CoverageError(
            f"{planned.label} failed on {len(failed)} of {asked} rows ({share:.3f} ok, {wanted:g} wanted), "
            f"first on {where}: {'; '.join(f'{reason} ({n})' for reason, n in why)}. What was finished is kept; "
            f"run again to try the rest, or accept it: --min-coverage {int(share * 100) / 100:g}"
        )


def _own_names(planned: Planned) -> list[str]:
    """What the store calls the columns of a step, whatever --as calls them in the run."""
    if planned.step.hook == "embed":
        return [VECTORS]
    if planned.step.hook == "cluster":
        return ["cluster", "cluster_distance"]
    return [column.renamed(planned.step.column, planned.step.name).name for column in planned.gives]


def _firsts(groups: Array) -> Array:
    """Positions of the first of each group; rows of a view come in id order."""
    first = np.ones(len(groups), bool)
    first[1:] = groups[1:] != groups[:-1]
    return np.flatnonzero(first)


def _leaders(pool: Pool, rows: Array) -> Array:
    """For every row of the pool the one of `rows` with the same id, -1 where there is none."""
    by_group = np.full(int(pool.group.max()) + 1 if len(pool) else 0, -1)
    by_group[pool.group[rows]] = rows
    return by_group[pool.group]


def _numbered(keys: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    numbered = []
    for key in keys:
        numbered.append(f"{key}#{seen[key]}" if seen[key] else key)
        seen[key] += 1
    return numbered


def _digests(method: Method, own: bool = False) -> list[str]:
    """The content of the models that a method reads, its `own` included, and of the one that its teacher serves."""
    named = list(method.also_reads())
    if own and isinstance(model := getattr(method, "model", None), str):
        named.insert(0, model)
    if isinstance(teacher := getattr(method, "teacher", None), str) and teacher.startswith("vllm:"):
        from .teacher import served

        named.append(served(teacher)[0])
    if not named:
        return []
    from . import models

    return list(map(models.digest, named))


def _told_of(run: Context) -> dict[str, Any]:
    """What a method has told of its step, as it is kept in the store."""
    return {"figures": run.figures, "warnings": run.warnings}


def _kinship(view: Samples) -> list[Any]:
    """Who descends from whom, and by which step: families hang on it, and ids do not tell."""
    if all(sample.parent is None for sample in view.pool.samples):
        return []
    roots = view.pool.roots()
    return [[[(sample.parent, sample.made_by) for sample in view], [roots[row] for row in view.rows]]]


def _told(sample: Sample) -> dict[str, Any]:
    return {
        "messages": list(sample.messages),
        "split": sample.split,
        "parent": sample.parent,
    }


def _rewrite(told: dict[str, Any], label: str) -> Sample:
    # another run may call the step by another name
    return Sample(tuple(told["messages"]), told["split"], told["parent"], label)


def _made_with(method: Method) -> dict[str, str]:
    made = {"device": str(getattr(method, "device", None) or "cpu").partition(":")[0]}
    try:
        made["torch"] = version("torch")
    except PackageNotFoundError:
        pass
    return made if hasattr(method, "device") else {}
