"""The page that a run leaves: what is on it, and that nothing which strangers wrote does anything on it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siftune
from siftune import Column, Step, UserError, chart, report, shown
from siftune.methods import Evaluation
from siftune.recipe import Arm

from .conftest import row, student, write_jsonl

HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src="http://example.org/x.png" onerror=alert(1)>',
    "</svg></style></title><h1>broken</h1>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "\u202egnp.exe\u202c \x1b[31m \x00",
    "&lt;b&gt; &amp;",
    "W" * 3000,
]


class Page(HTMLParser):
    """A page taken apart as a browser does it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def charts(self) -> list[str]:
        return re.findall(r"Histogram of ([^<]*)", self.source)


def made(folder: Path) -> Page:
    return Page(folder / "report.html")


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_it_says_what_happened_to_the_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rows += [rows[3], {"instruction": "Say nothing", "input": "", "output": "  "}]
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    steps = ["score toy-partial --fails 13", "select top --by toy-partial --budget 5"]
    run = siftune.run(data, steps, out=tmp_path / "run", min_coverage=0.5)
    page = report.page(run)
    assert page["summary"] == "42 rows were read; select top --by toy-partial --budget 5 kept 5 of them (11.9%)."
    states = {fate.name: fate.rows for fate in page["fates"]}
    assert states == {"kept": 5, "not chosen": 28, "left out": 6, "failed": 3}
    reasons = {one["reason"]: (one["state"], one["who"], one["count"]) for one in page["reasons"]}
    assert reasons["divisible by ten"] == ("left out", "1 score toy-partial", 4)
    assert reasons["timed out"] == ("failed", "1 score toy-partial", 3)
    assert reasons["duplicate of row 4"] == ("left out", "reading", 1)
    assert reasons["empty response"][1] == "reading"
    text = plain(made(tmp_path / "run").text)
    assert page["summary"] in text and "score toy-partial --fails 13" in text and "timed out" in text


def test_nothing_that_strangers_wrote_does_anything(tmp_path: Path) -> None:
    rows = []
    for number, text in enumerate(HOSTILE * 6):
        rows.append({"instruction": text, "input": text, "output": f"{text} {number}", "<b>weight</b>": number})
    steps = [
        "score length",
        Step("score", "toy-input", column="<b>weight</b>"),
        Step("select", "top", by="input.<b>weight</b>", budget="30%", label="<i>mine</i>"),
    ]
    with pytest.raises(UserError, match="a name is made of letters"):
        Arm("<u>half & half", Step("select", "toy-first"))
    arms = [Arm("half", Step("select", "toy-first"))]
    data = write_jsonl(tmp_path / "pool.jsonl", rows)
    run = siftune.run(data, steps, out=tmp_path / "a <b> & b", arms=arms)
    run.state.done[0].warnings.append(HOSTILE[0])
    run.state.done[0].figures[HOSTILE[1]] = {HOSTILE[2]: [HOSTILE[0]] * 20}
    for one in [run, *run.arms.values()]:
        one.state.done[-1].evaluation = Evaluation({HOSTILE[0]: {"value": 1, "low": 0, "high": 2, HOSTILE[1]: 3}})
    page = Page(report.write(run))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "link", "base", "form", "b", "i", "u"}
    assert [tag for tag, _ in page.tags].count("h1") == 1
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        place = attributes.get("href") or ""
        assert not re.match(r"[a-z]+:|//", place)
    for text in HOSTILE[:4]:
        assert text in page.text
    assert "&lt;b&gt; &amp;" in page.text  # as it was written, and not what it would mean
    assert not re.search(r"[\x00\x1b\u202e]", page.source)
    assert "<i>mine</i>" in page.text


def test_it_needs_nothing_beside_itself(tmp_path: Path, pool_file: Path) -> None:
    siftune.run(pool_file, ["score length", "select top --by length --budget 5"], out=tmp_path / "run")
    page = made(tmp_path / "run")
    assert not re.search(r"url\(|@import|https?://|src=", page.source)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    links = [a["href"] for tag, a in page.tags if tag == "a" and not str(a["href"]).startswith("#")]
    assert links and all((tmp_path / "run" / str(link)).exists() for link in links)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {str(a["href"])[1:] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#")} <= anchors


def test_every_column_of_numbers_is_drawn_and_vectors_are_not(tmp_path: Path, pool_file: Path) -> None:
    steps = [
        "embed toy-letters",
        "cluster toy-halves",
        "score toy-words",
        "select top --by toy-words --budget 5",
    ]
    siftune.run(pool_file, steps, out=tmp_path / "run")
    page = made(tmp_path / "run")
    assert page.charts() == ["cluster", "cluster_distance", "toy-words", "toy-words.letters"]
    images = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "histogram"]
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert all(set(str(a["aria-labelledby"]).split()) <= ids and a["role"] == "img" for a in images)
    assert "Kept: 5 values, median" in page.source


