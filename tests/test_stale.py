"""Nothing old is taken for new, and nothing new is computed twice: what a fingerprint and a row's key hang on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import siftune
from siftune import CoverageError, Method, Pool, Sample, Samples, fingerprint, hookimpl, models, options, recipe, stream
from siftune.attach import Checker
from siftune.context import Context
from siftune.testing import tiny_model

from .conftest import row, write_jsonl
from .distributions import write

Log = Callable[[], list[str]]
LOW = {"instruction": "a", "output": "word"}
HIGH = {"instruction": "a", "output": "WORD"}


def chain(pool: Any, *steps: str, **options: Any) -> siftune.Run:
    return siftune.run(pool, list(steps), **options)


def weights(run: siftune.Run) -> list[float]:
    told = json.loads((run.models["causal-lm"] / "config.json").read_text())
    return sorted(told["weights"])


def test_a_value_that_came_later_reaches_what_hangs_on_it(
    pool_file: Path, tmp_path: Path, toys_log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        "score toy-partial --fails 13",
        "score toy-above --by toy-partial",
        "score toy-above --by toy-above --as twice",
        "select top --by toy-partial",
    )
    first = chain(pool_file, *steps, out=tmp_path / "a", min_coverage=0.5)
    assert len(first.selected) == 33
    monkeypatch.setenv("TOYS_HEALED", "1")
    toys_log()
    run = chain(pool_file, *steps, out=tmp_path / "b", min_coverage=0.5)
    # three had failed; what hangs on them is computed for them and for nobody else
    assert toys_log() == ["partial 3", "above 3", "above 3"]
    assert len(run.selected) == 36
    assert sum(r["twice"] is not None for r in run.table.to_pylist()) == 36


def test_a_row_that_had_no_value_out_of_play_gets_one(pool_file: Path, tmp_path: Path) -> None:
    steps = ("score toy-words --as early", "score toy-above --by early --on all")
    few = chain(pool_file, "select toy-first --budget 10", *steps, out=tmp_path / "a")
    assert few.manifest["steps"][2]["states"]["left_out"] == 30
    run = chain(pool_file, *steps, out=tmp_path / "b")
    assert run.manifest["steps"][1]["states"] == {"ok": 40, "left_out": 0, "failed": 0}


def test_families_are_part_of_what_a_selection_hangs_on(tmp_path: Path) -> None:
    both, one = write_jsonl(tmp_path / "both.jsonl", [LOW, HIGH]), write_jsonl(tmp_path / "one.jsonl", [LOW])
    steps = ("score toy-words", "select toy-best")
    assert len(chain(both, *steps, out=tmp_path / "a").selected) == 2
    # the same two ids, but now one is a rewrite of the other
    assert len(chain(one, "reflect toy-shout", *steps, out=tmp_path / "b").selected) == 1


def test_who_wrote_a_sample_is_part_of_what_a_step_over_the_view_hangs_on(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [LOW])
    for name in ("loud", "louder"):
        run = chain(data, f"reflect toy-shout --name {name}", "score toy-wrote", out=tmp_path / name)
        assert set(run.table["toy-wrote"].to_pylist()) == {"None", name}


def test_a_second_model_is_part_of_what_a_step_hangs_on_also_when_the_first_was_trained_here(
    pool_file: Path, tmp_path: Path, toys_log: Log
) -> None:
    beside = tiny_model(tmp_path / "beside")
    config = json.loads((beside / "config.json").read_text())
    steps = ("train toy-trainer --model nano", f"score toy-reader --beside {beside}")
    for at, read in enumerate((["train", "reader"], [], ["reader"])):
        (beside / "config.json").write_text(json.dumps(config | {"change": at // 2}))
        chain(pool_file, *steps, out=tmp_path / str(at))
        assert toys_log() == read


def test_what_a_method_said_of_its_values_is_said_again_when_they_are_found(pool_file: Path, tmp_path: Path) -> None:
    steps = ("score toy-doubt", "score toy-wrote")
    for name in ("computed", "found"):
        ones, hearsay = chain(pool_file, *steps, out=tmp_path / name).manifest["steps"]
        assert (ones["warnings"][:1], ones["figures"]) == (["one is no score"], {"ones": 40})
        assert (hearsay["warnings"], hearsay["figures"]) == (["it goes by hearsay"], {"asked": 40})
    # of other rows that were found nothing was said as a whole
    few = chain(pool_file, "select toy-first --budget 3", steps[0], out=tmp_path / "few").manifest["steps"][1]
    assert few["figures"] == {} and "one is no score" not in few["warnings"]


def test_weights_of_every_select_are_part_of_what_a_model_hangs_on(pool_file: Path, tmp_path: Path) -> None:
    three = " ".join(f"--positions {at}" for at in range(3))
    rest = (f"select toy-first --weighted {three}", "train toy-trainer")
    one = chain(pool_file, "select toy-first --weighted --budget 3", *rest, out=tmp_path / "a")
    two = chain(pool_file, "select toy-first --budget 3", *rest, out=tmp_path / "b")
    assert (weights(one), weights(two)) == ([1, 1, 4], [1, 1, 2])


def test_the_students_tokenizer_is_part_of_a_budget_in_tokens(
    pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (student / "config.json").write_text("{}")

    def each(view: Samples, model: str, _: str) -> Any:
        return np.full(len(view), int((Path(model) / "tokenizer.json").read_text()))

    monkeypatch.setattr(models, "count_tokens", each)
    kept = []
    for tokens in ("10", "20"):
        (student / "tokenizer.json").write_text(tokens)
        steps = ("select toy-first --budget '60 tokens'",)
        kept.append(len(chain(pool_file, *steps, out=tmp_path / tokens, model=str(student)).selected))
    assert kept == [6, 3]


def test_a_failure_that_one_run_accepts_is_tried_again(tmp_path: Path, toys_log: Log) -> None:
    rows = [row(0), row(1)] + [{"instruction": f"x{n}", "output": "fail here"} for n in range(3)]
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    for name in "ab":
        chain(data, "reflect toy-shout", out=tmp_path / name, min_coverage=0.1)
        assert toys_log() == ["reflect"]
    with pytest.raises(CoverageError, match="failed on 3 of 5 rows"):
        chain(data, "reflect toy-shout", out=tmp_path / "c")
    assert toys_log() == ["reflect"]


def test_a_rewrite_was_made_by_the_step_of_this_run(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(1)])
    chain(data, "reflect toy-shout --name loud", out=tmp_path / "a")
    run = chain(data, "reflect toy-shout", out=tmp_path / "b")
    assert run.computed == 0
    assert [r["made_by"] for r in run.table.to_pylist()] == [None, "reflect toy-shout"]


def test_a_file_that_changes_while_python_runs_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    before = fingerprint.of_file(path)
    path.write_text("other")
    assert fingerprint.of_file(path) != before


class Several(Method):
    """Reads files."""

    files: Annotated[list[Path], "several"]

    @hookimpl
    def score(self, samples: Any) -> Any:
        return [0.0 for _ in samples]


def test_files_in_a_list_are_told_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def mark(text: str) -> str:
        path.write_text(text)
        return fingerprint.of_step("score", "several", "here", Several(files=[path]), "", {})

    assert mark("one") == mark("one") != mark("other")
    # and are found from where the recipe lies, as one alone is
    built = options.build(Several, {"files": ["file"]}, "score several", tmp_path)
    assert built.options() == {"files": [path]} and recipe.absolute([path]) == [str(path)]


def test_an_observer_that_changes_values_is_told_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siftune import calling

    seen = []
    for top in (5, 6):
        place = tmp_path / str(top)
        code = f"""
