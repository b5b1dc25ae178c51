"""The whole chain checked and filled in before anything runs: a typo in the last step costs nothing."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from . import methods, prompts, registry
from .attach import Checker
from .budget import Budget
from .errors import UserError, near, suggestion
from .methods import FILLED, Found, Method
from .recipe import Defaults, Recipe, Step, placed
from .samples import DERIVED, Column

# Made by a select that weights what it keeps; there or not, which only the run can tell.
WEIGHT = "weight"
MAKES_COLUMNS = ("embed", "cluster", "score")
WORDS = {
    "dtype": ("float32", "bfloat16"),
    "device": ("cpu", "cuda", "mps"),
    "template": ("auto", "chat", *prompts.STYLES),
}
# What `table.parquet`, the folders of the steps and the store say of every row.
TAKEN = frozenset((*DERIVED, "id", "parent", "made_by", "status", "reason", "kept", "rank", WEIGHT, "key", "state"))


@dataclass
class Planned:
    """A step that can run: its method filled in, what it makes, and which columns it may read."""

    number: int
    step: Step
    method: Method
    found: Found
    gives: Sequence[Column] = ()
    needs: Sequence[str] = ()  # without the "?" of those that may be absent
    travelling: bool = False  # reads the model that an earlier step trains
    student: str = ""  # whose tokens a budget counts, and under which template
    student_template: str = ""

    @property
    def label(self) -> str:
        return self.step.label

    @property
    def folder(self) -> str:
        """Its folder in the run."""
        return f"{self.number:02d}-{self.step.hook}-{self.step.name}"

    def checker(self) -> Checker:
        """Checks its answers under the method's own names; --as is applied afterwards."""
        own = self.step.name
        columns = [column.renamed(self.step.column, own) for column in self.gives] if self.step.hook == "score" else []
        return Checker(self.label, self.found.source, own, columns)


@dataclass
class Known:
    """What exists at a point of the chain."""

    columns: dict[str, str]
    inputs: Sequence[str]
    about: dict[str, Column] = field(default_factory=dict)
    makes: set[str] = field(default_factory=set)  # kinds of models that earlier steps train
    texts: frozenset[str] = frozenset()
    later: dict[str, str] = field(default_factory=dict)  # columns that later steps make


def check(recipe: Recipe, inputs: Sequence[str] | None, texts: Iterable[str] = ()) -> list[Planned]:
    """Plan a recipe. `inputs` are the columns that the rows come with, None where there is no data set; `texts`
    are those of them that hold text.

    Raises UserError for the first thing that would fail.
    """
    if not recipe.steps:
        raise UserError("there is no step; write at least one, such as: score length")
    for name in WORDS:
        _check_word("the run", name, getattr(recipe.run, name))
    made = dict.fromkeys(DERIVED, "every sample")
    known = Known(made, list(inputs or ()), texts=frozenset(f"input.{name}" for name in texts))
    planned = []
    for number, step in enumerate(recipe.steps, 1):
        if step.hook != "evaluate" and inputs is None:
            said = "--data DATA, or path in [data]" if step.where else f"siftune run DATA {step.label} ..."
            raise UserError(f"{step.label} needs a data set: {said}")
        known.later = {one.column: one.label for one in recipe.steps[number:] if one.hook in MAKES_COLUMNS}
        with placed(step.where):
            planned.append(plan_method(number, step, step.method(), step.found(), recipe.run, known))
    _name_students(planned, recipe.run)
    return planned


def _name_students(planned: Sequence[Planned], defaults: Defaults) -> None:
    """A budget in tokens counts those of the model that is trained next, else of the run's."""
    for at, one in enumerate(planned):
        if one.step.budget is None or Budget.parse(one.step.budget).unit != "tokens":
            continue
        trainers = [p.method for p in planned[at:] if p.step.hook == "train"]
        student = next((m for t in trainers if isinstance(m := getattr(t, "model", None), str)), defaults.model)
        if student is None:
            raise UserError(
                f"{one.label}: a budget in tokens needs the student's tokenizer: --model MODEL, before the first step"
            )
        one.student = student
        one.student_template = next(
            (how for t in trainers if isinstance(how := getattr(t, "template", None), str)), defaults.template or "auto"
        )


