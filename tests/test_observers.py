"""Observers, the group `siftune`: wrappers around whichever method was chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import siftune
from siftune import UserError
from siftune.calling import Fault

from .distributions import write

CLOCK = """
import time

class Clock:
    seen = []

    @hookimpl(wrapper=True)
    def score(self, samples):
        started = time.perf_counter()
        answer = yield
        Clock.seen.append((len(samples), time.perf_counter() - started))
        return answer

    @hookimpl(wrapper=True)
    def reflect(self):
        started = time.perf_counter()
        try:
            return (yield)
        except RuntimeError as error:
            Clock.seen.append(("error", str(error)))
            raise
        finally:
            Clock.seen.append(("reflect", time.perf_counter() - started))
"""
CLIP = """
class Clip:
    {changes}

    @hookimpl(wrapper=True)
    def score(self):
        answer = yield
        return {{name: [min(value, {top}) for value in values] for name, values in answer.items()}}
"""
USURPER = """
class Usurper:
    @hookimpl
    def score(self, samples):
        return [0.0 for _ in samples]
"""
FALLS = """
class Falls:
    @hookimpl(wrapper=True)
    def score(self):
        yield
        raise RuntimeError("fell over")
"""
SLOW = """
import time

class Slow(Method):
    "Takes its time over every rewrite."

    @hookimpl
    def reflect(self, samples):
        for sample in samples:
            time.sleep(0.02)
            yield sample.rewrite(response=sample.response + "!")

class Fails(Method):
    "Fails in the middle of its stream."

    @hookimpl
    def reflect(self, samples):
        yield samples[0].rewrite(response="fine")
        raise RuntimeError("the stream broke")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Install one observer, or methods, for this test, and give the module."""

    def install(package: str, code: str, name: str = "", hook: str = "", **methods: str) -> Any:
        entries = {"siftune": {name.lower(): name}} if name else {f"siftune.{hook}": methods}
        monkeypatch.syspath_prepend(write(tmp_path / package, package, code, entries))
        return importlib.import_module(package.replace("-", "_"))

    return install


def test_a_wrapper_times_the_chosen_method(
    installed: Callable[..., Any], pool_file: Path, tmp_path: Path, rows: list[Any]
) -> None:
    clock = installed("outside-clock", CLOCK, "Clock")
    run = siftune.run(pool_file, ["score length", "select top --by length --budget 5"], out=tmp_path / "run")
    # once for the one shard, and not at all where the store has everything
    assert [rows for rows, _ in clock.Clock.seen] == [40] and clock.Clock.seen[0][1] > 0
    assert run.computed > 0
    siftune.run(pool_file, ["score length", "select top --by length --budget 5"], out=tmp_path / "again")
    assert len(clock.Clock.seen) == 1


def test_it_sees_the_time_and_the_errors_of_a_stream(installed: Callable[..., Any], rows: list[Any]) -> None:
    clock = installed("outside-stream-clock", CLOCK, "Clock").Clock
    slow = installed("outside-slow", SLOW, hook="reflect", slow="Slow", fails="Fails")
    rewrites = siftune.apply(slow.Slow(), rows[:5])
    assert len(rewrites) == 5
    assert clock.seen[0][0] == "reflect" and clock.seen[0][1] > 5 * 0.02
    clock.seen.clear()
    with pytest.raises(RuntimeError, match="the stream broke") as caught:
        siftune.apply(slow.Fails(), rows[:5])
    assert ("error", "the stream broke") in clock.seen
    assert "outside-slow 0.1" in "\n".join(caught.value.__notes__)


def test_one_that_is_no_wrapper_is_refused(installed: Callable[..., Any], rows: list[Any]) -> None:
    installed("outside-usurper", USURPER, "Usurper")
    from siftune_baselines.length import Length

    said = r"observer usurper of outside-usurper 0\.1 implements score itself; .*wrapper=True.*siftune\.score"
    with pytest.raises(UserError, match=said):
        siftune.apply(Length(), rows)


def test_one_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any]) -> None:
    monkeypatch.syspath_prepend(
        write(tmp_path, "outside-absent", "import not_there", {"siftune": {"absent": "Absent"}})
    )
    from siftune_baselines.length import Length

    with pytest.raises(UserError, match=r"observer absent of outside-absent 0\.1 could not be imported: .*not_there"):
        siftune.apply(Length(), rows)


def test_its_own_fault_names_its_own_distribution(installed: Callable[..., Any], rows: list[Any]) -> None:
    installed("outside-falls", FALLS, "Falls")
    from siftune_baselines.length import Length

    with pytest.raises(RuntimeError, match="fell over") as caught:
        siftune.apply(Length(), rows)
    assert "outside-falls 0.1" in "\n".join(caught.value.__notes__)
    assert "siftune-baselines" not in "\n".join(caught.value.__notes__)


def test_one_that_changes_values_has_to_say_so(installed: Callable[..., Any], rows: list[Any]) -> None:
    installed("outside-secretive", CLIP.format(changes="", top=10), "Clip")
    from siftune_toys import Words

    said = r'observer changed the values without.*clip \(outside-secretive .*\) needs changes = \("score",\)'
    with pytest.raises(Fault, match=said):
        siftune.apply(Words(), rows)


def test_what_changes_values_is_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool_file: Path, installed: Callable[..., Any]
) -> None:
    chain = ["score toy-words"]

    def highest(name: str) -> tuple[float, int]:
        run = siftune.run(pool_file, chain, out=tmp_path / name)
        return max(run.table["toy-words"].to_pylist()), run.computed

    assert highest("before") == (8, 40)
    assert highest("before again") == (8, 0)
    installed("outside-clipping", CLIP.format(changes='changes = ("score",)', top=3), "Clip")
    # the values from before are not taken for clipped ones
    assert highest("clipped") == (3, 40)
    assert highest("clipped again") == (3, 0)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert highest("after") == (8, 0)
