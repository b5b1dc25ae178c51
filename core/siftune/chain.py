"""A chain on the command line, `HOOK METHOD --option value ...` again and again, cut into steps.

click's own chains hold neither groups nor optional arguments, so each `HOOK METHOD` is parsed as a click
command of its own; its option table says which words are values, so that a value may be called like a hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from . import options
from .errors import UserError, near
from .hookspecs import HOOKS
from .methods import found, load
from .recipe import ON, Step

HELP = ("-h", "--help")


class StepCommand(click.Command):
    """`score ifd` as a command; calling it gives the Step."""

    def __init__(self, hook: str, name: str) -> None:
        self.hook, self.method_name = hook, name
        kind = load(hook, name)
        own: list[click.Parameter] = [
            click.Option(
                ["--on"],
                type=click.Choice(ON),
                default="kept",
                help="hand over what is in play, or everything",
            )
        ]
        if hook == "select":
            own.append(click.Option(["--budget"], help="how much to keep: 1000, 5%, '200k tokens', '5% per COLUMN'"))
        if hook in ("embed", "cluster", "score"):
            own.append(click.Option(["--as", "as_"], help="name of the column that is made"))
        own.append(click.Option(["--name", "label"], default="", help="name of the step, for arms to replace it"))
        self.known = options.of(kind)
        params: list[click.Parameter] = [option.click() for option in self.known.values()]
        settings = {"help_option_names": list(HELP)}
        super().__init__(f"{hook} {name}", settings, self._step, params + own, help=kind.__doc__)

    def _step(self, on: str, label: str, as_: str | None = None, budget: str | None = None, **given: Any) -> Step:
        named = {
            key.removeprefix("option_"): value for key, value in given.items() if value is not None and value != ()
        }
        chosen: dict[str, Any] = {
            self.known[key].key: list(value) if self.known[key].many else value for key, value in named.items()
        }
        return Step(self.hook, self.method_name, on=on, as_=as_, budget=budget, label=label, **chosen)

    def takes_value(self, word: str) -> bool:
        """Whether the word after this one is its value."""
        if not word.startswith("--") or "=" in word:
            return False
        for param in self.params:
            if word in (*param.opts, *param.secondary_opts):
                return not (isinstance(param, click.Option) and param.is_flag)
        return False

    def knows(self, word: str) -> bool:
        """Whether this step has the option."""
        return any(word.partition("=")[0] in (*p.opts, *p.secondary_opts, *HELP) for p in self.params)


def parse(words: Sequence[str], run_options: Sequence[str] = ()) -> list[Step]:
    """Cut the words into steps and check each. `run_options` are those that belong before the first step.

    Raises UserError for the first mistake. `HOOK --help` and `HOOK METHOD --help` print and leave.
    """
    steps: list[Step] = []
    at = 0
    while at < len(words):
        hook = words[at]
        if hook not in HOOKS:
            raise UserError(f"{hook!r} is no hook.{near(hook, HOOKS)} A step is HOOK METHOD, such as 'score ifd'")
        if at + 1 >= len(words) or words[at + 1].startswith("-") or words[at + 1] in HOOKS:
            if at + 1 < len(words) and words[at + 1] in HELP:
                click.echo(_method_list(hook))
                raise SystemExit(0)
            raise UserError(f"{hook} needs the name of a method: {', '.join(found(hook)) or 'none is installed'}")
        command = StepCommand(hook, words[at + 1])
        end = at + 2
        while end < len(words) and words[end] not in HOOKS:
            end += 2 if command.takes_value(words[end]) else 1
        own = list(words[at + 2 : end])
        for word in own:
            if word.partition("=")[0] in run_options and not command.knows(word):
                raise UserError(
                    f"{word.partition('=')[0]} belongs to the run: write it before {words[0]!r}, after the data set"
                )
        _check_words(command, own)
        steps.append(_invoke(command, own))
        at = end
    return steps


def _check_words(command: StepCommand, words: Sequence[str]) -> None:
    """Whether every word is an option or its value, up to the first option that there is not. Raises UserError."""
    at = 0
    while at < len(words) and (not words[at].startswith("-") or command.knows(words[at])):
        if not words[at].startswith("-"):
            hint = near(words[at], HOOKS)
            rest = "" if hint else f" Options begin with --; a new step begins with one of {', '.join(HOOKS)}."
            raise UserError(f"{command.name} is followed by {words[at]!r}.{hint}{rest}")
        at += 2 if command.takes_value(words[at]) else 1


def _invoke(command: StepCommand, words: list[str]) -> Step:
    try:
        with command.make_context(command.name, words, terminal_width=100) as context:
            step = command.invoke(context)
    except click.NoSuchOption as error:
        flags = [flag for param in command.params for flag in param.opts]
        known = near(error.option_name, flags) or f" It has {', '.join(flags)}."
        known = " It belongs to select." if error.option_name == "--budget" else known
        raise UserError(f"{command.name} has no option {error.option_name!r}.{known}") from None
    except click.MissingParameter as error:
        option = error.param.opts[0] if error.param else ""
        raise UserError(f"{command.name} needs {option}: {getattr(error.param, 'help', '')}") from None
    except click.UsageError as error:
        raise UserError(f"{command.name}: {error.format_message()}") from None
    step.method()
    assert isinstance(step, Step)
    return step


def method_help(hook: str, name: str) -> str:
    """What `HOOK METHOD --help` prints."""
    command = StepCommand(hook, name)
    settings: dict[str, Any] = {"terminal_width": 100, **command.context_settings}
    return command.get_help(click.Context(command, info_name=command.name, **settings))


def _method_list(hook: str) -> str:
    from . import registry

    known = registry.methods(hook)
    lines = [
        f"  {name:<18} {known[name].summary if name in known else one.source}" for name, one in found(hook).items()
    ]
    return f"Methods of {hook} (each has --help):\n" + "\n".join(lines)
