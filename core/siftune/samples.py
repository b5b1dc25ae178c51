"""Sample, the pool of all samples of a run, and the views of it that hooks are handed.

A pool is added to, annotated or left out of; nothing in it is edited and nothing is deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .errors import suggestion

if TYPE_CHECKING:
    from .formats import Source

Message = Mapping[str, str]
Array = npt.NDArray[Any]

ROLES = ("system", "user", "assistant", "tool")
EMBEDDING = "embedding"
FAMILY = "family"
ROW = "row"  # of the input, from 1; where a value hangs on the place of a row in its file
DERIVED = (FAMILY, ROW)  # no step makes them, and every pool has them


def content_id(messages: Sequence[Message], split: int | None) -> str:
    """Hash of what a sample says: the same on every machine, in every order and shard."""
    said = [[message["role"], message["content"]] for message in messages]
    text = json.dumps([said, split], ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.blake2b(text, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One instruction sample: a conversation, and where it came from if it is a rewrite."""

    messages: tuple[Message, ...]
    split: int | None = None  # where the instruction of an Alpaca row ends inside the last user message
    parent: str | None = None  # id of the sample that this one rewrites
    made_by: str | None = None  # the step that wrote it
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id(self.messages, self.split))

    @staticmethod
    def of(instruction: str, response: str, input: str = "", system: str = "") -> Sample:
        """A single-turn sample from its parts."""
        asked = f"{instruction}\n\n{input}" if instruction and input else instruction or input
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": response}]
        return Sample(tuple(messages), len(instruction) if instruction and input else None)

    @property
    def response(self) -> str:
        """What the assistant says last; empty if the conversation does not end with the assistant."""
        last = self.messages[-1] if self.messages else None
        return last["content"] if last and last["role"] == "assistant" else ""

    @property
    def prompt(self) -> str:
        """The last user message: the instruction, and the input after a blank line where there is one."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def instruction(self) -> str:
        """The prompt without its input."""
        return self.prompt if self.split is None else self.prompt[: self.split]

    @property
    def input(self) -> str:
        """The input that an Alpaca row holds apart from its instruction."""
        return "" if self.split is None else self.prompt[self.split + 2 :]

    @property
    def system(self) -> str:
        """The system message, or nothing."""
        return next((m["content"] for m in self.messages if m["role"] == "system"), "")

    @property
    def turns(self) -> int:
        """How many times the assistant speaks."""
        return sum(message["role"] == "assistant" for message in self.messages)

    def rewrite(
        self,
        *,
        response: str | None = None,
        instruction: str | None = None,
        input: str | None = None,
        messages: Sequence[Message] | None = None,
    ) -> Sample:
        """A new sample beside this one: what is not named stays as it is. A new instruction drops the input
        unless one is named."""
        if messages is not None:
            return Sample(tuple(messages), parent=self.id)
        split, changed = self.split, [dict(message) for message in self.messages]
        if instruction is not None or input is not None:
            kept = input if input is not None else (self.input if instruction is None else "")
            asked = self.instruction if instruction is None else instruction
            at = max(i for i, m in enumerate(changed) if m["role"] == "user")
            changed[at]["content"] = f"{asked}\n\n{kept}" if kept else asked
            split = len(asked) if kept else None
        if response is not None:
            if changed and changed[-1]["role"] == "assistant":
                changed[-1]["content"] = response
            else:
                changed.append({"role": "assistant", "content": response})
        return Sample(tuple(changed), split, parent=self.id)


@dataclass(frozen=True)
class Column:
    """What a method promises of one of its columns, so that it can be read, shown and chosen by.

    `below`, `above` and `at_least` are the range in which the column may choose: `at_least` names other columns
    and what they have to reach. The range says nothing about the values themselves. A score whose numbers mean
    nothing by themselves asks for its `percentile`: the table shows it beside, `within` the groups of a column.
    """

    name: str
    unit: str = ""
    better: str = ""  # "higher", "lower", or "" where neither is
    below: float | None = None
    above: float | None = None
    at_least: Mapping[str, float] = field(default_factory=dict)
    percentile: bool = False
    within: str = ""

    @property
    def numeric(self) -> bool:
        """Whether what is promised makes sense of numbers only."""
        bounded = self.below is not None or self.above is not None or bool(self.at_least)
        return bool(self.unit or self.better or self.percentile) or bounded

    def renamed(self, old: str, new: str) -> Column:
        """The same promise under `--as`: `ifd.tokens` becomes `new.tokens`."""

        def move(name: str) -> str:
            return new + name[len(old) :] if name == old or name.startswith(old + ".") else name

        least = {move(name): value for name, value in self.at_least.items()}
        return replace(self, name=move(self.name), at_least=least)


@dataclass
class Held:
    """A column as the pool holds it. `values` has a row per sample of the pool, or, with `index`, a row for
    each sample whose index is not negative (vectors stay in the file that they are mapped from)."""

    about: Column
    values: Array
    origin: str = ""  # fingerprint of the step (or of the values) it came from
    step: str = ""
    index: Array | None = None
    suffix: Array | None = None  # per row, what of the row's own its value hangs on, see fingerprint.row_keys

    def at(self, rows: Array, total: int) -> Array:
        """The values of these rows of the pool: NaN or None where there is none."""
        if self.index is not None:
            places = self.index[rows]
            if not len(places) or (places >= 0).all():
                return self.values[places]
            found = np.full((len(rows), self.values.shape[1]), np.nan, self.values.dtype)
            found[places >= 0] = self.values[places[places >= 0]]
            return found
        return self.values[rows]

    def known(self, rows: Array) -> Array:
        """Which of these rows of the pool have a value."""
        if self.index is not None:
            return self.index[rows] >= 0
        values = self.values[rows]
        return ~np.isnan(values) if values.dtype.kind == "f" else np.array([v is not None for v in values], bool)

    def grow(self, extra: int) -> None:
        """Make room for rewrites, which have no value yet."""
        if self.suffix is not None:
            self.suffix = np.concatenate([self.suffix, np.full(extra, "", object)])
        if self.index is not None:
            self.index = np.concatenate([self.index, np.full(extra, -1, self.index.dtype)])
        else:
            empty = np.full(extra, np.nan) if self.values.dtype.kind == "f" else np.full(extra, None, object)
            self.values = np.concatenate([self.values, empty])


class Pool:
    """All samples of a run in the order of the input, rewrites after them, and what is known of each."""

    def __init__(self, samples: Sequence[Sample], source: Source | None = None) -> None:
        self.samples = list(samples)
        self.source = source  # the rows as they were read, for writing them back; None for samples made in Python
        self.columns: dict[str, Held] = {}
        self._derived: dict[str, Held] = {}  # input columns and families, built once and not for every shard
        self._arrange()

    def _arrange(self) -> None:
        self._derived.clear()
        ids = np.array([sample.id for sample in self.samples], dtype="U24")
        self.order: Array = np.argsort(ids, kind="stable")
        ordered = ids[self.order]
        first = np.ones(len(ids), bool)
        first[1:] = ordered[1:] != ordered[:-1]
        self.first = np.zeros(len(ids), bool)  # not a duplicate of an earlier row
        self.first[self.order[first]] = True
        self.group = np.empty(len(ids), np.int64)  # the same number for the same id
        self.group[self.order] = np.cumsum(first) - 1

    @staticmethod
    def read(*paths: str | Path, **options: Any) -> Pool:
        """Read files or hub data sets; see `formats.read` for the options. Raises UserError for bad input."""
        from . import formats

        return formats.read([str(path) for path in paths], **options)

    @staticmethod
    def of(rows: Iterable[Sample | Mapping[str, Any]]) -> Pool:
        """A pool of samples, or of rows as a file would hold them."""
        from . import formats

        rows = list(rows)
        samples = [row for row in rows if isinstance(row, Sample)]
        return Pool(samples) if len(samples) == len(rows) else formats.from_rows(rows)

    def write(self, path: str | Path, rows: Array | Sequence[int] | None = None, format: str = "") -> Path:
        """Write samples (all, or these rows of the pool) in the shape they came in, or another; see formats."""
        from . import formats

        return formats.write(self, Path(path), range(len(self)) if rows is None else rows, format)

    def copy(self) -> Pool:
        """The same samples and columns; what is added to the copy leaves this pool as it is."""
        other = Pool(self.samples, self.source)
        other.columns = {name: replace(held) for name, held in self.columns.items()}
        return other

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, samples: Sequence[Sample]) -> Array:
        """Append rewrites and give their rows."""
        start = len(self.samples)
        self.samples.extend(samples)
        for held in self.columns.values():
            held.grow(len(samples))
        self._arrange()
        return np.arange(start, len(self.samples))

    def attach(self, held: Held) -> None:
        """Annotate the pool with a column."""
        if held.about.name in self.columns:
            raise ValueError(f"column {held.about.name!r} exists already")
        self.columns[held.about.name] = held

    def row_of(self, wanted: str) -> int:
        """The first row with this id, or with a unique beginning of it."""
        rows = [i for i, s in enumerate(self.samples) if s.id.startswith(wanted) and self.first[i]]
        if len(rows) != 1:
            raise KeyError(wanted)
        return rows[0]

    def roots(self) -> list[str]:
        """For each row the id of its root ancestor; its own where it is no rewrite."""
        here = {sample.id for sample in self.samples}
        parents = {s.id: s.parent for s in reversed(self.samples) if s.parent is not None}
        # an original that a rewrite happens to equal stays its own root
        for sample in self.samples:
            if sample.parent is None:
                parents.pop(sample.id, None)

        def root(sample: Sample) -> str:
            seen, up = [sample.id], sample.parent
            while up is not None and up in here and up not in seen:
                seen.append(up)
                up = parents.get(up)
            return seen[-1]

        return [sample.id if sample.parent is None else root(sample) for sample in self.samples]

    def families(self) -> Array:
        """For each row the group number of its root ancestor: a sample and all that was rewritten from it."""
        groups = {sample.id: int(self.group[i]) for i, sample in enumerate(self.samples)}
        return np.array([groups[root] for root in self.roots()], np.float64)

    def has(self, name: str) -> bool:
        """Whether this column can be asked for."""
        if name.startswith("input."):
            return self.source is not None and name[6:] in self.source.column_names()
        return name in self.columns or name in DERIVED

    def names(self) -> list[str]:
        """Every column that can be asked for."""
        own = [f"input.{name}" for name in self.source.column_names()] if self.source else []
        return [*self.columns, *own]

    def held(self, name: str) -> Held:
        """The column of this name; `input.NAME` is one that the rows came with. Raises KeyError."""
        if name in self.columns:
            return self.columns[name]
        if name not in self._derived:
            self._derived[name] = self._derive(name)
        return self._derived[name]

    def _derive(self, name: str) -> Held:
        if name == FAMILY:
            return Held(Column(FAMILY), self.families())
        if name == ROW:
            numbers = np.full(len(self.samples), np.nan)  # rewrites have none
            own = self.source.numbers if self.source else range(1, len(self.samples) + 1)
            numbers[: len(own)] = own
            return Held(Column(ROW), numbers[self._firsts()])
        if name.startswith("input.") and self.has(name):
            assert self.source is not None
            values = self.source.column(name[6:], len(self.samples))
            return Held(Column(name), values[self._firsts()])
        raise KeyError(f"no column {name!r}.{suggestion(name, self.names())}")

    def _firsts(self) -> Array:
        """For every row the first that says the same: a duplicate is computed once, with what that one came with."""
        firsts = np.zeros(int(self.group.max()) + 1 if len(self.group) else 0, np.int64)
        firsts[self.group[self.first]] = np.flatnonzero(self.first)
        return firsts[self.group]

    def view(self, rows: Array | None = None, allowed: Iterable[str] | None = None) -> Samples:
        """These rows (or all) in id order. With `allowed`, only those columns can be asked for."""
        inside = np.ones(len(self), bool) if rows is None else np.isin(np.arange(len(self)), rows)
        return Samples(self, self.order[inside[self.order]], None if allowed is None else frozenset(allowed))


class Samples(Sequence[Sample]):
    """The view of the pool that a hook is handed; positions count inside the view."""

    def __init__(self, pool: Pool, rows: Array, allowed: frozenset[str] | None = None) -> None:
        self.pool = pool
        self.rows = rows
        self._allowed = allowed

    @staticmethod
    def of(rows: Iterable[Sample | Mapping[str, Any]], **columns: Any) -> Samples:
        """A view of its own for tests and notebooks, in the order given; keywords become columns
        (`ifd__tokens=...` is `ifd.tokens`)."""
        pool = Pool.of(rows)
        for name, values in columns.items():
            array = np.asarray(values)
            if array.ndim == 2:
                index = np.arange(len(pool))
                pool.attach(Held(Column(name), array.astype(np.float32), index=index))
            else:
                kind: Any = np.float64 if array.dtype.kind in "biuf" else object
                pool.attach(Held(Column(name.replace("__", ".")), array.astype(kind)))
        return Samples(pool, np.arange(len(pool)))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int | np.integer[Any]) -> Sample: ...
    @overload
    def __getitem__(self, at: slice | Array | Sequence[int]) -> Samples: ...
    def __getitem__(self, at: Any) -> Sample | Samples:
        if isinstance(at, (int, np.integer)):
            return self.pool.samples[int(self.rows[at])]
        chosen: Array = self.rows[at] if isinstance(at, slice) else self.rows[np.asarray(at, dtype=np.int64)]
        return Samples(self.pool, chosen, self._allowed)

    def __iter__(self) -> Iterator[Sample]:
        every = self.pool.samples
        return (every[row] for row in self.rows)

    @property
    def ids(self) -> list[str]:
        """The id of every sample of the view."""
        return [sample.id for sample in self]

    def _check(self, name: str) -> None:
        if self._allowed is not None and name not in self._allowed and name != FAMILY:
            # undeclared reading would leave the column out of the fingerprint, and old values would be taken for new
            raise KeyError(f"column {name!r} was asked for but is not in needs(), which names {sorted(self._allowed)}")

    def column(self, name: str) -> Array:
        """The values of a column: float64 `(n,)` with NaN for none, object `(n,)` with None, or vectors `(n, d)`.

        Raises KeyError for a column that there is not, or that the method does not name in `needs()`.
        """
        self._check(name)
        return self.pool.held(name).at(self.rows, len(self.pool))

    def about(self, name: str) -> Column:
        """What the method that made the column promises of it."""
        self._check(name)
        return self.pool.held(name).about

    @property
    def columns(self) -> list[str]:
        """The columns that may be asked for here."""
        return [n for n in self.pool.names() if self._allowed is None or n in self._allowed]
