"""`score style`: each measure against what a person counts, and the score where texts are no prose at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import siftune
from siftune import Context, Sample, Samples, UserError, apply
from siftune.testing import conforms
from siftune_scar_ranker import kinds
from siftune_scar_ranker.form import LAYOUT, MOST_MTLD, PROSE, flesch, is_function_word, measures, mtld, syllables
from siftune_scar_ranker.style import Style, densest, distance, scale, shrink, standardised

PASSAGE = (
    "The river rises in the hills above the old town, where the snow lies until May. It runs past three mills and "
    "under a bridge that was built by soldiers, and then it turns to the west. Nobody knows why it turns there. "
    "Some say that a rock lies below the field; others speak of the lake which the river had to leave (a long "
    "time ago). When the water is low, the children look for the rock. When it is high, the whole town looks at "
    "the bridge, and the river looks as if it had never thought of the town at all. Who would build a bridge here?"
)
PLAIN = (
    "We made the soup in the morning and we ate it in the evening because the guests came late that day. They "
    "were hungry and they were tired and they said that the soup was good. After that we went out and sat down "
    "by the fire and talked about the years that we had spent in the city by the sea."
)
LISTED = (
    "# Overview\n\nHere is a structured summary of the considerations, presented for convenience:\n\n"
    "- **Efficiency**: optimisation, automation, standardisation, documentation\n"
    "- **Reliability**: redundancy, verification, monitoring, experimentation\n"
    "- **Usability**: accessibility, personalisation, localisation, communication\n\n"
    "## Conclusion\n\nUltimately, implementation requires collaboration, communication, coordination, evaluation, "
    "prioritisation, and continuous improvement; stakeholders should consider alternatives, limitations, "
    "opportunities, responsibilities, and organisational implications before proceeding with transformation."
)


@pytest.fixture
def run(tmp_path: Path) -> Context:
    context = Context(tmp_path)
    said: list[str] = []
    context.say = context.warn = said.append
    context.figures["said"] = said  # for the tests to look at
    return context


def score(samples: Samples, run: Context, **options: Any) -> Any:
    return Style(**options).score(samples=samples, run=run)


def family(instruction: str, human: str, referenced: str, direct: str) -> list[Sample]:
    original = Sample.of(instruction, human)
    rewrites = {"reflect referenced": referenced, "reflect direct": direct}
    return [original, *(replace(original.rewrite(response=text), made_by=made) for made, text in rewrites.items())]


# ---- measures ----


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("a b c a", 4 / (0.25 / 0.28)),  # the stretch at the end counts as a part
        ("a b a b a b", 3.0),  # two of three are different: below .72
        ("a a a a", 2.0),
        # forwards one stretch of six and a single word; backwards one of two, and a rest of five with four different
        ("a b c d a a a", (7 / 1 + 7 / (1 + 0.2 / 0.28)) / 2),
        ("a b c d e f", MOST_MTLD),  # nothing comes twice: any number would do
    ],
)
def test_mtld_is_what_a_person_counts(words: str, value: float) -> None:
    assert mtld(words.split()) == pytest.approx(value)


def test_no_measure_grows_with_the_text() -> None:
    once, words = measures(PASSAGE)
    twice, doubled = measures(f"{PASSAGE}\n\n{PASSAGE}")
    assert doubled == 2 * words
    assert twice["mtld"] == pytest.approx(once["mtld"], rel=0.1)  # the stretch over the seam
    assert once["mtld"] < MOST_MTLD / 2
    for name in set(once) - {"mtld"}:
        assert twice[name] == pytest.approx(once[name]), name
    known = PASSAGE.lower().split()
    assert len(set(known + known)) / len(known + known) < 0.6 * len(set(known)) / len(known)  # which a plain ratio does


def test_sentences_are_those_of_a_reader() -> None:
    def lengths(text: str) -> tuple[float, float]:
        found, _ = measures(text)
        return found["sentence_length"], found["sentence_spread"]

    assert lengths("One two three. Four five!") == (2.5, 0.5)
    assert lengths("Pi is 3.14 or so, e.g. in school. Yes.") == (4.5, 3.5)
    assert lengths('He said "stop." She did... And so she stood') == (3.0, pytest.approx((2 / 3) ** 0.5))
    assert lengths("- one two\n- three four\n\nfive six") == (2.0, 0.0)
    assert lengths("one two\nthree four") == (4.0, 0.0)  # a line that is wrapped
    assert lengths("# Head line\none two three four") == (3.0, 1.0)
    assert lengths("word " * 500) == (100, 0)  # without a full stop it is no sentence


def test_flesch_and_what_it_counts() -> None:
    assert flesch("the cat sat on the mat".split(), 1) == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    counted = {"make": 1, "table": 2, "jumped": 1, "wanted": 2, "boxes": 2, "apples": 2, "rules": 1, "beautiful": 3}
    assert {word: syllables(word) for word in counted} == counted
    assert syllables("the") == syllables("mmm") == syllables("не") == 1


def test_function_words_hold_sentences_together() -> None:
    assert all(map(is_function_word, ["the", "of", "don't", "isn’t", "it's", "they're", "although"]))
    assert not any(map(is_function_word, ["river", "john's", "compute", "t"]))
    assert measures("the river of the hills")[0]["function_words"] == 3 / 5


def test_punctuation_is_a_share_of_words_and_marks() -> None:
    found, words = measures('Well, yes; no? (He said: "go")')
    total = words + 8
    assert words == 6
    assert found["commas"] == 2 / total and found["questions"] == 1 / total
    assert found["colons"] == 1 / total and found["brackets"] == 4 / total


def test_layout_is_a_share_of_lines_and_code_is_no_prose() -> None:
    code = "```python\n# the cat\nx = [1, 2]\n```"
    found, words = measures(f"# Title\n\n{PASSAGE}\n\n1. **first** one\n2) second\n\n{code}")
    assert (found["headings"], found["lists"], found["code"], found["bold"]) == (1 / 8, 2 / 8, 4 / 8, 1 / 8)
    without, fewer = measures(f"# Title\n\n{PASSAGE}\n\n1. **first** one\n2) second")
    assert words == fewer and {n: found[n] for n in PROSE} == {n: without[n] for n in PROSE}
    only, none = measures(code)
    assert none == 0 and only == {"lists": 0, "headings": 0, "code": 1, "bold": 0}
    assert measures("~~~\n```\nopen to the end")[0]["code"] == 1
    assert measures("````\n```\ninside\n```\nstill\n````\nThe river runs.") == measures(
        "~~~\nx\nx\nx\nx\n~~~\nThe river runs."
    )
    within, words = measures(f"```x = [1]```\n\n{PASSAGE}")  # closed on its own line: what follows is prose
    assert within["code"] == 0 and words == measures(PASSAGE)[1] + 1


def test_a_mark_does_not_cut_a_word() -> None:
    assert measures("un été à l'école") == measures(normalize("NFD", "un été à l'école"))
    assert measures("यह एक लंबा वाक्य है जिसमें बहुत सारे शब्द हैं")[1] == 10


HOSTILE = [
    "", " ", "\n", "word", "。", "🌉", "\x00\u202e", "." * 100_000, ".!" * 50_000, "a-" * 50_000, "a'" * 50_000,
    "**a" * 33_000, "*" * 100_000, "-" * 100_000, "```\n" * 25_000, "a" * 100_000, "ab" * 50_000, "。" * 100_000,
    ".) " * 33_000, "\n" * 100_000, "1." * 50_000, "\"'" * 50_000, "<b>" * 33_000, ". \n" * 33_000, "word " * 20_000,
    " " * 50_000 + "x\n" + "#" * 50_000, "Das ist ein Satz, und hier ist noch einer. " * 30, "这是一个句子。" * 300,
    "هذه جملة قصيرة. " * 100,
]  # fmt: skip


def test_every_text_has_finite_measures_within_their_bounds() -> None:
    for text in [*HOSTILE, "\ud800 \udfff"]:
        found, words = measures(text)
        assert set(found) == set(PROSE | LAYOUT) if words else set(found) == set(LAYOUT)
        assert all(np.isfinite(list(found.values()))), text[:20]
        shares = [v for name, v in found.items() if name not in ("mtld", "flesch") and "sentence" not in name]
        assert all(0 <= share <= 1 for share in shares), text[:20]
        assert -100 <= found.get("flesch", 0) <= 122 and 0 <= found.get("mtld", 2) <= MOST_MTLD
        assert 0 <= found.get("sentence_length", 0) <= 100 and 0 <= found.get("sentence_spread", 0) <= 50


# ---- the score ----


def test_the_rules_of_the_hook_are_kept() -> None:
    assert conforms("score", "style")


def test_no_value_is_missing_whatever_stands_in_the_pool(run: Context) -> None:
    for texts in ([*HOSTILE, PASSAGE], ["word"], [PASSAGE], ["", " "], ["```\nx\n```"] * 3):
        samples = Samples.of([Sample.of(f"q{at}", text) for at, text in enumerate(texts)])
        for options in ({}, {"centre": "densest"}, {"min_words": 1}):
            found = score(samples, run, **options)
            assert set(found.left_out) == {at for at, text in enumerate(texts) if not text.strip()}
            for name, values in found.values.items():
                assert np.isfinite(values).all(), (name, texts[0])
            assert ((found.values["style"] > 0) & (found.values["style"] <= 1)).all()
    assert "nan" not in json.dumps(run.figures).lower()


def test_where_nothing_differs_all_are_in_the_centre() -> None:
    found = apply(Style(), [{"instruction": f"q{at}", "output": PASSAGE} for at in range(30)])
    assert (found["style"] == 1).all()
    assert np.ptp(found["style.mtld"]) == 0


def test_a_text_with_few_words_is_drawn_to_the_median(run: Context) -> None:
    short = " ".join(PASSAGE.split()[:25])
    samples = Samples.of([Sample.of("q", text) for text in (PASSAGE, PLAIN, LISTED, short, "```\nx\n```")])
    found = score(samples, run).values
    raw = {name: [measures(sample.response)[0].get(name) for sample in samples] for name in PROSE}
    assert found["style.words"].tolist()[3:] == [25, 0]
    for name in PROSE:
        middle = np.median(raw[name][:3])
        assert found[f"style.{name}"][:3] == pytest.approx(raw[name][:3])
        assert found[f"style.{name}"][3] == pytest.approx((raw[name][3] + middle) / 2)
        assert found[f"style.{name}"][4] == pytest.approx(middle)
    assert found["style.code"][4] == 1  # lines can be counted in a text of any length
    assert Style(min_words=9).gives()[0].at_least == {"style.words": 9}


def test_what_is_near_the_direct_answers_scores_higher(run: Context) -> None:
    rows = [row for at in range(12) for row in family(f"q{at}", f"{PLAIN} {at}", f"{LISTED} {at}!", f"{LISTED} {at}.")]
    rows += [Sample.of("other", f"{PLAIN} Really?"), Sample.of("another", f"{LISTED} Indeed.")]
    found = score(Samples.of(rows), run).values["style"]
    assert run.figures["close_to"] == "12 direct answers"
    human, referenced, direct = found[0:36:3], found[1:36:3], found[2:36:3]
    assert min(direct.min(), referenced.min(), found[37]) > max(human.max(), found[36])


def test_the_densest_cluster_is_where_rows_are_alike() -> None:
    drawn = np.random.default_rng(0)
    loose, tight = drawn.normal(0, 2, (700, 6)), drawn.normal(1.5, 0.05, (300, 6))
    points = drawn.permutation(np.concatenate([loose, tight]))
    assert np.abs(densest(points) - 1.5).max() < 0.05
    holed = points.copy()
    holed[::7, 2] = np.nan
    assert np.abs(densest(holed) - 1.5).max() < 0.1
    assert np.isnan(densest(points[:0])).all() and densest(points[:1]) == pytest.approx(points[0])


def test_a_file_of_examples_is_the_centre(tmp_path: Path, run: Context) -> None:
    file = tmp_path / "liked.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": f"q{at}", "output": LISTED}) for at in range(3)))
    samples = Samples.of([Sample.of("q", f"{text} {at}.") for at in range(9) for text in (PASSAGE, PLAIN, LISTED)])
    found = score(samples, run, like=file).values["style"]
    assert found[2::3].min() > max(found[0::3].max(), found[1::3].max())
    assert run.figures["close_to"] == "3 examples"
    file.write_text(json.dumps({"instruction": "q", "output": " "}))
    with pytest.raises(UserError, match="holds no response"):
        score(samples, run, like=file)


def test_options_that_cannot_be_are_refused(run: Context) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Style(centre="densest", like=Path("x"))
    with pytest.raises(ValueError, match="at least 1"):
        Style(min_words=0)
    with pytest.raises(UserError, match="put `reflect direct` before it"):
        score(Samples.of([Sample.of("q", PASSAGE)]), run, centre="direct")
    with pytest.raises(UserError, match="needs the column 'mine'"):
        apply(Style(surprisal="mine"), [Sample.of("q", PASSAGE)])


def test_surprisal_counts_where_it_is_there(run: Context) -> None:
    rows = [Sample.of(f"q{at}", f"{PASSAGE} {at}.") for at in range(20)]
    losses = np.full(20, 2.0) + np.arange(20) / 100
    losses[3], losses[4] = 9.0, np.nan
    found = apply(Style(), rows, ifd__loss_conditioned=losses)["style"]
    assert found.argmin() == 3 and np.isfinite(found).all()
    assert np.isfinite(apply(Style(surprisal="mine"), rows, mine=losses)["style"]).all()
    score(Samples.of(rows), run)
    assert any(told.startswith("form alone: there is no column ifd.loss_conditioned") for told in run.figures["said"])
    run.figures["said"].clear()
    score(Samples.of(rows, ifd__loss_conditioned=losses), run)
    assert "1 of 20 rows have no ifd.loss_conditioned" in "".join(run.figures["said"])
    assert run.figures["spread"]["surprisal"]["mean"] == pytest.approx(np.nanmean(losses), abs=1e-6)


def test_other_languages_are_said_aloud(run: Context) -> None:
    german = "Das Wasser des Flusses steht hoch, und die ganze Stadt blickt auf die Brücke. " * 3
    score(Samples.of([Sample.of(f"q{at}", german if at % 2 else PASSAGE) for at in range(10)]), run)
    assert any("50% of the responses are not English (de 50%)" in told for told in run.figures["said"])


def test_scales_are_robust() -> None:
    values = np.array([1.0, 2, 3, 4, 1e9, np.nan])
    middle, width = scale(values)
    assert (middle, width) == (3, pytest.approx(1.4826))
    assert standardised(values, middle, width)[4] == 5 and np.isnan(standardised(values, middle, width)[5])
    assert scale(np.array([0.0, 0, 0, 0, 1]))[1] == pytest.approx(0.4)  # most are one: the standard deviation
    assert scale(np.full(5, 0.1))[1] == 0 and scale(np.array([]))[1] == 0
    assert np.isnan(standardised(np.ones(2), 1.0, 0.0)).all()
    apart = distance(np.array([[3.0, 4.0], [np.nan, 4.0], [np.nan, np.nan]]), np.zeros(2))
    assert apart == pytest.approx([np.sqrt(12.5), 4, 0])
    columns = {"mtld": np.array([10.0, np.nan])}
    shrink(columns, np.array([5, 0]), {"mtld": 20.0}, 20)
    assert columns["mtld"].tolist() == [17.5, 20]


# ---- what is told of the spread ----


def test_kinds_are_paired_by_instruction(run: Context) -> None:
    rows = family("a", f"{PLAIN} A.", f"{PASSAGE} A.", f"{LISTED} A.") + family("b", PLAIN, PASSAGE, LISTED)
    rows += [*family("c", "too short", PASSAGE, LISTED), Sample.of("a", f"{PASSAGE} again"), Sample.of("d", PLAIN)]
    rows.append(replace(rows[0].rewrite(response=f"{LISTED} better"), made_by="reflect response"))
    samples = Samples.of(rows)
    assert kinds.paired(rows, np.ones(len(rows), bool)) == {
        "human": [0, 9, 3, 6], "referenced": [1, 4, 7], "direct": [2, 5, 8],
    }  # fmt: skip
    score(samples, run, centre="densest")
    told = run.figures["paired_by_instruction"]
    assert list(told) == ["human", "referenced", "direct"]
    for which, at in {"human": [0, 9, 3], "referenced": [1, 4], "direct": [2, 5]}.items():
        wanted = [measures(rows[one].response)[0]["mtld"] for one in at]
        assert told[which]["mtld"] == {"mean": pytest.approx(np.mean(wanted)), "sd": pytest.approx(np.std(wanted))}
    assert "paired by instruction" in "".join(run.figures["said"])
    assert not kinds.paired(rows[:2], np.ones(2, bool))


def test_the_table_sets_groups_side_by_side() -> None:
    groups = {"human": {"mtld": {"mean": 70.25, "sd": 3.0}}, "direct": {"flesch": {"mean": 0.5, "sd": 0.125}}}
    assert kinds.table("title", groups).splitlines() == [
        "title",
        f"{'human':>26}{'direct':>20}",
        f"mtld  {'70.25 ± 3':>20}{'-':>20}",
        f"flesch{'-':>20}{'0.5 ± 0.125':>20}",
    ]


def test_the_spread_before_and_after_a_choice_can_be_compared(tmp_path: Path) -> None:
    texts = [text for at in range(8) for text in (f"{PASSAGE} {at}.", f"{PLAIN} {at}.", f"{LISTED} {at}.", "short")]
    rows = [{"instruction": f"q{at}", "output": text} for at, text in enumerate(texts)]
    data, few = tmp_path / "all.jsonl", tmp_path / "few.jsonl"
    for file, part in ((data, rows), (few, rows[1::4])):
        file.write_text("\n".join(map(json.dumps, part)))
    steps, store = ["score style", "score style --as chosen"], tmp_path / "store"
    told = [siftune.run(file, steps, out=tmp_path / file.stem, store=store) for file in (data, few)]
    every, chosen = (run.state.done[0].figures["spread"] for run in told)
    assert told[0].state.done[0].figures["measured"] == "24 of 32 responses have 50 words or more"
    assert {name: figures["sd"] >= chosen[name]["sd"] for name, figures in every.items()} == dict.fromkeys(every, True)
    # the figures of the chosen rows do not hang on which others there were
    assert chosen["mtld"]["mean"] == pytest.approx(np.mean([measures(t)[0]["mtld"] for t in texts[1::4]]), abs=1e-6)
    assert {"chosen", "chosen.mtld", "chosen.words", "style.mtld"} <= set(told[0].state.pool.columns)
    assert told[0].state.pool.columns["chosen"].about.at_least == {"chosen.words": 50}