def plan_method(number: int, step: Step, method: Method, found: Found, defaults: Defaults, known: Known) -> Planned:
    """One step on top of what is known; adds to it what the step makes."""
    one = Planned(number, step, method, found)
    one.travelling = fill(method, step, defaults, known.makes)
    _require(one)
    one.needs = _needs(one, known)
    for name in type(method).numeric:
        if (column := getattr(method, name)) in known.texts:
            raise UserError(f"{one.label}: {column} holds text, and only numbers have an order")
    one.gives = _gives(one)
    for column in one.gives:
        if column.name in known.columns:
            raise UserError(
                f"{one.label} makes the column {column.name!r}, which {known.columns[column.name]} makes already; "
                "give it another name: --as NAME"
            )
        known.columns[column.name] = one.label
        known.about[column.name] = column
    if step.hook == "select":
        known.columns.setdefault(WEIGHT, one.label)
    if step.budget is not None:
        per = Budget.parse(step.budget).per
        if per is not None and per not in known.columns and per not in [f"input.{name}" for name in known.inputs]:
            raise UserError(
                f"{one.label}: the budget counts per {per!r}, which is no column.{_columns_hint(per, known)}"
            )
    if step.hook == "train":
        known.makes.add(type(method).makes)
    return one


def fill(method: Method, step: Step, defaults: Defaults, makes: set[str]) -> bool:
    """Give the fields that were left open the run's values. True if the model is one that is yet to be trained."""
    kind = type(method)
    fields = {f.name for f in kind.fields()}
    travelling = False
    for name in (name for name in FILLED if name in fields and getattr(method, name) is None):
        if name == "model":
            goes_on = step.hook != "train" or bool(getattr(method, "continue_", False))
            if goes_on and kind.reads in makes:
                travelling = True
            elif kind.reads == "causal-lm":
                method.model = defaults.model  # type: ignore[attr-defined]
        elif name == "device":
            method.device = defaults.device or default_device()  # type: ignore[attr-defined]
        elif name == "dtype":
            device = getattr(method, "device", None) or defaults.device or default_device()
            fallback = "float32" if device.startswith("cpu") else "bfloat16"
            method.dtype = defaults.dtype or fallback  # type: ignore[attr-defined]
        elif name == "template":
            method.template = defaults.template or "auto"  # type: ignore[attr-defined]
        else:
            setattr(method, name, getattr(defaults, name))
    return travelling


@cache
def default_device() -> str:
    """ "cuda" or "mps" where there is one, else "cpu"; torch is asked only where a device may be."""
    if not (os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd") or sys.platform in ("darwin", "win32")):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _require(one: Planned) -> None:
    kind = type(one.method)
    for name in kind.requires:
        if getattr(one.method, name) is not None or (name == "model" and one.travelling):
            continue
        if name == "model" and kind.reads != "causal-lm":
            raise UserError(
                f"{one.label} reads a {kind.reads}, not the run's causal LM: name one with {one.label} --model MODEL"
            )
        flag = "--" + name.replace("_", "-")
        example = {"model": "nano", "teacher": "http://localhost:8000/v1"}.get(name, name.upper())
        where = "before the first step for the whole run, or behind this one"
        raise UserError(f"{one.label} needs a {name.replace('_', ' ')}: {flag} {example}, {where}")
    for field_ in kind.fields():
        if field_.name in WORDS and "Literal" not in str(field_.type):  # which says itself what is allowed
            _check_word(one.label, field_.name, getattr(one.method, field_.name))
    for model in (getattr(one.method, "model", None), *one.method.also_reads()):
        if isinstance(model, str):
            from . import models

            try:
                models.check(model, kind.reads)
            except UserError as error:
                raise UserError(f"{one.label}: {error}") from None
    teacher = getattr(one.method, "teacher", None)
    if isinstance(teacher, str):
        from .teacher import check as check_teacher

        check_teacher(teacher)
    for name, value in one.method.options().items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and not path.exists():
                raise UserError(f"{one.label}: --{name.rstrip('_').replace('_', '-')}: there is no file {path}")


def _check_word(label: str, name: str, value: str | None) -> None:
    """Whether a dtype, a device or a template is one that there is. Raises UserError."""
    words = WORDS[name]
    plain = str(value).partition(":")[0] if name == "device" else value
    if value is not None and plain not in words:
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise UserError(f"{label}: no {name} {value!r}.{near(value, words)} Take {listed}")
    if name == "device" and value not in (None, "cpu") and not _has_device(str(value)):
        raise UserError(f"{label}: there is no device {value!r} on this machine; see: siftune doctor")


@cache
def _has_device(name: str) -> bool:
    import torch

    kind, _, number = name.partition(":")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}[kind]
    return (int(number) if number.isdigit() else 0 if not number else count) < count


