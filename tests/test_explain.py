"""Why a sample was kept or not: the story of a row out of a run folder, and how it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import siftune
from rich.console import Console
from siftune import Step, UserError, explain, methods, testing
from siftune.explain import story

from .conftest import row, write_jsonl

Shell = Callable[..., Any]
TOP = "select top --by toy-partial --budget 5"


def carried(tmp_path: Path, rows: list[dict[str, Any]], *steps: str | Step, **options: Any) -> siftune.Run:
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    return siftune.run(data, list(steps), out=tmp_path / "run", **options)


def told(found: dict[str, Any], width: int = 100, **options: Any) -> str:
    """The story as a terminal shows it."""
    screen = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, **options)
    explain.write(found, screen)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def step(found: dict[str, Any], number: int) -> dict[str, Any]:
    one: dict[str, Any] = found["steps"][number - 1]
    return one


def test_a_kept_row_has_its_rank_and_its_place_in_the_pool(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = carried(tmp_path, rows, "score toy-partial", TOP)
    found = story(run.folder, "39")
    assert (found["row"], found["kept"], found["status"], found["rank"]) == (39, True, "ok", 2)
    [value] = step(found, 1)["values"]
    assert value == {
        "column": "toy-partial",
        "value": 38.0,
        "percentile": 95.83,
        "rank_from_top": 2,
        "equal": 1,
        "of": 36,
    }
    assert step(found, 2)["says"] == "kept, rank 2 of 5; its toy-partial is 38, that of the last one kept 35"
    assert found["messages"][-1]["content"] == rows[38]["output"]
    text = told(found)
    assert text.startswith(f"row 39  {found['id']}  kept, rank 2")
    assert "out of play" not in text


def test_a_number_without_an_order_has_no_place_among_others(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = carried(tmp_path, rows, "embed toy-letters", "cluster toy-halves", "score toy-words")
    found = story(run.folder, "3")
    ranked = {v["column"]: "percentile" in v for n in (2, 3) for v in step(found, n)["values"]}
    assert ranked == {"cluster": False, "cluster_distance": True, "toy-words": True, "toy-words.letters": False}


def test_a_row_that_was_not_chosen_is_told_by_how_much(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = carried(tmp_path, rows, "score toy-partial", TOP)
    found = story(run.folder, "4")
    assert step(found, 2)["says"] == "not among the 5 kept of 40; its toy-partial is 3, that of the last one kept 35"
    assert (step(found, 2)["in_play_before"], step(found, 2)["in_play_after"]) == (True, False)
    assert "not chosen" in told(found) and "here it comes out of play" in told(found)


def test_left_out_and_failed_rows_say_where_and_why(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = carried(tmp_path, rows, "score toy-partial --fails 13", TOP, min_coverage=0.5)
    left = story(run.folder, "11")
    assert (step(left, 1)["state"], step(left, 1)["reason"]) == ("left_out", "divisible by ten")
    assert step(left, 1)["values"] == [{"column": "toy-partial", "value": None}]
    assert "left out: divisible by ten" in told(left)
    failed = story(run.folder, "2")
    assert (step(failed, 1)["state"], step(failed, 1)["reason"]) == ("failed", "timed out")
    assert "failed: timed out" in told(failed)


def test_a_select_that_leaves_out_gives_its_reason(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = carried(tmp_path, rows, "score toy-partial", "select top --by toy-partial --below 20 --budget 5")
    found = story(run.folder, "30")
    assert (step(found, 2)["state"], step(found, 2)["reason"]) == (
        "left_out",
        "toy-partial 29 is not below 20",
    )
    assert told(found).count("toy-partial 29 is not below 20") == 2  # in the headline, and at the step


def test_what_reading_left_out_is_given_to_no_step(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rows += [rows[3], {"instruction": "Say nothing", "input": "", "output": " "}]
    run = carried(tmp_path, rows, "score length", "select top --by length --budget 5")
    for wanted, reason in (("41", "duplicate of row 4"), ("42", "empty response")):
        found = story(run.folder, wanted)
        assert [one["says"] for one in found["steps"]] == [f"not given: {reason}"] * 2
        assert found["reason"] == reason
    assert story(run.folder, "4")["same_text"] == [41]
    assert "the same text: row 41" in told(story(run.folder, "4"))


def test_a_family_is_told_from_both_ends(tmp_path: Path) -> None:
    rows = [row(n) for n in range(6)] + [row(7) | {"output": "fail"}, row(8) | {"output": "be quiet"}]
    steps = [
        "score length",
        "reflect toy-shout",
        "score toy-words --on kept",
        "select top --by toy-words --budget 4",
    ]
    run = carried(tmp_path, rows, *steps)
    parent = story(run.folder, "1")
    [rewrite] = parent["rewrites"]
    assert step(parent, 2)["says"] == f"rewritten as {rewrite['id']}"
    child = story(run.folder, rewrite["id"][:12])
    assert (child["parent"], child["made_by"], child["row"]) == (parent["id"], "reflect toy-shout", None)
    assert [one["says"] for one in child["steps"][:2]] == [
        "the sample was not yet written",
        "wrote this sample",
    ]
    assert f"rewrites {parent['id']}" in told(child)
    kept = next(r for r in run.table.to_pylist() if r["parent"] and r["kept"])
    assert story(run.folder, kept["id"])["messages"][-1]["content"].isupper()
    lost = next(r for r in run.table.to_pylist() if r["parent"] and not r["kept"])
    assert "not in the run folder" in story(run.folder, lost["id"])["text_note"]
    assert step(story(run.folder, "7"), 2)["says"] == "no rewrite of it"


def test_a_later_select_over_everything_replaces_an_earlier_one(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    steps = [
        "score toy-partial",
        TOP,
        "score length",
        "select top --by toy-partial --lowest --on all --budget 3",
    ]
    run = carried(tmp_path, rows, *steps)
    found = story(run.folder, "2")
    says = [one["says"] for one in found["steps"]]
    assert found["kept"] and says[1].startswith("not among the 5") and says[3].startswith("kept, rank 1 of 3")
    assert says[2] == "not given: out of play"
    assert [one["in_play_after"] for one in found["steps"]] == [True, False, False, True]


def test_a_budget_per_column_compares_with_the_same_group(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    steps = ["embed toy-letters", "cluster toy-halves", "score toy-partial"]
    select = Step("select", "top", by="toy-partial", budget="2 per cluster")
    run = carried(tmp_path, rows, *steps, select)
    lost = next(r for r in run.table.to_pylist() if not r["kept"] and r["toy-partial"] is not None)
    group = [r["toy-partial"] for r in run.table.to_pylist() if r["kept"] and r["cluster"] == lost["cluster"]]
    found = story(run.folder, str(lost["row"]))
    assert step(found, 4)["last_kept"] == min(group)
    assert "with the same cluster" in step(found, 4)["says"]


# ---- the text ----


def test_a_changed_input_is_said_and_a_changed_row_is_not_shown(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = carried(tmp_path, rows, "score toy-partial", TOP)
    data = tmp_path / "pool.jsonl"
    write_jsonl(data, [*rows[:9], row(9) | {"output": "something else"}, *rows[10:]])
    same = story(run.folder, "4")
    assert same["messages"] and "this row has not" in same["text_note"]
    changed = story(run.folder, "10")
    assert changed["messages"] is None and "so has the row" in changed["text_note"]
    data.unlink()
    kept = story(run.folder, "39")
    assert kept["messages"][-1]["content"] == rows[38]["output"]
    assert "the text is that of selected.jsonl" in kept["text_note"]
    gone = story(run.folder, "10")
    assert gone["messages"] is None and "there is no file" in gone["text_note"]
    assert "the text cannot be had" in told(gone)


def test_rows_are_found_as_they_stand_in_the_file(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(one) for one in rows]
    lines[2:2] = ["", "{broken", ""]  # the third row of the pool stands in line 6
    (tmp_path / "pool.jsonl").write_text("\n".join(lines) + "\n")
    steps = ["score length", "select top --by length --budget 5"]
    run = siftune.run(tmp_path / "pool.jsonl", steps, out=tmp_path / "run", on_bad_row="leave-out")
    assert story(run.folder, "6")["messages"][-1]["content"] == rows[2]["output"]
    with pytest.raises(UserError, match="row 4 could not be read: is not JSON"):
        story(run.folder, "4")


def test_what_strangers_wrote_is_shown_and_not_obeyed(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    text = "\x1b]0;owned\x07\x1b[31m[bold]red[/bold] \u202egnp.exe\x9b2J :smile:"
    run = carried(tmp_path, [*rows, row(40) | {"output": text}], "score length")
    shown = told(story(run.folder, "41"), width=200, force_terminal=False)
    assert "[bold]red[/bold]" in shown and ":smile:" in shown and "␛[31m" in shown
    assert not set("\x1b\x07\u202e\x9b") & set(shown)


# ---- tokens ----


def with_losses(run: siftune.Run, conditioned: list[float], alone: list[float], edges: list[float] | None) -> None:
    """Add to the first step what a scorer that keeps token losses writes."""
    path = run.folder / "01-score-length" / "values.parquet"
    table = pq.read_table(path)
    columns = {".token_losses_conditioned": conditioned, ".token_losses_alone": alone, ".token_edges": edges}
    manifest = json.loads((run.folder / "manifest.json").read_text())
    for name, values in columns.items():
        if values is not None:
            table = table.append_column("length" + name, pa.array([values] * len(table)))
            manifest["steps"][0]["columns"].append("length" + name)
    pq.write_table(table, path)
    (run.folder / "manifest.json").write_text(json.dumps(manifest))


def test_tokens_stand_on_the_colour_of_what_the_context_did(tmp_path: Path) -> None:
    run = carried(tmp_path, [row(1) | {"output": "Yes, it does"}], "score length")
    with_losses(run, [0.1, 2.0, 1.0, 1.0], [2.5, 2.02, 1.3, 0.2], [0, 3, 4, 7, 12])
    found = story(run.folder, "1")
    [tokens] = found["tokens"]
    assert [one["text"] for one in tokens["tokens"]] == ["Yes", ",", " it", " does"]
    assert [round(one["helped"], 2) for one in tokens["tokens"]] == [2.4, 0.02, 0.3, -0.8]
    assert [explain._level(one["helped"]) for one in tokens["tokens"]] == [3, 0, 1, -2]
    coloured = told(found, force_terminal=True, color_system="truecolor")
    assert "\x1b[1;38;2;255;255;255;48;2;29;92;156mYes\x1b[0m," in coloured and "hindered by 1.5" in coloured
    plain = told(found)
    assert "\x1b" not in plain and '"Yes" +2.40' in plain and '" does" -0.80' in plain and "--json" in plain


def test_tokens_without_edges_are_shown_as_numbers(tmp_path: Path) -> None:
    run = carried(tmp_path, [row(1)], "score length")
    with_losses(run, [1.0] * 3, [2.0] * 3, None)
    [tokens] = story(run.folder, "1")["tokens"]
    assert "text" not in tokens["tokens"][0] and "did not keep where its tokens end" in tokens["note"]
    assert "did not keep" in told(story(run.folder, "1"))


def test_a_scorer_that_reads_a_model_is_explained_token_by_token(tmp_path: Path) -> None:
    if "ifd" not in methods.found("score"):
        pytest.skip("siftune-ifd-scorer is not installed")
    model = testing.tiny_model(tmp_path / "tiny")
    rows = [row(n) for n in range(5)]
    rows.append({"instruction": "Übersetze", "input": "the bridge", "output": "Die Brücke, im Nebel.\n\nJa 🌉"})
    steps = ["score ifd --keep-token-losses --as hard", "score length"]
    run = carried(tmp_path, rows, *steps, model=str(model), template="plain")
    for number, one in enumerate(rows, 1):
        [tokens] = story(run.folder, str(number))["tokens"]
        assert tokens["column"] == "hard" and not tokens["note"]
        # without an opening token the first has no context alone, and is scored in neither pass
        assert one["output"].endswith("".join(token["text"] for token in tokens["tokens"]))
        assert len(tokens["tokens"]) > 1


def test_the_tokens_of_every_turn_are_explained(tmp_path: Path) -> None:
    if "ifd" not in methods.found("score"):
        pytest.skip("siftune-ifd-scorer is not installed")
    model = testing.tiny_model(tmp_path / "tiny")
    said = ["user", "Name a bridge.", "assistant", "Oh.", "user", "And a river?", "assistant", "Certainly, the Rhine."]
    talk = {"messages": [{"role": role, "content": text} for role, text in zip(said[::2], said[1::2], strict=True)]}
    run = carried(
        tmp_path, [talk], "score ifd --keep-token-losses --turns pooled", "score r-ifd --keep-token-losses",
        model=str(model), template="plain",
    )  # fmt: skip
    both, reverse = story(run.folder, "1")["tokens"]
    assert not both["note"] and not reverse["note"]
    text = "".join(token["text"] for token in both["tokens"])
    assert text.endswith(said[-1]) and len(text) > len(said[-1])
    assert said[5].endswith("".join(token["text"] for token in reverse["tokens"]))


# ---- mistakes ----


def test_mistakes_are_sentences(tmp_path: Path, rows: list[dict[str, Any]], shell: Shell) -> None:
    run = carried(tmp_path, rows, "score length")
    with pytest.raises(UserError, match=r"is no run: there is no manifest\.json"):
        story(tmp_path, "1")
    with pytest.raises(UserError, match=r"has no row '999'; name a row of the input, up to 40, or the beginning"):
        story(run.folder, "999")
    with pytest.raises(UserError, match="has no row 'zebra'"):
        story(run.folder, "zebra")
    with pytest.raises(UserError, match="has no row ''"):
        story(run.folder, "")
    ids = [one["id"] for one in run.table.to_pylist()]
    shared = next(c for c in "abcdef0123456789" if sum(i.startswith(c) for i in ids) > 1 and not c.isdigit())
    with pytest.raises(UserError, match=rf"'{shared}' begins \d+ ids .*write more of it"):
        story(run.folder, shared)
    done = shell("explain", run.folder, "zebra")
    assert done.returncode == 2 and done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    (run.folder / "manifest.json").write_text('{"asked": "x", "state": "running"}')
    with pytest.raises(UserError, match="not finished: run the same command again"):
        story(run.folder, "1")


def test_the_command_line_prints_the_story_or_its_json(
    tmp_path: Path, rows: list[dict[str, Any]], shell: Shell
) -> None:
    run = carried(tmp_path, rows, "score length", "select top --by length --budget 5")
    assert "score length" in shell("explain", run.folder, "7").stdout
    done = shell("explain", run.folder, "7", "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(story(run.folder, "7")))
