"""One configured method on its hook, with the observers around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pluggy

from . import fingerprint, hookspecs
from .errors import UserError
from .hookspecs import HOOKS, hookimpl
from .methods import Method, installed


class Fault(Exception):
    """A plugin broke a rule of its hook; ends in the step and the distribution."""


class Observed:
    """Keeps what the method itself gave, and drains a stream inside the observers, so that they see its time
    and its errors."""

    def __init__(self, hook: str, drain: Callable[[Iterator[Any]], Any] | None) -> None:
        self.inner: Any = None

        def innermost(*_: Any) -> Generator[None, Any, Any]:
            answer = yield
            self.inner = drain(answer) if drain is not None and answer is not None else answer
            return self.inner

        setattr(self, hook, hookimpl(wrapper=True, trylast=True, specname=hook)(innermost))


def observers() -> list[tuple[str, str, Any]]:
    """Installed observers: name, distribution, plugin. Raises Fault for one that is no wrapper."""
    found = []
    for entry, dist in installed("siftune"):
        source = f"{dist.metadata['Name']} {dist.version}"
        try:
            plugin = entry.load()
        except Exception as error:
            raise UserError(f"the observer {entry.name} of {source} could not be imported: {error}") from error
        plugin = plugin() if inspect.isclass(plugin) else plugin
        for hook in HOOKS:
            marks = getattr(getattr(plugin, hook, None), "siftune_impl", None)
            if marks is not None and not marks["wrapper"]:
                raise UserError(
                    f"the observer {entry.name} of {source} implements {hook} itself; an observer is "
                    "@hookimpl(wrapper=True), a method belongs into the group siftune." + hook
                )
        found.append((entry.name, source, plugin))
    return found


def changes(hook: str) -> list[str]:
    """Observers that say of themselves that they change the values of a hook (`changes = ("score",)`): they
    are part of the fingerprint, with their code."""
    told = []
    for name, source, plugin in observers():
        if hook in getattr(plugin, "changes", ()):
            code: Any = plugin if inspect.ismodule(plugin) else type(plugin)
            told.append(f"{source} {name} {fingerprint.of_code(code)}")
    return told


@contextmanager
def blamed(label: str, source: str) -> Iterator[None]:
    """Leave a traceback whole and end it with the culprit."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"in the step {label} ({source})")
        raise


def caller(
    hook: str, method: Method, label: str, source: str, drain: Callable[[Iterator[Any]], Any] | None = None
) -> Callable[..., Any]:
    """A function that calls the method through pluggy and gives what it answers. `None` is a Fault."""
    manager = pluggy.PluginManager("siftune")
    manager.add_hookspecs(hookspecs)
    if not hasattr(getattr(type(method), hook, None), "siftune_impl"):
        raise Fault(f"{label} ({source}): {type(method).__name__} does not implement {hook}; is @hookimpl missing?")
    watch = Observed(hook, drain)
    with blamed(label, source):
        try:
            manager.register(method, name=label)
        except pluggy.PluginValidationError as error:
            allowed = ", ".join(manager.hook.__dict__[hook].spec.argnames)
            raise Fault(f"{label} ({source}): {str(error).splitlines()[-1]}; it may take {allowed}") from None
        manager.check_pending()
    manager.register(watch, name="siftune: innermost")
    around = observers()
    for name, distribution, plugin in around:
        with blamed(f"{label}, observer {name}", distribution):
            manager.register(plugin, name=f"{distribution}: {name}")
            manager.check_pending()

    def call(**arguments: Any) -> Any:
        given = {k: v for k, v in arguments.items() if k in manager.hook.__dict__[hook].spec.argnames}
        watch.inner = None
        try:
            answer = manager.hook.__dict__[hook](**given)
        except UserError:
            raise
        except Exception as error:
            culprit = next((d for name, d, plugin in around if _raised_in(error, plugin)), source)
            error.add_note(f"in the step {label} ({culprit})")
            raise
        if answer is None:
            raise Fault(
                f"{label} ({source}): the hook {hook} answered None; give values, or an Outcome that says why not"
            )
        if answer is not watch.inner and not any(hook in getattr(p, "changes", ()) for _, _, p in around):
            names = ", ".join(f"{name} ({distribution})" for name, distribution, _ in around)
            raise Fault(
                f'{label}: an observer changed the values without saying so; one of {names} needs changes = ("{hook}",)'
            )
        return answer

    return call


def _raised_in(error: BaseException, plugin: Any) -> bool:
    """Whether the innermost frame of a traceback lies in an observer's own file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = inspect.getmodule(plugin if inspect.ismodule(plugin) else type(plugin))
    return trace is not None and trace.tb_frame.f_code.co_filename == getattr(module, "__file__", None)
