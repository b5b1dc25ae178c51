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
from siftune import CoverageError, Pool, Recipe, Step, UserError, progress, runfolder
from siftune.recipe import Arm

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

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ("prepare", "write"):
        with monkeypatch.context() as patch:
            patch.setattr(runfolder, place, killed)
            with pytest.raises(KeyboardInterrupt):
                chain(pool_file, "score toy-partial", out=run.folder, overwrite=True)
        assert (tmp_path / "run.previous" / "selected.jsonl").is_file()
    again = chain(pool_file, "score toy-partial", out=run.folder, overwrite=True)
    assert not list(again.folder.glob("*-select-*"))
    assert not (tmp_path / "run.previous").exists()


def test_a_run_is_replaced_when_the_new_one_is_finished(pool_file: Path, tmp_path: Path, shell: Any) -> None:
    out = ["run", pool_file, "--out", "run", "--quiet"]
    assert shell(*out, "score", "toy-words", cwd=tmp_path).returncode == 0
    failed = shell(*out, "--overwrite", "score", "toy-partial", "--fails", "2", cwd=tmp_path)
    assert failed.returncode == 2 and "; the earlier run is in run.previous\n" in failed.stderr
    earlier = tmp_path / "run.previous"
    assert runfolder.read_manifest(earlier)["state"] == "finished" and (earlier / "table.parquet").is_file()
    # going on is no reason to give it up, and neither is beginning anew
    assert "run.previous" in shell(*out, "score", "toy-partial", "--fails", "2", cwd=tmp_path).stderr
    again = shell(*out, "--overwrite", "score", "toy-partial", cwd=tmp_path)
    assert again.returncode == 0 and not earlier.exists(), again.stderr


def test_what_is_in_the_way_of_a_replaced_run_stays(pool_file: Path, tmp_path: Path) -> None:
    chain(pool_file, "score toy-words", out=tmp_path / "run")
    chain(pool_file, "score toy-words", out=tmp_path / "run.previous")
    with pytest.raises(UserError, match=r"run.previous is in the way of the run that is replaced"):
        chain(pool_file, "score toy-partial", out=tmp_path / "run", overwrite=True)
    assert chain(pool_file, "score toy-words", out=tmp_path / "run").manifest["state"] == "finished"
    assert (tmp_path / "run.previous" / "table.parquet").is_file()


def test_a_run_into_the_folder_where_one_is(
    pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    chain(pool_file, "score toy-words", out=".")
    with pytest.raises(UserError, match="cannot be replaced while you are in it"):
        chain(pool_file, "score toy-words", out=".", overwrite=True)
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path)
    chain(pool_file, "score toy-partial", out="link", overwrite=True)
    assert runfolder.read_manifest(tmp_path / "here")["state"] == "finished"
    assert not (tmp_path / "here.previous").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_are_never_mixed_in_one_folder(pool_file: Path, tmp_path: Path, overwrite: bool) -> None:
    recipe = Recipe((Step("score", "toy-words"),))
    with runfolder.opened(tmp_path / "run", recipe), pytest.raises(UserError, match="another run is under way"):
        chain(pool_file, "score toy-words", out=tmp_path / "run", overwrite=overwrite)
    assert chain(pool_file, "score toy-words", out=tmp_path / "run", overwrite=overwrite).computed


def test_what_another_recipe_has_not_finished_gives_way(pool_file: Path, tmp_path: Path, toys_log: Log) -> None:
    with pytest.raises(CoverageError):
        chain(pool_file, "score toy-words", "score toy-partial --fails 2", out=tmp_path / "run")
    toys_log()
    run = chain(pool_file, "score toy-words", out=tmp_path / "run")
    assert run.manifest["state"] == "finished" and toys_log() == []


def test_a_manifest_that_is_cut_is_said_so(pool_file: Path, tmp_path: Path, shell: Any) -> None:
    run = chain(pool_file, "score toy-words", out=tmp_path / "run")
    (run.folder / "manifest.json").write_text('{"asked": "')
    for words in (["explain", run.folder, "1"], ["run", pool_file, "--out", run.folder, "score", "toy-words"]):
        done = shell(*words)
        assert done.returncode == 2 and "manifest.json is damaged; " in done.stderr
    assert chain(pool_file, "score toy-words", out=run.folder, overwrite=True).manifest["state"] == "finished"


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


def test_a_run_is_shown_in_a_line(pool_file: Path, tmp_path: Path) -> None:
    run = chain(pool_file, "score toy-words", "select toy-first --budget 4", out=tmp_path / "run")
    assert repr(run) == f"<siftune run {tmp_path / 'run'}: 40 rows, 4 kept>"


def test_a_select_that_keeps_everything_unasked_is_doubted(tmp_path: Path, pool_file: Path) -> None:
    run = chain(pool_file, "score toy-words", "select top --by toy-words", "select all", out=tmp_path / "run")
    [said] = run.manifest["steps"][1]["warnings"]
    assert said == "no budget is given: all 40 rows that may be chosen are kept; see --budget"
    assert run.manifest["steps"][2]["warnings"] == []


def test_an_arm_is_announced_by_what_it_exchanges(pool_file: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(progress.Quiet):
        def say(self, label: str, text: str) -> None:
            said.append(f"{label}: {text}")

    recipe = Recipe((Step("select", "toy-first", budget=4),), arms=(Arm("chance", Step("select", "random")),))
    recipe = replace(recipe, data=replace(recipe.data, path=(str(pool_file),)))
    siftune.api.carry_out(recipe, out=tmp_path / "run", progress=Listening())
    assert said == ["arm chance: the same with select random --budget 4 in the place of select toy-first"]


def test_one_row_is_no_rows(tmp_path: Path, shell: Any) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(1)])
    done = shell("run", data, "--out", tmp_path / "run", "score", "toy-words")
    assert done.stdout.startswith("1 row: 1 kept\n") and "1 row to do" in done.stderr and "1 row (" in done.stderr
