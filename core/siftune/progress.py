"""How far a run is: a moving line in a terminal, plain lines elsewhere, nothing where nobody looks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from .engine import Done


class Quiet:
    """Says nothing; what it is told is what every kind of progress is told."""

    def start(self, label: str, total: int, missing: int) -> None:
        """A step begins: so many rows, so many of them yet to be computed."""

    def rows(self, count: int, failed: int = 0) -> None:
        """A shard is finished and kept."""

    def advance(self, rows: int = 0, tokens: int = 0, failed: int = 0) -> None:
        """A method says how far it is inside a shard or a view."""

    def say(self, label: str, text: str) -> None:
        """A method tells something worth knowing."""

    def warn(self, label: str, text: str) -> None:
        """A method tells something worth doubting."""

    def finish(self, done: Done) -> None:
        """A step is over."""


class Lines(Quiet):
    """A line when a step begins and ends, and one every `every` seconds between."""

    def __init__(self, console: Console, every: float = 15.0) -> None:
        self.console = console
        self.every = every
        self._reset("", 0)

    def _reset(self, label: str, missing: int) -> None:
        self.label, self.missing = label, missing
        self.kept = self.inside = self.tokens = self.failed = 0
        self.began = self.shown = time.monotonic()
        self.warned: set[str] = set()

    def start(self, label: str, total: int, missing: int) -> None:
        self._reset(label, missing)
        if missing:
            found = f", {total - missing:,} found" if missing < total else ""
            self._print(f"{label}: {shown.rows(missing)} to do{found}")

    def rows(self, count: int, failed: int = 0) -> None:
        self.kept, self.inside = self.kept + count, 0
        self.failed += failed
        self._tick()

    def advance(self, rows: int = 0, tokens: int = 0, failed: int = 0) -> None:
        self.inside += rows
        self.tokens += tokens
        self.failed += failed
        self._tick()

    @property
    def at(self) -> int:
        """Rows done, those of the unfinished shard included."""
        return min(self.kept + self.inside, self.missing)

    def rates(self) -> str:
        """Rows and tokens a second, time left, failures."""
        seconds = max(time.monotonic() - self.began, 1e-6)
        parts = [f"{self.at / seconds:,.0f} rows/s"] if self.missing else []
        if self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if 0 < self.at < self.missing:
            parts.append(f"{shown.duration(seconds / self.at * (self.missing - self.at))} left")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)

    def _tick(self) -> None:
        if time.monotonic() - self.shown >= self.every:
            self.shown = time.monotonic()
            count = f"{self.at:,} of {self.missing:,}, " if self.missing else ""
            self._print(f"{self.label}: {count}{self.rates()}")

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def say(self, label: str, text: str) -> None:
        self._print(f"{label}: {text}")

    def warn(self, label: str, text: str) -> None:
        self._print(f"{label}: warning: {text}", "yellow")
        self.warned.add(text)

    def finish(self, done: Done) -> None:
        for warning in done.warnings:
            if warning not in self.warned:
                self.warn(done.planned.label, warning)
        self._print(_summary(done), "green")


class Bar(Lines):
    """The same in a terminal, with one moving line for the step under way."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int, missing: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        self._reset(label, missing)
        self._stop()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}", style="dim", markup=False),
        )
        self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
        self._task = self._bar.add_task(label, total=missing or None, rates="")
        self._bar.start()

    def _tick(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.at, rates=self.rates())

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        self._stop()

    def finish(self, done: Done) -> None:
        self._stop()
        super().finish(done)


def _summary(done: Done) -> str:
    hook = done.planned.step.hook
    left, failed = int((done.states == 2).sum()), int((done.states == 3).sum())
    if hook == "evaluate":
        parts = ["found in the store" if done.found else "measured"]
    else:
        parts = [shown.rows(done.given)]
        if done.found and done.computed:
            parts.append(f"{done.found:,} found, {done.computed:,} computed")
        elif done.found:
            parts.append("found in the store, nothing computed")
    if done.kept is not None:
        parts.append(f"{len(done.kept):,} kept")
    if "rewrites" in done.figures:
        parts.append(f"{done.figures['rewrites']:,} rewrites, {done.figures['already_good']:,} already good")
    if left:
        parts.append(f"{left:,} left out")
    if failed:
        parts.append(f"{failed:,} failed")
    return f"{done.planned.label}: {', '.join(parts)} ({shown.duration(done.seconds)})"
