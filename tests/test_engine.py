"""Outcomes, views and families; what the run fills; fingerprints; kills and resumption."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import siftune
from siftune import CoverageError, Pool, Sample, Samples, Step, UserError
from siftune.calling import Fault

from .conftest import TOYS, row, student, write_jsonl

Log = Callable[[], list[str]]


def chain(pool: Any, *steps: str | Step, **options: Any) -> siftune.Run:
    options.setdefault("out", None)
    return siftune.run(pool, list(steps), **options)


def table(run: siftune.Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.table.to_pylist()
    return rows


# ---- outcomes ----


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("short", r"toy-broken .*returned 39 values.* for 40; .*never dropped"),
        ("none", r"hook score answered None"),
        ("nan", r"returned nan for 'toy-broken' .*position 0 \(sample [0-9a-f]{24}\).*Outcome"),
        ("null", r"returned None for 'toy-broken' at position 0"),
        ("text", r"toy-broken"),
        ("names", r"returned 'toy-broken.extra', which gives\(\) does not name"),
        ("position", r"named position 40 in left_out; there are 40"),
        ("reason", r"gave no reason for position 0"),
        ("both", r"named position 0 both as left out and as failed"),
    ],
)
def test_a_broken_rule_names_step_and_distribution(pool_file: Path, tmp_path: Path, how: str, said: str) -> None:
    with pytest.raises(Fault, match=said) as caught:
        chain(pool_file, f"score toy-broken --how {how}", out=tmp_path / "run")
    assert "score toy-broken (siftune-toys 1.2)" in str(caught.value)


def test_an_exception_keeps_its_traceback_and_what_was_finished(tmp_path: Path, toys_log: Log) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(number) for number in range(1000)])
    with pytest.raises(RuntimeError, match="row 700 is too much") as caught:
        chain(data, "score toy-broken --how raise", out=tmp_path / "run")
    assert caught.value.__notes__ == ["in the step score toy-broken (siftune-toys 1.2)"]
    kept = [len(pq.read_table(path)) for path in (tmp_path / "cache").rglob("*.parquet")]
    assert kept and all(rows == 100 for rows in kept)


def test_left_out_and_failed_rows_have_a_state_and_no_number(pool_file: Path, tmp_path: Path) -> None:
    run = chain(pool_file, "score toy-partial --fails 13", out=tmp_path / "run", min_coverage=0.5)
    by_number = {
        int(json.loads(line)["instruction"].split()[-1]): i for i, line in enumerate(pool_file.read_text().splitlines())
    }
    rows = table(run)
    for number, at in by_number.items():
        if number % 13 == 1:
            wanted = ("failed", "timed out", None)
        elif number % 10 == 0:
            wanted = ("left_out", "divisible by ten", None)
        else:
            wanted = ("ok", None, float(number))
        # what is in play in the end is ok; no select ran, so states of the step are read from its folder
        assert rows[at]["toy-partial"] == wanted[2]
    values = pq.read_table(run.folder / "01-score-toy-partial" / "values.parquet").to_pylist()
    states = {v["id"]: (v["state"], v["reason"]) for v in values}
    for number, at in by_number.items():
        state = "failed" if number % 13 == 1 else "left_out" if number % 10 == 0 else "ok"
        assert states[rows[at]["id"]][0] == state


def test_too_many_failures_stop_the_run_and_a_later_try_computes_only_those(
    pool_file: Path, tmp_path: Path, toys_log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("score toy-partial --fails 2", "select top --by toy-partial --budget 3")
    with pytest.raises(CoverageError, match=r"failed on 20 of 36 rows .*timed out \(20\).*--min-coverage 0.44"):
        chain(pool_file, *steps, out=tmp_path / "run")
    assert toys_log() == ["partial 40"]
    monkeypatch.setenv("TOYS_HEALED", "1")
    run = chain(pool_file, *steps, out=tmp_path / "run")
    assert toys_log() == ["partial 20"]
    assert [s.prompt for s in run.selected] == ["Say 39", "Say 38", "Say 37"]


def test_rows_left_out_on_purpose_do_not_count_against_coverage(pool_file: Path, tmp_path: Path) -> None:
    run = chain(pool_file, "score toy-partial", out=tmp_path / "run")
    assert run.manifest["steps"][0]["states"] == {"ok": 36, "left_out": 4, "failed": 0}


# ---- views ----


def test_the_order_of_the_input_changes_nothing(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    steps = ("embed toy-letters", "cluster toy-halves", "score toy-rank", "select toy-first --budget 7")
    one = chain(write_jsonl(tmp_path / "a.jsonl", rows), *steps, out=tmp_path / "a")
    two = chain(write_jsonl(tmp_path / "b.jsonl", rows[::-1]), *steps, out=tmp_path / "b", store=tmp_path / "other")
    assert [s.id for s in one.selected] == [s.id for s in two.selected]
    by_id = {r["id"]: (r["cluster"], r["cluster_distance"], r["toy-rank"], r["rank"]) for r in table(one)}
    assert by_id == {r["id"]: (r["cluster"], r["cluster_distance"], r["toy-rank"], r["rank"]) for r in table(two)}
    assert [r["row"] for r in table(two)] == list(range(1, 41))


def test_select_narrows_what_is_in_play_and_on_all_goes_back(pool_file: Path, tmp_path: Path) -> None:
    run = chain(
        pool_file,
        "select toy-first --budget 10",
        "score toy-words --as early",
        "score toy-words --on all",
        "select top --by toy-words --budget 2 --on all",
        out=tmp_path / "run",
    )
    given = [step["given"] for step in run.manifest["steps"]]
    assert given == [40, 10, 40, 40]
    assert sum(r["early"] is not None for r in table(run)) == 10
    assert [len(s.response.split()) for s in run.selected] == [8, 8]
    assert all(r["status"] == "ok" for r in table(run) if r["kept"])


def test_empty_and_repeated_rows_are_read_counted_and_left_out(tmp_path: Path, toys_log: Log) -> None:
    twice = [row(1), row(2), row(1), {"instruction": "Say", "output": "  "}]
    data = write_jsonl(tmp_path / "pool.jsonl", twice)
    run = chain(data, "score toy-words", out=tmp_path / "run")
    assert [(r["status"], r["reason"]) for r in table(run)] == [
        ("ok", None),
        ("ok", None),
        ("left_out", "duplicate of row 1"),
        ("left_out", "empty response"),
    ]
    assert toys_log() == ["score 2"]
    assert run.manifest["counts"]["reasons"] == [("duplicate of row N", 1), ("empty response", 1)]
    kept = chain(data, "score toy-words", out=tmp_path / "kept", keep_duplicates=True)
    assert [r["toy-words"] for r in table(kept)] == [3.0, 4.0, 3.0, None]
    assert len(kept.selected) == 3
    assert toys_log() == []


def test_a_method_reads_only_the_columns_that_it_declares(pool_file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"'toy-words' was asked for but is not in needs\(\)") as caught:
        chain(pool_file, "score toy-words", "score toy-greedy", out=tmp_path / "run")
    assert caught.value.__notes__ == ["in the step score toy-greedy (siftune-toys 1.2)"]


def test_weights_reach_the_trainer_and_the_table(pool_file: Path, tmp_path: Path) -> None:
    run = chain(pool_file, "select toy-first --weighted --budget 3", "train toy-trainer", out=tmp_path / "run")
    assert sorted(r["weight"] for r in table(run) if r["kept"]) == [1.0, 1.0, 2.0]
    told = json.loads((run.models["causal-lm"] / "config.json").read_text())
    assert sorted(told["weights"]) == [1.0, 1.0, 2.0] and told["ids"] == sorted(told["ids"])


def test_an_empty_view_says_why(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [{"instruction": "a", "output": ""}])
    with pytest.raises(UserError, match="no sample is in play; 1 rows: empty response"):
        chain(data, "score toy-words", out=tmp_path / "run")


# ---- families ----


def test_rewrites_are_siblings_beside_their_parents(tmp_path: Path, toys_log: Log) -> None:
    rows = [
        row(1),
        row(2),
        row(3),
        {"instruction": "q", "output": "be quiet"},
        {"instruction": "c", "output": "LOUD"},
    ]
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    steps = ("reflect toy-shout", "score toy-words --unit letters", "select toy-best")
    run = chain(data, *steps, out=tmp_path / "run")
    told = table(run)
    assert [r["row"] for r in told] == [1, 2, 3, 4, 5, None, None, None]
    assert {r["made_by"] for r in told[5:]} == {"reflect toy-shout"}
    assert {r["parent"] for r in told[5:]} == {r["id"] for r in told[:3]}
    assert run.manifest["steps"][0]["figures"] == {"rewrites": 3, "already_good": 1}
    assert run.manifest["steps"][0]["states"] == {"ok": 4, "left_out": 1, "failed": 0}
    # of a family one is kept; the rewrite is as long as the original, so the first in id order
    assert len(run.selected) == 5
    again = chain(data, *steps, out=tmp_path / "again")
    toys_log()
    assert again.computed == 0 and [s.id for s in again.selected] == [s.id for s in run.selected]


def test_a_failed_rewrite_leaves_the_parent_in_play(tmp_path: Path) -> None:
    rows = [row(n) for n in range(9)] + [{"instruction": "x", "output": "fail here"}]
    run = chain(write_jsonl(tmp_path / "pool.jsonl", rows), "reflect toy-shout", out=tmp_path / "run")
    assert table(run)[9]["kept"] and run.manifest["steps"][0]["states"]["failed"] == 1
    bad = rows[:2] + [{"instruction": f"x{n}", "output": "fail here"} for n in range(3)]
    with pytest.raises(CoverageError, match=r"failed on 3 of 5 rows .*0.8 wanted.*the teacher hung up"):
        chain(write_jsonl(tmp_path / "bad.jsonl", bad), "reflect toy-shout", out=tmp_path / "bad")


def test_a_stream_that_says_nothing_of_a_sample_is_a_fault(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(1), {"instruction": "x", "output": "lost"}])
    with pytest.raises(Fault, match=r"said nothing of 1 of 2 samples"):
        chain(data, "reflect toy-shout", out=tmp_path / "run")


def test_a_rewrite_that_says_what_another_sample_says_stays_out(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "word"}, {"instruction": "a", "output": "WORD"}]
    run = chain(write_jsonl(tmp_path / "pool.jsonl", rows), "reflect toy-shout", out=tmp_path / "run")
    assert [(r["status"], r["kept"]) for r in table(run)] == [("ok", True), ("ok", True), ("left_out", False)]


# ---- what the run fills, and models with a kind ----


def test_open_fields_are_given_the_runs(pool_file: Path, tmp_path: Path) -> None:
    model = student(tmp_path / "student")
    run = chain(pool_file, "score toy-reader", out=tmp_path / "a", model=str(model), seed=7, template="plain")
    assert {r["toy-reader"] for r in table(run)} == {"student float32 7 plain cpu"}
    own = chain(pool_file, "score toy-reader --seed 3 --dtype bfloat16", out=tmp_path / "b", model=str(model), seed=7)
    assert {r["toy-reader"] for r in table(own)} == {"student bfloat16 3 auto cpu"}
    with pytest.raises(UserError, match="score toy-reader needs a model: --model nano"):
        chain(pool_file, "score toy-reader", out=tmp_path / "c")


def test_a_trained_model_travels_but_a_trainer_starts_from_the_runs(pool_file: Path, tmp_path: Path) -> None:
    model = student(tmp_path / "student")
    run = chain(
        pool_file,
        "select toy-first --budget 5",
        "train toy-trainer",
        "score toy-reader --on all",
        "train toy-trainer",
        "train toy-trainer --continue",
        "evaluate toy-size",
        out=tmp_path / "run",
        model=str(model),
    )
    told = [
        json.loads((Path(s["model"]) / "config.json").read_text())["from"]
        for s in run.manifest["steps"]
        if "model" in s
    ]
    assert told[0] == told[1] == str(model) and told[2] == run.manifest["steps"][3]["model"]
    assert {r["toy-reader"].split()[0] for r in table(run)} == {"model"}
    assert run.results["evaluate toy-size"]["seen"] == 5
    assert (run.folder / "02-train-toy-trainer" / "model" / "config.json").is_file()
    assert len(pq.read_table(run.folder / "items.parquet")) == 5


# ---- the store: nothing twice, nothing stale ----


def test_the_same_command_computes_nothing_and_added_rows_cost_themselves(
    tmp_path: Path, rows: list[Any], toys_log: Log
) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    steps = ("embed toy-letters", "score toy-words", "select top --by toy-words --budget 10%")
    first = chain(data, *steps, out=tmp_path / "run")
    assert first.computed and toys_log()
    again = chain(data, *steps, out=tmp_path / "run")
    assert again.computed == 0 and toys_log() == []
    more = write_jsonl(tmp_path / "more.jsonl", rows + [row(n) for n in range(100, 105)])
    added = chain(more, *steps, out=tmp_path / "more")
    assert toys_log() == ["embed 5", "score 5"]
    assert added.manifest["steps"][1]["found"] == 40


def test_one_option_computes_its_step_and_what_hangs_on_it(pool_file: Path, tmp_path: Path, toys_log: Log) -> None:
    steps = [
        "embed toy-letters",
        "score toy-words",
        "score toy-above --by toy-words",
        "score toy-partial",
        "select toy-first",
    ]
    chain(pool_file, *steps, out=tmp_path / "a")
    assert toys_log().count("partial 40") == 1
    steps[1] = "score toy-words --plus 1"
    chain(pool_file, *steps, out=tmp_path / "b")
    assert toys_log() == ["score 8"] * 5 + ["above 40"]


def test_one_line_of_a_plugin_computes_its_steps_and_nothing_else(pool_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "toys"
    shutil.copytree(TOYS, copy)
    log = tmp_path / "log"
    env = {"PYTHONPATH": str(copy), "TOYS_LOG": str(log)}
    steps = ["score", "length", "score", "toy-words", "select", "top", "--by", "toy-words", "--budget", "3"]

    def counts(out: str) -> list[int]:
        command = [
            sys.executable,
            "-m",
            "siftune",
            "run",
            pool_file,
            "--out",
            tmp_path / out,
            "--json",
            "--quiet",
            *steps,
        ]
        told = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=True, env={**os.environ, **env}
        )
        return [step["computed"] for step in json.loads(told.stdout)["steps"]]

    assert counts("a") == [40, 40, 40]
    assert counts("b") == [0, 0, 0]
    module = copy / "siftune_toys.py"
    module.write_text(module.read_text().replace('"""Words of the response."""', '"""Words of a response."""'))
    assert counts("c") == [0, 40, 40]


def test_values_of_input_columns_are_part_of_what_is_known(tmp_path: Path, toys_log: Log) -> None:
    rows = [row(n, weight=n) for n in range(20)]
    steps = ("score toy-input", "score toy-above --by toy-input")
    chain(write_jsonl(tmp_path / "a.jsonl", rows), *steps, out=tmp_path / "a")
    assert toys_log() == ["input 20", "above 20"]
    rows[3]["weight"] = 99
    run = chain(write_jsonl(tmp_path / "b.jsonl", rows), *steps, out=tmp_path / "b")
    assert toys_log() == ["input 1", "above 1"]
    assert table(run)[3]["toy-input"] == 99 and table(run)[3]["toy-above"] == 100


def test_a_killed_run_goes_on_from_what_was_computed(pool_file: Path, tmp_path: Path, shell: Any) -> None:
    steps = ["score", "toy-words", "select", "top", "--by", "toy-words", "--budget", "5"]
    log = tmp_path / "log"
    dying = {"TOYS_LOG": str(log), "TOYS_DIE_AFTER": "2"}
    died = shell("run", pool_file, "--out", tmp_path / "run", "--store", tmp_path / "s", *steps, env=dying)
    assert died.returncode == -9
    log.write_text("")
    went_on = shell(
        "run",
        pool_file,
        "--out",
        tmp_path / "run",
        "--store",
        tmp_path / "s",
        *steps,
        env={"TOYS_LOG": str(log)},
    )
    assert went_on.returncode == 0, went_on.stderr
    assert log.read_text().splitlines() == ["score 8"] * 3
    assert re.search(r"score toy-words: 40 rows, 16 found, 24 computed", went_on.stderr)
    whole = shell("run", pool_file, "--out", tmp_path / "whole", "--store", tmp_path / "t", *steps)
    assert whole.returncode == 0
    assert (tmp_path / "run" / "selected.jsonl").read_bytes() == (tmp_path / "whole" / "selected.jsonl").read_bytes()


# ---- run folders ----


def test_another_recipe_in_the_same_folder_is_refused(pool_file: Path, tmp_path: Path) -> None:
    chain(pool_file, "score toy-words", out=tmp_path / "run")
    with pytest.raises(UserError, match=r"holds a run of another recipe.*--overwrite"):
        chain(pool_file, "score toy-words --plus 1", out=tmp_path / "run")
    chain(pool_file, "score toy-words --plus 1", out=tmp_path / "run", overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is no run of siftune"):
        chain(pool_file, "score toy-words", out=foreign, overwrite=True)
    assert (foreign / "thesis.txt").exists()


def test_a_locked_recipe_carries_out_the_same(pool_file: Path, tmp_path: Path) -> None:
    run = chain(pool_file, "score toy-words", "select top --by toy-words --budget 5", out=tmp_path / "a")
    again = siftune.api.carry_out(siftune.Recipe.read(run.folder / "recipe.toml"), out=tmp_path / "b")
    assert again.computed == 0
    assert [s.id for s in again.selected] == [s.id for s in run.selected]


def test_arms_share_what_they_have_in_common(pool_file: Path, tmp_path: Path, toys_log: Log) -> None:
    from siftune.recipe import Arm

    arms = [Arm("other", Step("select", "toy-first"))]
    run = chain(
        pool_file,
        "score toy-words",
        "select top --by toy-words --budget 4",
        "train toy-trainer",
        out=tmp_path / "run",
        arms=arms,
    )
    assert toys_log().count("train") == 2
    assert len(run.arms["other"].selected) == len(run.selected) == 4
    assert run.arms["other"].manifest["steps"][0]["computed"] == 0
    assert (run.folder / "arms" / "other" / "table.parquet").is_file()


# ---- one method on its own ----


def test_apply_gives_what_the_hook_gives_in_the_order_that_came_in(rows: list[Any]) -> None:
    import siftune_toys as toys

    words = siftune.apply(toys.Words(), rows)
    assert words["toy-words"].tolist() == [n % 7 + 2 for n in range(40)]
    assert siftune.apply(toys.Letters(), rows).shape == (40, 26)
    labels, centres, distances = siftune.apply(toys.Halves(), rows, embedding=np.eye(40))
    assert labels.shape == distances.shape == (40,) and centres.shape == (2, 40)
    loud = siftune.apply(toys.Shout(), rows[:3])
    assert {s.response for s in loud} == {r["output"].upper() for r in rows[:3]}
    assert siftune.apply(toys.First(positions=[2, 0]), Samples.of(rows), budget=1) != []


def test_apply_does_not_touch_the_callers_pool(rows: list[Any]) -> None:
    import siftune_toys as toys

    samples = Samples.of(rows)
    siftune.apply(toys.Words(), samples)
    siftune.apply(toys.Words(), samples)
    siftune.apply(toys.Shout(), samples)
    assert len(samples.pool) == 40 and not samples.pool.columns


def test_samples_made_in_python_can_be_read_too(tmp_path: Path) -> None:
    pool = Pool.of([Sample.of("a", "b"), Sample.of("c", "d", input="e")])
    assert pool.samples[1].prompt == "c\n\ne" and pool.samples[1].instruction == "c" and pool.samples[1].input == "e"
