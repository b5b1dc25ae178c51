"""Run folders: whole or plainly unfinished whenever a run is killed, and the same from wherever it is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siftune
from siftune import CoverageError, Pool, Recipe, Step, UserError, runfolder

from .conftest import row, write_jsonl

Log = Callable[[], list[str]]


def chain(pool: Any, *steps: str, **options: Any) -> siftune.Run:
    return siftune.run(pool, list(steps), **options)


def test_what_a_kill_before_the_manifest_leaves_is_no_obstacle(pool_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".manifest.json.0a1b2c3d.tmp").write_text("{")
    assert chain(pool_file, "score toy-words", out=tmp_path / "run").manifest["state"] == "finished"


def test_a_kill_while_a_folder_is_replaced_leaves_a_run(
    pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chain(pool_file, "score toy-words", "select toy-first", out=tmp_path / "run")
    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.name == "table.parquet":
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            chain(pool_file, "score toy-partial", out=run.folder, overwrite=True)
    again = chain(pool_file, "score toy-partial", out=run.folder, overwrite=True)
    assert not list(again.folder.glob("*-select-*"))


def test_a_kill_while_results_are_written_leaves_them_whole_and_the_run_unfinished(
    pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = chain(pool_file, "score toy-words", out=tmp_path / "run")
    before = (run.folder / "selected.jsonl").read_bytes()

    def killed(pool: Pool, path: Path, *_: Any) -> Path:
        path.write_bytes(before[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        chain(pool_file, "score toy-words", out=tmp_path / "run")
    assert (run.folder / "selected.jsonl").read_bytes() == before
    assert json.loads((run.folder / "manifest.json").read_text())["state"] == "running"


def test_a_file_is_no_folder(pool_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(UserError, match="is a file; name another folder"):
        chain(pool_file, "score toy-words", out=tmp_path / "run")


def test_two_runs_that_begin_together_take_two_folders(tmp_path: Path) -> None:
    assert runfolder.next_free("chain", tmp_path) != runfolder.next_free("chain", tmp_path)


def test_rows_that_were_mended_are_rejected_no_more(tmp_path: Path, rows: list[Any]) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [*rows, {"x": 1}])
    run = chain(data, "score toy-words", out=tmp_path / "run", on_bad_row="leave-out")
    assert (run.folder / "rejected.jsonl").is_file()
    write_jsonl(data, rows)
    chain(data, "score toy-words", out=tmp_path / "run", on_bad_row="leave-out")
    assert not (run.folder / "rejected.jsonl").exists()


def test_a_run_goes_on_with_the_coverage_that_its_error_names(pool_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CoverageError, match=r"--min-coverage 0.44"):
        chain(pool_file, "score toy-partial --fails 2", out=tmp_path / "run")
    run = chain(pool_file, "score toy-partial --fails 2", out=tmp_path / "run", min_coverage=0.44)
    assert run.manifest["state"] == "finished"


def test_a_recipe_is_the_same_from_wherever_it_is_called(
    tmp_path: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "pool.jsonl", rows)
    np.save(tmp_path / "v.npy", np.eye(40))
    text = '[data]\npath = "pool.jsonl"\n[[step]]\nembed = "file"\npath = "v.npy"\n'
    (tmp_path / "r.toml").write_text(text)
    far = runfolder.asked(Recipe.read(tmp_path / "r.toml"))
    monkeypatch.chdir(tmp_path)
    assert runfolder.asked(Recipe.read("r.toml")) == far


def test_paths_in_options_are_found_from_any_place(
    tmp_path: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "pool.jsonl", rows)
    np.save(tmp_path / "v.npy", np.eye(40))
    monkeypatch.chdir(tmp_path)
    step = Step("embed", "file", path="v.npy")
    Recipe((step,)).write("elsewhere/saved.toml")
    assert Recipe.read("elsewhere/saved.toml").steps[0].options["path"] == str(tmp_path / "v.npy")
    run = siftune.run("pool.jsonl", [step, "cluster toy-halves"], out="deep/run")
    again = siftune.api.carry_out(Recipe.read(run.folder / "recipe.toml"), out="again")
    assert again.computed == 0


def test_a_format_that_there_is_not_is_said_before_anything_runs(
    pool_file: Path, tmp_path: Path, toys_log: Log
) -> None:
    recipe = Recipe((Step("score", "toy-words"),))
    recipe = replace(recipe, data=replace(recipe.data, path=(str(pool_file),)))
    with pytest.raises(UserError, match="no row format 'alpca'"):
        siftune.api.carry_out(recipe, out=tmp_path / "run", format="alpca")
    assert toys_log() == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["rank", "id", "state", "weight", "kept"])
def test_a_column_may_not_hide_what_the_table_says(pool_file: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is what the table says of every row"):
        chain(pool_file, f"score toy-words --as {name}", out=tmp_path / "run")


def test_a_column_may_not_be_called_like_one_of_the_input(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(1, note=1)])
    with pytest.raises(UserError, match=r"'input.note' cannot be a column"):
        chain(data, "score toy-words --as input.note", out=tmp_path / "run")


def test_a_percentile_counts_the_rows_of_its_group_with_a_value() -> None:
    values, groups = np.array([3.0, 1.0, 2.0, 2.0, np.nan, 7.0]), np.array(["a", "a", "a", "a", "a", "b"], object)
    found = runfolder._percentile(values, groups, "higher")
    np.testing.assert_allclose(found, [87.5, 12.5, 50, 50, np.nan, 50])
    np.testing.assert_allclose(runfolder._percentile(values, groups, "lower"), [12.5, 87.5, 50, 50, np.nan, 50])