def test_samples_are_the_best_the_worst_the_edge_and_some_between(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pool.jsonl", [row(n) | {"output": "x" * (1000 - n)} for n in range(100)])
    run = siftune.run(data, ["score length", "select top --by length --budget 20"], out=tmp_path / "run")
    groups = {group["title"]: [one["number"] for one in group["samples"]] for group in report.groups(run.state)}
    assert groups["Best"] == ["1", "2", "3", "4", "5", "6"]
    assert groups["The edge"] == ["18", "19", "20", "21", "22", "23"]
    assert groups["Middle"] == ["48", "49", "50", "51", "52", "53"]
    assert groups["Worst"] == ["95", "96", "97", "98", "99", "100"]
    text = plain(made(tmp_path / "run").text)
    assert "Texts are cut to 400 characters" in text and "… 600 more characters" in text


@pytest.mark.parametrize(
    ("steps", "titles"),
    [
        (
            ["score length", "select toy-first --budget 10"],
            ["First chosen", "Middle of the chosen", "Last chosen", "Not chosen"],
        ),
        (["score length"], ["Best", "Middle", "Worst"]),
        (["embed toy-letters"], ["Some samples"]),
    ],
)
def test_a_run_without_a_column_to_choose_by_shows_samples_too(
    tmp_path: Path, pool_file: Path, steps: list[str], titles: list[str]
) -> None:
    run = siftune.run(pool_file, steps, out=tmp_path / "run")
    assert [group["title"] for group in report.groups(run.state)] == titles
    assert made(tmp_path / "run").text


def test_arms_stand_side_by_side_with_their_intervals(tmp_path: Path, pool_file: Path) -> None:
    steps = ["score length", "select top --by length --budget 10", "train toy-trainer", "evaluate toy-size"]
    arms = [
        Arm("first", Step("select", "toy-first")),
        Arm("everything", Step("select", "toy-first", budget="100%")),
    ]
    run = siftune.run(pool_file, steps, out=tmp_path / "run", arms=arms)
    [evaluation] = report.evaluations(run)
    metrics = {metric["name"]: metric["rows"] for metric in evaluation["metrics"]}
    assert [(one["arm"], one["value"]) for one in metrics["seen"]] == [
        ("this run", "10"),
        ("first", "10"),
        ("everything", "40"),
    ]
    assert [one["interval"] for one in metrics["share"]] == ["0.25 to 0.75"] * 3
    told = {arm["name"]: (arm["said"], arm["kept"], arm["shared"]) for arm in report.arms(run)}
    assert told["this run"] == ("select top --by length --budget 10", 10, 10)
    assert told["everything"] == ("select toy-first --budget 100%", 40, 10)
    assert made(tmp_path / "run").source.count('class="interval"') == 3


def test_what_a_trainer_measured_stands_with_the_evaluations(tmp_path: Path, pool_file: Path) -> None:
    steps = ["select toy-first --budget 10", "train toy-trainer --measure"]
    arms = [
        Arm("fewer", Step("select", "toy-first", budget="5")),
        Arm("again", Step("train", "toy-trainer", measure=True, continue_=True), "train toy-trainer"),
    ]
    for _ in range(2):  # computed, and found in the store
        run = siftune.run(pool_file, steps, out=tmp_path / "run", store=tmp_path / "store", arms=arms, overwrite=True)
        assert {name: one["n"] for name, one in run.compared["train toy-trainer"]["held out"].items()} == {
            "this run": 10, "fewer": 5, "again": 10,
        }  # fmt: skip
        assert "--continue" in report.arms(run)[2]["said"]
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert told["train toy-trainer"]["held out"]["value"] == 0.75
    page = made(tmp_path / "run")
    assert page.source.count('class="interval"') == 3 and "0.5 to 1" in page.text


def test_a_run_without_rows_has_a_page(tmp_path: Path) -> None:
    student(tmp_path / "model", '{"ids": []}')
    siftune.run(None, ["evaluate toy-size"], out=tmp_path / "run", model=str(tmp_path / "model"))
    assert "No rows were read" in made(tmp_path / "run").text


def test_numbers_of_clusters_stay_as_they_are(pool_file: Path, tmp_path: Path) -> None:
    run = siftune.run(pool_file, ["embed toy-letters", "cluster toy-halves"], out=tmp_path / "run")
    [cluster, distance] = report.charts(run.state)
    assert cluster["table"] == [] and distance["table"] and not any("anew" in note for note in cluster["notes"])
    labels = run.state.pool.columns["cluster"].values
    sample = report._sample(run.state, 3)
    assert ("cluster", f"{labels[3]:.0f}") in sample["values"]


def test_the_time_that_computing_took_outlives_a_run_that_finds_everything(pool_file: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run = siftune.run(pool_file, ["score toy-words", "select toy-first"], out=tmp_path / "run")
        told = json.loads((run.folder / "01-score-toy-words" / "step.json").read_text())
        if run.computed:
            (run.folder / "01-score-toy-words" / "step.json").write_text(json.dumps({**told, "took": 47.0}))
    assert told["took"] == 47 and told["computed"] == 0 and told["seconds"] < 40
    assert report.page(run)["steps"][0]["seconds"] == 47
    assert "47 s" in made(run.folder).text


def test_many_rows_make_no_larger_a_page(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} " * (n % 97 + 1)} for n in range(20_000)]
    steps = ["score length", "score toy-partial", "select top --by length --budget 5%"]
    siftune.run(write_jsonl(tmp_path / "pool.jsonl", rows), steps, out=tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    assert page.stat().st_size < 200_000
    assert "divisible by ten" in made(tmp_path / "run").text


# ---- drawings ----


def drawn(values: Any, **about: Any) -> chart.Histogram:
    values = np.asarray(values, np.float64)
    return chart.histogram(values, values[: len(values) // 2], Column("x", **about))


def test_every_value_is_counted_once() -> None:
    draws = np.random.default_rng(0)
    for values in (
        draws.normal(size=1000),
        draws.lognormal(3, 2, 1000),
        draws.integers(0, 7, 1000),
        np.floor(draws.lognormal(3, 2, 1000)) + 1,
        np.r_[draws.normal(size=1000), 1e9],
        np.full(10, 3.0),
        np.zeros(5),
        [1.0],
        [0.1, 0.1 + 1e-17, np.nan],
        draws.normal(size=1000) * 1e-12 + 1,
        -draws.lognormal(3, 2, 1000),
    ):
        one = drawn(values)
        finite = np.isfinite(np.asarray(values, float))
        assert one.pool.sum() == finite.sum()
        assert len(one.edges) == len(one.pool) + 1 and np.all(np.diff(one.edges) > 0)
        marks = chart.ticks(float(one.edges[0]), float(one.edges[-1]), one.log, one.whole)
        assert len(marks) <= 12
        assert all(chart.LEFT - 1e-6 <= one.at(mark) <= chart.RIGHT + 1e-6 for mark in marks)
        assert "nan" not in chart.svg(one, "a")


def test_long_tails_are_cut_and_said_so() -> None:
    values = np.r_[np.linspace(-1, 1, 1000), 1e6]
    one = drawn(values)
    assert one.edges[-1] < 2
    assert (
        one.notes == ["5 values above 0.992, up to 1,000,000, are in the last bar"] or "in the last bar" in one.notes[0]
    )
    assert drawn(np.geomspace(1, 1e5, 500)).notes == ["logarithmic axis"]


def test_no_bar_stands_on_both_sides_of_a_bound() -> None:
    one = drawn(np.random.default_rng(1).normal(0.9, 0.2, 500), below=1.0)
    assert np.isclose(one.edges, 1.0).any()
    assert 'class="outside"' in chart.svg(one, "a")


def test_whole_numbers_get_bars_of_their_own() -> None:
    one = drawn(np.repeat(np.arange(5), [5, 4, 3, 2, 1]))
    assert one.pool.tolist() == [5, 4, 3, 2, 1]
    assert chart.ticks(-0.5, 4.5, False, True) == [0, 1, 2, 3, 4]


# ---- words ----


def test_reasons_that_differ_in_numbers_are_one() -> None:
    said = ["ifd 1.2 is not below 1", "ifd 3 is not below 1", "timed out", "row 7 of 9"]
    assert shown.alike(said) == [("ifd … is not below 1", [0, 1]), ("timed out", [2]), ("row 7 of 9", [3])]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3.0, "3"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (1755.6, "1,756"),
        (float("nan"), "none"),
        (True, "True"),
        ("a\x1b", "a␛"),
    ],
)
def test_figures_are_short(value: Any, said: str) -> None:
    assert shown.number(value) == said


def test_what_is_cut_is_counted() -> None:
    assert shown.shortened("x" * 1000, 400) == ("x" * 400, 600)
    assert shown.shortened("x" * 430, 400) == ("x" * 430, 0)  # not worth a word
