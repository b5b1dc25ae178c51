"""Steps and recipes: a data set and a list of steps, read from TOML or a command line, and written back."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import options, shipped
from .budget import Budget
from .errors import UserError, near, suggestion
from .hookspecs import HOOKS
from .methods import Found, Method, found, load

ON = ("kept", "all")
_KINDS = {dict: "one table", list: "a list", str: "a text"}
ON_BAD_ROW = ("stop", "leave-out")


@dataclass(frozen=True)
class Step:
    """A method with its options as the user named them; what is unset is the method's default or the run's."""

    hook: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    on: str = "kept"
    as_: str | None = None
    budget: str | int | float | None = None
    label: str = ""  # what an arm replaces it by, and an error calls it; "score ifd" where none is given
    base: Path = Path()  # what relative paths in the options start from
    where: str = field(default="", compare=False)  # its place in a recipe's file, for errors

    def __init__(
        self,
        hook: str,
        name: str,
        *,
        on: str = "kept",
        as_: str | None = None,
        budget: str | int | float | None = None,
        label: str = "",
        base: Path = Path(),
        where: str = "",
        **options: Any,
    ) -> None:
        if hook not in HOOKS:
            raise UserError(f"no hook {hook!r}.{near(hook, HOOKS)} The hooks are {', '.join(HOOKS)}")
        known = {"hook": hook, "name": name, "options": dict(options), "on": on, "as_": as_, "budget": budget}
        for key, value in {**known, "label": label or f"{hook} {name}", "base": base, "where": where}.items():
            object.__setattr__(self, key, value)
        if on not in ON:
            raise UserError(f"{self.label}: --on is kept or all, not {on!r}.{near(on, ON)}")
        if budget is not None:
            if hook != "select":
                raise UserError(f"{self.label}: only select takes a budget")
            Budget.parse(budget)
        if as_ is not None and hook not in ("embed", "cluster", "score"):
            raise UserError(f"{self.label}: --as names the column of embed, cluster or score")
        if as_ is not None and not as_.replace("-", "_").isidentifier():
            raise UserError(f"{self.label}: {as_!r} cannot be a column; use letters, digits, '-' and '_'")

    @staticmethod
    def parse(text: str) -> Step:
        """One step as a command line says it: `score ifd --model nano`."""
        steps = parse_chain(shlex.split(text))
        if len(steps) != 1:
            raise UserError(f"{text!r} is not one step, such as 'score ifd --model nano'")
        return steps[0]

    @property
    def said(self) -> str:
        """The step as the command line says it."""
        words = [self.hook, self.name]
        on = None if self.on == "kept" else self.on
        for key, value in {"on": on, "as": self.as_, **self.options, "budget": self.budget}.items():
            flag = "--" + key.rstrip("_").replace("_", "-")
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if one is True:
                    words.append(flag)
                elif one is not None and one is not False:
                    words += [flag, shlex.quote(str(one))]
        return " ".join(words)

    @property
    def column(self) -> str:
        """The column that the step makes, before --as is looked at by the method's own name."""
        return self.as_ or {"embed": "embedding", "cluster": "cluster"}.get(self.hook, self.name)

    def kind(self) -> type[Method]:
        """The class of the method. Raises UserError if it is not there."""
        return load(self.hook, self.name)

    def found(self) -> Found:
        """The distribution that provides it."""
        return found(self.hook)[self.name]

    def method(self) -> Method:
        """The method with its options. Raises UserError for a wrong one."""
        with placed(self.where):
            return options.build(self.kind(), self.options, self.label, self.base)

    def from_here(self) -> Step:
        """The same with every path among its options made absolute."""
        known = {option.key: option for option in options.of(self.kind()).values() if option.is_path}
        moved = {
            key: absolute(known[key.rstrip("_")].check(value, self.base))
            for key, value in self.options.items()
            if key.rstrip("_") in known
        }
        return replace_step(self, **moved)

    def table(self) -> dict[str, Any]:
        """The step as a recipe writes it."""
        table: dict[str, Any] = {self.hook: self.name}
        if self.label != f"{self.hook} {self.name}":
            table["name"] = self.label
        if self.on != "kept":
            table["on"] = self.on
        if self.as_:
            table["as"] = self.as_
        if self.budget is not None:
            table["budget"] = self.budget if isinstance(self.budget, int) else str(self.budget)
        return table | {k.rstrip("_"): _plain(v) for k, v in self.options.items() if v is not None}

    @staticmethod
    def from_table(table: Mapping[str, Any], where: str, base: Path) -> Step:
        """A step from a recipe's table: one hook key, then its options. Raises UserError."""
        hooks = [key for key in table if key in HOOKS]
        if len(hooks) != 1:
            known = [*HOOKS, "name", "on", "as", "budget"]
            hint = next(filter(None, (near(key, known) for key in table)), "")
            said = " and ".join(hooks) if hooks else "none of the hooks"
            raise UserError(f"{where} names {said}; it takes exactly one of {', '.join(HOOKS)}.{hint}")
        hook, rest = hooks[0], {key: value for key, value in table.items() if key != hooks[0]}
        if not isinstance(table[hook], str):
            raise UserError(f'{where}: {hook} takes the name of a method, as in {hook} = "NAME"')
        for key in ("on", "as", "name"):
            if not isinstance(rest.get(key, ""), str):
                raise UserError(f"{where}: {key} is a text, not {rest[key]!r}")
        if isinstance(rest.get("budget"), bool) or not isinstance(rest.get("budget", ""), (str, int, float)):
            raise UserError(f'{where}: budget is a number or a text such as "5%"')
        own = {"on": rest.pop("on", "kept"), "as_": rest.pop("as", None), "budget": rest.pop("budget", None)}
        label = rest.pop("name", "")
        for key in ("self", "hook", "base", "label", "as_", "where"):
            if key in rest:
                raise UserError(f"{where}: {hook} {table[hook]} has no option {key!r}")
        with placed(where):
            return Step(hook, table[hook], label=label, base=base, where=where, **own, **rest)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Defaults:
    """What the fields that a step leaves open are filled with, and how strict the run is."""

    seed: int = 0
    model: str | None = None
    template: str | None = None
    teacher: str | None = None
    teacher_model: str | None = None
    dtype: str | None = None
    device: str | None = None
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        if self.min_coverage is not None and not 0 <= self.min_coverage <= 1:
            raise UserError(f"min-coverage is a share between 0 and 1, not {self.min_coverage:g}")


