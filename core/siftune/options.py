"""The fields of a method as command-line options, and the same checks for a recipe's tables."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import click

from .errors import UserError, near
from .methods import Method

NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}


class Kind(click.ParamType[Any]):
    """A field's type: one or several of int, float, str, bool, Path and fixed words."""

    def __init__(self, accepted: tuple[Any, ...]) -> None:
        self.types = tuple(t for t in accepted if isinstance(t, type))
        self.words = tuple(w for t in accepted if not isinstance(t, type) for w in t)
        self.name = "|".join([*map(str, self.words), *(NAMES[t] for t in self.types)])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{self.name}]" if self.words else self.name.upper()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words and not isinstance(value, bool):
            return value
        for kind in self.types:
            try:
                return _as(kind, value)
            except (ValueError, TypeError):
                continue
        self.fail(f"{value!r} is not {self._expected(value)}", param, ctx)

    def _expected(self, value: Any) -> str:
        article = {"integer": "an integer"}
        parts = [article.get(NAMES[t], f"a {NAMES[t]}" if t is not bool else NAMES[t]) for t in self.types]
        if self.words:
            parts = [", ".join(map(str, self.words)), *parts]
            hint = near(value, map(str, self.words)) if isinstance(value, str) else ""
            return " or ".join(parts) + ("." + hint if hint else "")
        return " or ".join(parts)


def _as(kind: type, value: Any) -> Any:
    """The value as this type; text comes from the command line, the rest from TOML or Python."""
    if isinstance(value, str):
        if kind is bool:
            words = {"true": True, "false": False, "yes": True, "no": False}
            if value.lower() not in words:
                raise ValueError(value)
            return words[value.lower()]
        if kind is float and not _finite(float(value)):
            raise ValueError(value)
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind or (kind is Path and isinstance(value, Path)):
        if isinstance(value, float) and not _finite(value):
            raise ValueError(value)
        return value
    raise TypeError(value)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a method."""

    name: str  # of the field
    kind: Kind
    help: str
    default: Any
    required: bool
    many: bool
    flag: bool

    @property
    def key(self) -> str:
        """How a recipe writes it."""
        return self.name.rstrip("_")

    @property
    def spelled(self) -> str:
        """How the command line writes it."""
        return "--" + self.key.replace("_", "-")

    @property
    def is_path(self) -> bool:
        """Whether its value names a file."""
        return Path in self.kind.types

    def click(self) -> click.Option:
        """The field as a click option that stays out of the result when it is not given."""
        # the dashes in the name keep it apart from a field called like one of the step's own options
        names = [
            f"{self.spelled}/--no-{self.spelled[2:]}" if self.flag else self.spelled,
            f"option_{self.name}",
        ]
        if self.flag:
            return click.Option(names, default=None, help=self._help(), show_default=False)
        return click.Option(names, type=self.kind, multiple=self.many, help=self._help(), required=self.required)

    def _help(self) -> str:
        if self.default is None or self.default == [] or self.required:
            return self.help
        shown = {True: "yes", False: "no"}.get(self.default, self.default) if self.flag else self.default
        return f"{self.help}  [default: {shown}]"

    def check(self, value: Any, base: Path) -> Any:
        """The value of a recipe or of Python, converted. Raises UserError in the command line's words."""
        try:
            if self.many:
                values = value if isinstance(value, (list, tuple)) else [value]
                return [_placed(self.kind.convert(one, None, None), base) for one in values]
            if value is None:
                return None
            if self.flag and not isinstance(value, bool):  # "yes" is a word of the command line
                raise click.BadParameter(f"{value!r} is not true or false")
            checked = self.kind.convert(value, None, None)
        except click.BadParameter as error:
            raise UserError(f"Invalid value for '{self.spelled}': {error.message}") from None
        return _placed(checked, base)


def _placed(value: Any, base: Path) -> Any:
    return base / value if isinstance(value, Path) else value


def of(kind: type[Method]) -> dict[str, Option]:
    """The options of a method by field name. Raises TypeError for an annotation that is none of the known."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in kind.fields():
        text, hint = "", hints[field.name]
        if typing.get_origin(hint) is Annotated:
            hint, text = typing.get_args(hint)[:2]
        many = typing.get_origin(hint) is list
        accepted = _accepted(typing.get_args(hint)[0] if many else hint, kind, field.name)
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        flag = accepted == (bool,) and not many
        found[field.name] = Option(field.name, Kind(accepted), text, default, no_default, many, flag)
    return found


def _accepted(hint: Any, kind: type[Method], name: str) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        every = [one for part in parts for one in _accepted(part, kind, name)]
        # a text accepts everything, so it is tried last
        return tuple(sorted(every, key=lambda one: one is str))
    if typing.get_origin(hint) is Literal:
        return (typing.get_args(hint),)
    if hint in NAMES:
        return (hint,)
    raise TypeError(
        f"{kind.__name__}.{name}: {hint} is no type for an option; "
        f"use {', '.join(t.__name__ for t in NAMES)}, Literal, None or list"
    )


def build(kind: type[Method], given: Mapping[str, Any], label: str, base: Path = Path()) -> Method:
    """A method from the options that were named. Raises UserError for an unknown, missing or wrong one."""
    known = of(kind)
    by_key = {option.key: option for option in known.values()}
    for key in given:
        if key.rstrip("_") not in by_key:
            names = ", ".join(option.spelled for option in known.values()) or "none"
            raise UserError(f"{label} has no option {key!r}.{near(key, by_key) or f' It has {names}.'}")
    values = {}
    try:
        for key, value in given.items():
            option = by_key[key.rstrip("_")]
            values[option.name] = option.check(value, base)
    except UserError as error:
        raise UserError(f"{label}: {error}") from None
    missing = [option.spelled for option in known.values() if option.required and option.name not in values]
    if missing:
        raise UserError(
            f"{label} needs {missing[0]}: {next(o.help for o in known.values() if o.spelled == missing[0])}"
        )
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{label}: {error}") from error
