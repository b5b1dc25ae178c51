"""Method, and what its hook may give back; methods found by name among the installed distributions."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, dataclass_transform

from .errors import UserError, suggestion
from .hookspecs import HOOKS

if TYPE_CHECKING:
    from .samples import Column

# A recipe's own keys: an option of this name could not be told apart from them.
RESERVED = frozenset({*HOOKS, "on", "as_", "budget", "name", "replace"})
# Left None, these are given the run's when the step starts.
FILLED = ("model", "template", "teacher", "teacher_model", "seed", "dtype", "device")


@dataclass_transform(kw_only_default=True, eq_default=False)
class Method:
    """One named way to do a hook. Its fields are its options: on the command line, in a recipe, in Python.

    Class variables say how the engine treats it:

    - `reads`: the kind of model that its field `model` names; only "causal-lm" inherits the run's.
    - `makes`: the kind of model that a trainer gives.
    - `requires`: fields that the run fills and that may not stay empty ("model", "teacher", ...).
    - `numeric`: fields that name a column of numbers; one that is known to hold text is refused before the run.
    - `uses`: core modules whose code the values hang on; a change there computes them anew.
    - `scope`: "rows" is called shard by shard and cached by sample, "view" is called once (score only).
    - `shard`: rows handed over at once, and lost at most by a kill.
    - `min_coverage`: share of the rows that has to end ok, where the run names none.
    """

    reads: ClassVar[str] = "causal-lm"
    makes: ClassVar[str] = "causal-lm"
    requires: ClassVar[Sequence[str]] = ()
    numeric: ClassVar[Sequence[str]] = ()
    uses: ClassVar[Sequence[str]] = ()
    scope: ClassVar[Literal["rows", "view"]] = "rows"
    shard: ClassVar[int] = 1024
    min_coverage: ClassVar[float] = 0.995

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = inspect.get_annotations(cls)
        # a field that hides one of the class's own variables would change how the engine treats the method
        taken = sorted(
            (RESERVED | set(vars(Method))) & {name for name, hint in own.items() if "ClassVar" not in str(hint)}
        )
        if taken:
            words = ", ".join(taken)
            raise TypeError(f"{cls.__name__}: {words} cannot be an option: recipes, or Method itself, use the word")
        # eq=False keeps instances hashable and distinct, which pluggy needs
        dataclass(kw_only=True, eq=False)(cls)

    def needs(self) -> Sequence[str]:
        """Columns that the hook reads, `input.NAME` for one that the rows came with. Only these can be read.

        A name that ends in "?" is read where the column exists and may be absent; a pattern such as "style.*"
        is as many columns as there are, and at least one.
        """
        return ()

    def gives(self) -> Sequence[Column]:
        """Columns that a scorer makes, named after the method; by default one of the method's name."""
        return ()

    def also_reads(self) -> Sequence[str]:
        """Models besides `model` that the values hang on: looked for before the run, fingerprinted by content."""
        return ()

    def __reduce__(self) -> tuple[Any, ...]:
        # only fields travel to another process, and the checks in __post_init__ run there again
        return _rebuild, (type(self), self.options())

    def options(self) -> dict[str, Any]:
        """Every field by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """The options as dataclass fields."""
        return dataclasses.fields(cls)  # type: ignore[arg-type]


def _rebuild(kind: type[Method], options: dict[str, Any]) -> Method:
    return kind(**options)


@dataclass
class Outcome:
    """Values for every row, and the fate of the rows (by position) that got none; theirs are ignored."""

    values: Any
    left_out: Mapping[int, str] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fate:
    """What `reflect` yields for a sample that gets no rewrite: exactly one of a reason and an error."""

    position: int
    left_out: str = ""
    failed: str = ""


@dataclass
class Selection:
    """Positions to keep, best first, with optional weights and reasons for them, in the same order.

    `left_out` names positions that may not be chosen, and why.
    """

    positions: Any
    weights: Any = None
    reasons: Sequence[str] | None = None
    left_out: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Trained:
    """A model in a folder: what it was trained from, and its kind ("causal-lm", "ranker", ...).

    `metrics` are what the trainer measured on samples that it held out, as those of an Evaluation: arms are laid
    beside each other by them. `figures` are whatever else is worth knowing about the training.
    """

    folder: Path
    base: str
    kind: str = "causal-lm"
    figures: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Evaluation:
    """Figures by name (numbers, or a mapping with `value`, `low`, `high`, `n`), and one row per test item."""

    metrics: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Found:
    """A method that is installed: which distribution provides it, and where its class is."""

    hook: str
    name: str
    entry: EntryPoint
    package: str
    version: str

    @property
    def source(self) -> str:
        """The distribution as an error names it."""
        return f"{self.package} {self.version}"


def installed(group: str) -> Iterable[tuple[EntryPoint, Distribution]]:
    """Every entry point of a group with its distribution; imports nothing."""
    for entry in _entry_points(tuple(sys.path)).select(group=group):
        if entry.dist is not None:
            yield entry, entry.dist


@cache
def _entry_points(path: tuple[str, ...]) -> EntryPoints:
    """All entry points, read once for each state of sys.path."""
    found: EntryPoints = entry_points()  # type: ignore[assignment]
    return found


def found(hook: str) -> dict[str, Found]:
    """Installed methods of a hook by name. Raises UserError if two distributions claim one name."""
    methods: dict[str, Found] = {}
    for entry, dist in installed(f"siftune.{hook}"):
        one = Found(hook, entry.name, entry, dist.metadata["Name"], dist.version)
        if entry.name in methods:
            other = methods[entry.name]
            raise UserError(
                f"{hook} {entry.name} is provided by both {other.source} and {one.source}; "
                f"remove one: pip uninstall {one.package}"
            )
        methods[entry.name] = one
    return dict(sorted(methods.items()))


def load(hook: str, name: str) -> type[Method]:
    """Import one method's class. Raises UserError that says what is wrong and what to type."""
    methods = found(hook)
    if name not in methods:
        raise UserError(_unknown(hook, name, methods))
    one = methods[name]
    try:
        kind = one.entry.load()
    except Exception as error:
        message = f"{hook} {name}: {one.source} could not be imported: {type(error).__name__}: {error}"
        raise UserError(message) from error
    if not (inspect.isclass(kind) and issubclass(kind, Method)):
        raise UserError(f"{hook} {name}: {one.entry.value} of {one.source} is not a subclass of siftune.Method")
    if not hasattr(getattr(kind, hook, None), "siftune_impl"):
        others = [h for h in HOOKS if hasattr(getattr(kind, h, None), "siftune_impl")]
        hint = f"; it implements {others[0]}, so its group is siftune.{others[0]}" if others else ""
        if callable(getattr(kind, hook, None)):
            hint = f"; put @hookimpl above its method {hook}"
        raise UserError(f"{hook} {name}: {kind.__name__} of {one.source} does not implement the hook {hook}{hint}")
    return kind


def _unknown(hook: str, name: str, methods: Mapping[str, Found]) -> str:
    """Why there is no such method: known but not installed, of another hook, or misspelt."""
    from . import registry

    known = registry.methods(hook)
    if name in known:
        return f"{hook} {name} is not installed; try: siftune install {known[name].package}"
    for other in HOOKS:
        if other != hook and name in found(other):
            return f"{name!r} is a method of {other}, not of {hook}; write: {other} {name}"
    hint = suggestion(name, {*methods, *known})
    return f"no {hook} method {name!r}.{hint} See: siftune methods {hook}"