@dataclass(frozen=True)
class Data:
    """Where the rows come from, and how they are read."""

    path: tuple[str, ...] = ()
    format: str = ""
    on_bad_row: str = "stop"
    limit: int | None = None
    keep_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.on_bad_row not in ON_BAD_ROW:
            hint = near(self.on_bad_row, ON_BAD_ROW)
            raise UserError(f"on-bad-row is {' or '.join(ON_BAD_ROW)}, not {self.on_bad_row!r}.{hint}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is a number of rows, at least 1, not {self.limit}")


@dataclass(frozen=True)
class Arm:
    """A run of the same recipe but for one step."""

    name: str
    step: Step
    replaces: str = "select"

    def __post_init__(self) -> None:
        # the name becomes a folder
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise UserError(f"arm {self.name!r}: a name is made of letters, digits, '-' and '_'")


@dataclass(frozen=True)
class Recipe:
    """Data, defaults and steps; and arms where several selections are compared."""

    steps: tuple[Step, ...]
    data: Data = Data()
    run: Defaults = Defaults()
    arms: tuple[Arm, ...] = ()
    name: str = "chain"

    @staticmethod
    def read(path: str | Path) -> Recipe:
        """Read a TOML file, or a recipe that ships by name. Raises UserError with the key at fault."""
        file = find(path)
        try:
            tables = tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is not TOML: {error}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        return Recipe.from_tables(tables, str(path), file.parent, file.stem)

    @staticmethod
    def from_tables(tables: Mapping[str, Any], where: str, base: Path = Path(), name: str = "chain") -> Recipe:
        """A recipe from parsed TOML."""
        _check_keys(tables, {"data", "run", "step", "arm", "lock"}, where)
        for key, kind, form in (
            ("data", dict, '[data], and under it path = "FILE"'),
            ("run", dict, "[run], and its settings under it"),
            ("step", list, "[[step]] above every step"),
            ("arm", list, "[[arm]] above every arm"),
        ):
            if not isinstance(tables.get(key, kind()), kind):
                told = next((word for one, word in _KINDS.items() if isinstance(tables[key], one)), "a number")
                raise UserError(f"{where}: {key} is {told}; write {form}")
        data = dict(tables.get("data", {}))
        path = data.pop("path", [])
        paths = [path] if isinstance(path, str) else path
        if not (isinstance(paths, list) and all(isinstance(one, str) for one in paths)):
            raise UserError(f"{where}: path in [data] is a text or a list of texts")
        _check_values(data, Data, where + " [data]")
        defaults = dict(tables.get("run", {}))
        _check_values(defaults, Defaults, where + " [run]")
        steps = []
        for number, table in enumerate(tables.get("step", []), 1):
            steps.append(Step.from_table(table, f"{where}: step {number}", base))
        arms = []
        for number, table in enumerate(tables.get("arm", []), 1):
            rest = dict(table)
            place = f"{where}: arm {number}"
            if not isinstance(rest.get("name"), str):
                raise UserError(f"{place} needs a name")
            if not isinstance(rest.get("replace", ""), str):
                raise UserError(f"{place}: replace is a text, not {rest['replace']!r}")
            arms.append(
                Arm(
                    rest.pop("name"),
                    Step.from_table({k: v for k, v in rest.items() if k != "replace"}, place, base),
                    rest.get("replace", "select"),
                )
            )
        located = tuple(one if "://" in one else str(base / Path(one).expanduser()) for one in paths)
        return Recipe(tuple(steps), Data(path=located, **data), Defaults(**defaults), tuple(arms), name)

    def tables(self) -> dict[str, Any]:
        """The recipe as TOML tables; what is unset is left out."""
        data = {k: v for k, v in vars(self.data).items() if v != getattr(Data(), k)}
        if "path" in data:
            data["path"] = data["path"][0] if len(data["path"]) == 1 else list(data["path"])
        run = {k: v for k, v in vars(self.run).items() if v is not None}
        tables: dict[str, Any] = {"data": data, "run": run, "step": [step.table() for step in self.steps]}
        if self.arms:
            tables["arm"] = [{"name": arm.name, "replace": arm.replaces} | arm.step.table() for arm in self.arms]
        return {key: value for key, value in tables.items() if value}

    def write(self, path: str | Path, overwrite: bool = True) -> None:
        """Write it as TOML that reads back the same from any place. Raises UserError where another file is there
        that is not to be replaced."""
        file, text = Path(path), toml(self.from_here().tables())
        if not overwrite and file.is_file() and file.read_bytes() != text.encode():
            raise UserError(f"{path} is there already and says something else; replace it: --overwrite")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def from_here(self) -> Recipe:
        """The same with every path of its data and of its steps' options made absolute."""
        data = replace(self.data, path=tuple(_located(one) for one in self.data.path))
        arms = tuple(replace(arm, step=arm.step.from_here()) for arm in self.arms)
        return replace(self, data=data, steps=tuple(step.from_here() for step in self.steps), arms=arms)

    def arm(self, arm: Arm) -> Recipe:
        """The recipe of one arm: one step exchanged, its budget taken over, and no arms of its own."""
        at = self.replaced(arm)
        old = self.steps[at]
        step = arm.step
        if step.hook == "select" and step.budget is None and old.budget is not None and step.name != "all":
            step = replace_step(step, budget=old.budget)
        if step.on == "kept" and old.on != "kept":
            step = replace_step(step, on=old.on)
        steps = [*self.steps[:at], step, *self.steps[at + 1 :]]
        return replace(self, steps=tuple(steps), arms=(), name=arm.name)

    def replaced(self, arm: Arm) -> int:
        """Which step an arm replaces: the one of that name, or the last of that hook before the last train."""
        named = [i for i, step in enumerate(self.steps) if step.label == arm.replaces]
        if named:
            return named[-1]
        trains = [i for i, step in enumerate(self.steps) if step.hook == "train"]
        before = self.steps[: trains[-1]] if trains else self.steps
        of_hook = [i for i, step in enumerate(before) if step.hook == arm.replaces]
        if not of_hook:
            names = [step.label for step in self.steps]
            raise UserError(f"arm {arm.name}: no step {arm.replaces!r} to replace.{suggestion(arm.replaces, names)}")
        return of_hook[-1]