class Clip:
    changes = ("score",)

    @hookimpl(wrapper=True)
    def score(self):
        answer = yield
        return {{name: [min(value, {top}) for value in values] for name, values in answer.items()}}
"""
        with monkeypatch.context() as patch:
            patch.syspath_prepend(write(place, "siftune-clip", code, {"siftune": {"clip": "Clip"}}))
            patch.delitem(sys.modules, "siftune_clip", raising=False)
            seen += calling.changes("score")
            del sys.modules["siftune_clip"]
    assert len(seen) == 2 and seen[0] != seen[1]


# ---- equal rows, families and weights ----


def test_an_original_that_a_rewrite_equals_stays_its_own_family(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [LOW, HIGH])
    run = chain(data, "reflect toy-shout", "score toy-words", "select toy-best", out=tmp_path / "a")
    assert sorted(s.response for s in run.selected) == ["WORD", "word"]


def test_all_hands_over_equal_rows_once(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [LOW, HIGH])
    at = Pool.of([LOW, HIGH]).view().ids.index(Sample.of("a", "word").id)
    # the rewrite says what the row says that was not selected
    steps = (f"select toy-first --positions {at}", "reflect toy-shout", "select toy-first --on all")
    run = chain(data, *steps, out=tmp_path / "a")
    assert sorted(s.response for s in run.selected) == ["WORD", "word"]


def test_weights_end_where_a_select_starts_anew_and_rewrites_weigh_one(pool_file: Path, tmp_path: Path) -> None:
    heavy = "select toy-first --weighted --budget 3"
    anew = chain(pool_file, heavy, "select toy-first --budget 5 --on all", "train toy-trainer", out=tmp_path / "a")
    assert set(weights(anew)) <= {1.0}
    more = chain(pool_file, heavy, "reflect toy-shout", "train toy-trainer", out=tmp_path / "b")
    assert weights(more) == [1, 1, 1, 1, 1, 2]


def test_whose_a_rewrite_is_does_not_hang_on_which_came_first(tmp_path: Path) -> None:
    view = Pool.of([Sample.of("a", "x"), Sample.of("a", "y")]).view()
    parents = []
    for order in ((0, 1), (1, 0)):
        answer = iter([view[at].rewrite(response="z") for at in order])
        taken = stream.take(answer, view, Checker("reflect toy", "here"), Context(tmp_path))
        parents += [sample.parent for sample in taken.samples]
        assert taken.repeated == 1
    assert parents == [view[0].id] * 2


def test_a_rewrite_may_hold_what_ends_a_line_of_unicode(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [{"instruction": "a", "output": "one\u2028two\x85three"}])
    run = chain(data, "reflect toy-shout", out=tmp_path / "a")
    assert {s.response for s in run.selected} == {"one\u2028two\x85three", "ONE\u2028TWO\x85THREE"}


def test_states_count_what_a_step_was_given(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(1), row(2), row(1)])
    for keep, given in ((False, 2), (True, 3)):
        run = chain(data, "score toy-words", out=tmp_path / str(keep), keep_duplicates=keep)
        step = run.manifest["steps"][0]
        assert (step["given"], step["states"]["ok"]) == (given, given)
        assert all(r["toy-words"] is not None for r in run.table.to_pylist())


def test_a_budget_per_group_tells_groups_apart_and_counts_tokens_once() -> None:
    from siftune import Budget

    samples = Samples.of([row(n) for n in range(4)], g=np.array([1000001.0, 1000002, 1000003, 1000003]))
    asked: list[int] = []

    def tokens() -> Any:
        asked.append(1)
        return np.ones(4, int)

    kept, over = Budget.parse("1 tokens per g").cut(np.arange(4), samples, tokens)
    assert kept.tolist() == [0, 1, 2] and len(asked) == 1 and not over
    # one small group does not keep everything
    assert not Budget.parse("1 per g").cut(np.arange(4), samples, tokens)[1]
    assert not Budget.parse("2 per g").cut(np.arange(4), samples, tokens)[1]
    assert Budget.parse("3 per g").cut(np.arange(4), samples, tokens)[1]


def test_the_folder_of_a_row_step_goes_while_nobody_else_may_use_it(
    pool_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    free = []

    def removed(path: Path, ignore_errors: bool = False) -> None:
        with (tmp_path / "store" / "locks" / path.name).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append(path)
            except BlockingIOError:
                free.append(None)

    monkeypatch.setattr("siftune.engine.shutil.rmtree", removed)
    chain(pool_file, "score toy-words", out=tmp_path / "run", store=tmp_path / "store")
    assert free == [None]


def test_a_column_of_the_input_is_built_once_for_all_shards() -> None:
    pool = Pool.of([row(n, note=n) for n in range(3)])
    before = pool.held("input.note")
    assert pool.held("input.note") is before
    pool.add([pool.samples[0].rewrite(response="new")])
    assert np.isnan(pool.held("input.note").values[-1])