def _needs(one: Planned, known: Known) -> list[str]:
    needed = []
    every = [name for name in known.columns if name not in DERIVED] + [f"input.{name}" for name in known.inputs]
    for name in one.method.needs():
        if "*" in name:  # "style.*" is as many columns as there are
            matching = fnmatch.filter(every, name)
            if not matching:
                raise UserError(f"{one.label} needs columns like {name!r}, and no earlier step makes one")
            needed += matching
            continue
        plain = name.removesuffix("?")
        there = plain in known.columns or (plain.startswith("input.") and plain[6:] in known.inputs)
        if there:
            needed.append(plain)
        elif not name.endswith("?"):
            lacking = "which the rows do not have" if plain.startswith("input.") else "which no earlier step makes"
            raise UserError(f"{one.label} needs the column {plain!r}, {lacking}.{_columns_hint(plain, known)}")
    # who may read a column may read what its range hangs on
    for name in list(needed):
        needed += (
            [other for other in known.about[name].at_least if other in known.columns] if name in known.about else []
        )
    per = Budget.parse(one.step.budget).per if one.step.budget is not None else None
    return list(dict.fromkeys([*needed, per] if per else needed))


def _columns_hint(name: str, known: Known) -> str:
    if name in known.inputs:
        return f" The rows came with it: write input.{name}."
    if later := known.later.get(name) or known.later.get(name.partition(".")[0].removesuffix("_distance")):
        return f" {later} comes later: put it before"
    if name == "embedding":
        return " Put a step before it: embed sentence"
    if name.startswith("cluster"):
        return " Put a step before it: cluster kmeans"
    if (scorer := name.partition(".")[0]) in {**registry.methods("score"), **methods.found("score")}:
        return f" Put a step before it: score {scorer}"
    return suggestion(
        name, [c for c in known.columns if c not in (*DERIVED, WEIGHT)] + [f"input.{c}" for c in known.inputs]
    )


def _gives(one: Planned) -> list[Column]:
    step = one.step
    if step.hook in MAKES_COLUMNS and step.column in TAKEN:
        raise UserError(
            f"{one.label}: {step.column!r} is what the table says of every row; give another name: --as NAME"
        )
    if step.hook == "embed":
        return [Column(step.column)]
    if step.hook == "cluster":
        return [Column(step.column), Column(f"{step.column}_distance", better="lower")]
    if step.hook != "score":
        return []
    columns = list(one.method.gives()) or [Column(step.name)]
    for column in columns:
        if column.name != step.name and not column.name.startswith(step.name + "."):
            raise UserError(
                f"{one.label} ({one.found.source}): gives() names {column.name!r}; "
                f"its columns are {step.name!r} and those that begin with {step.name + '.'!r}"
            )
    return [column.renamed(step.name, step.column) for column in columns]