def toml(tables: Mapping[str, Any]) -> str:
    """TOML text in the order that a person reads a recipe in."""
    import tomli_w

    parts = [tomli_w.dumps({key: tables[key]}) for key in ("data", "run") if tables.get(key)]
    parts += [f"[[{key}]]\n{tomli_w.dumps(table)}" for key in ("step", "arm") for table in tables.get(key, ())]
    parts += [tomli_w.dumps({key: value}) for key, value in tables.items() if key not in ("data", "run", "step", "arm")]
    return "\n".join(parts)


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """A mistake in here is said with its place in the recipe's file."""
    try:
        yield
    except UserError as error:
        if not where or str(error).startswith(where):
            raise
        raise UserError(f"{where}: {error}") from error.__cause__


def replace_step(step: Step, **changes: Any) -> Step:
    """The step with some of its settings or options exchanged."""
    names = ("on", "as_", "budget", "label", "base", "where")
    own = {name: getattr(step, name) for name in names}
    settings = own | {key: value for key, value in changes.items() if key in own}
    given = {**step.options, **{key: value for key, value in changes.items() if key not in own}}
    return Step(step.hook, step.name, **settings, **given)


def absolute(value: Any) -> Any:
    """An option with its paths as texts that say the same from any place."""
    if isinstance(value, list):
        return [absolute(one) for one in value]
    return str(value.absolute()) if isinstance(value, Path) else value


