"""Parts of the store: read together whatever each of them holds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siftune
from siftune.store import FAILED, OK, Rows, RowStore, Store


def part(store: RowStore, key: str, value: Any, state: int = OK) -> None:
    column = np.empty(1, object)
    column[0] = value
    plain = column.astype(np.float64) if isinstance(value, float) else column
    reason = np.array(["timed out" if state == FAILED else None], object)
    store.add([key], Rows({"c": plain}, np.array([state], np.int8), reason), {})


@pytest.mark.parametrize("value", [2.0, "text", np.array([1.0, 2.0]), ["one", "two"]])
def test_a_part_in_which_every_row_failed_does_not_say_what_the_others_hold(tmp_path: Path, value: Any) -> None:
    store = RowStore(tmp_path)
    part(store, "b", float("nan"), FAILED)
    assert np.isnan(store.load(["b"])[0].columns["c"][0])
    part(store, "a", value)
    part(store, "b", float("nan"), FAILED)
    rows, _ = store.load(["a", "b"])
    assert np.array_equal(rows.columns["c"][0], value)
    assert rows.states.tolist() == [OK, FAILED] and rows.reasons.tolist() == [None, "timed out"]


def test_empty_lists_do_not_say_what_other_lists_hold(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    part(store, "a", ["one", "two"])
    part(store, "b", np.array([], np.float64))
    columns = store.load(["a", "b"])[0].columns
    assert columns["c"][0] == ["one", "two"] and not len(columns["c"][1])


def test_what_no_run_has_used_for_long_is_pruned_and_nothing_else(pool_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    for name, steps in (
        ("old", ["score toy-words", "score toy-rank"]),
        ("used", ["score toy-doubt", "score toy-wrote"]),
    ):
        siftune.run(pool_file, steps, out=tmp_path / name, store=root)
    for file in root.rglob("*"):
        os.utime(file, (time.time() - 1000, time.time() - 1000))
    siftune.run(pool_file, ["score toy-doubt", "score toy-wrote"], out=tmp_path / "again", store=root)
    assert Store(root).prune(500) > 0
    assert sorted(entry["step"] for entry in Store(root).entries()) == ["score toy-doubt", "score toy-wrote"]