def _located(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}.{suggestion(key, known)}")


def _check_values(table: Mapping[str, Any], kind: type, where: str) -> None:
    defaults = kind()
    _check_keys(table, {*vars(defaults)}, where)
    forms: dict[str, tuple[type, ...]] = {
        "seed": (int,),
        "limit": (int,),
        "min_coverage": (int, float),
        "keep_duplicates": (bool,),
    }
    for key, value in table.items():
        wanted = forms.get(key, (str,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise UserError(f"{where}: {key} is {' or '.join(t.__name__ for t in wanted)}, not {value!r}")


def find(path: str | Path) -> Path:
    """The file of a recipe: as named, or one that ships under that name. Raises UserError."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    folder = shipped.path("templates") / "recipes"
    names = {one.stem: one for one in sorted(folder.glob("*.toml"))}
    if str(path) in names:
        return names[str(path)]
    if file.suffix == ".toml":
        beside = [one.name for one in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        raise UserError(f"there is no recipe file {path}.{near(file.name, beside)}")
    raise UserError(f"there is no recipe {str(path)!r}.{suggestion(str(path), names)}")


def parse_chain(words: Sequence[str]) -> list[Step]:
    """Steps from the words of a command line; see chain.py for how they are cut apart."""
    from .chain import parse

    return parse(words)
