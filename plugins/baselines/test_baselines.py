"""The simple scorers and selectors on toy rows: order, range, reasons, and conditions that lose no row."""

import numpy as np
import pytest
from siftune import Column, Pool, Sample, Samples, UserError
from siftune.samples import Held
from siftune.testing import conforms
from siftune_baselines.length import Length
from siftune_baselines.top import Top
from siftune_baselines.unscored import All, Longest, Random
from siftune_baselines.where import Where

NONE = float("nan")
WORDS = ["one", "three", "a longer one", "", "middling", "eleven", "🙂"]


def samples_with(about: dict[str, Column] | None = None, **columns) -> Samples:
    """Rows with distinct responses, and columns with what their scorer promises of them."""
    pool = Pool.of([Sample.of(f"say {word}", word) for word in WORDS])
    for name, values in columns.items():
        full = name.replace("__", ".")
        array = np.array(values, np.float64 if all(isinstance(v, float | int) for v in values) else object)
        pool.attach(Held((about or {}).get(full, Column(full)), array))
    return Samples(pool, np.arange(len(pool)))


IFD = Column("ifd", better="higher", below=1, at_least={"ifd.tokens": 10})
VALUES = [0.5, 0.9, 1.2, NONE, 0.9, 0.7, 0.8]
TOKENS = [20.0, 30.0, 40.0, 50.0, 10.0, 9.0, 60.0]


@pytest.fixture
def scored() -> Samples:
    return samples_with({"ifd": IFD}, ifd=VALUES, ifd__tokens=TOKENS, ppl=[float(i) for i in range(7)])


def test_length_counts_characters():
    assert Length().score(samples_with()).tolist() == [3, 5, 12, 0, 8, 6, 1]
    assert [column.name for column in Length().gives()] == ["length"]


def test_longest_is_top_by_length():
    samples = samples_with({"length": Length().gives()[0]}, length=[len(word) for word in WORDS])
    assert Longest().select(samples).tolist() == Top(by="length").select(samples).positions.tolist()
    assert Longest().select(samples).tolist() == [2, 4, 5, 1, 0, 6, 3]


def test_all_keeps_the_order():
    assert All().select(samples_with()).tolist() == list(range(7))


def test_random_hangs_on_seed_and_content_alone():
    rows = [Sample.of(f"question {i}", f"answer {i}") for i in range(200)]
    few, many = Pool.of(rows[:150]).view(), Pool.of(rows[::-1]).view()
    drawn = [few[at].id for at in Random(seed=3).select(few)]
    among = [many[at].id for at in Random(seed=3).select(many)]
    assert sorted(drawn) == sorted(few.ids)
    assert [id for id in among if id in set(few.ids)] == drawn
    assert drawn != [few[at].id for at in Random(seed=4).select(few)]
    # no part of the id order is favoured
    assert abs(np.mean(Random(seed=0).select(many)[:100]) - 100) < 20


def test_top_obeys_the_scorers_range(scored):
    chosen = Top(by="ifd").select(scored)
    assert chosen.positions.tolist() == [1, 4, 6, 0]  # 1 and 4 tie, and stay in order
    assert chosen.left_out == {
        2: "ifd 1.2 is not below 1", 3: "no ifd", 5: "ifd.tokens 9 is not at least 10",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"lowest": True}, [0, 6, 1, 4]),
        ({"any": True}, [2, 1, 4, 6, 5, 0]),
        ({"any": True, "lowest": True}, [0, 5, 6, 1, 4, 2]),
        ({"below": 1.3}, [2, 1, 4, 6, 0]),
        ({"above": 0.6}, [1, 4, 6]),
        ({"any": True, "above": 1}, [2]),
        ({"min_tokens": 0}, [1, 4, 6, 5, 0]),
        ({"min_tokens": 31}, [6]),
        ({"any": True, "min_tokens": 31}, [2, 6]),
    ],
)
def test_top_can_be_told_otherwise(scored, options, kept):
    chosen = Top(by="ifd", **options).select(scored)
    assert chosen.positions.tolist() == kept
    assert sorted([*kept, *chosen.left_out]) == list(range(7))


def test_top_takes_the_better_end():
    low = samples_with({"loss": Column("loss", better="lower")}, loss=[3, 1, 2, 7, 6, 5, 4])
    assert Top(by="loss").select(low).positions.tolist() == [1, 2, 0, 6, 5, 4, 3]
    assert Top(by="loss", highest=True).select(low).positions.tolist() == [3, 4, 5, 6, 0, 2, 1]


def test_top_names_what_it_reads():
    assert Top(by="ifd").needs() == ["ifd", "ifd.tokens?"]
    assert Top(by="ifd.loss", min_tokens=5).needs() == ["ifd.loss", "ifd.tokens"]
    assert Top(by="ifd.tokens").needs() == ["ifd.tokens"]
    assert Top(by="input.score").needs() == ["input.score"]


def test_top_refuses_what_has_no_order(scored):
    with pytest.raises(ValueError, match="exclude"):
        Top(by="ifd", lowest=True, highest=True)
    with pytest.raises(UserError, match="only numbers have an order"):
        Top(by="name").select(samples_with(name=list("abcdefg")))
    with pytest.raises(UserError, match="drop --min-tokens"):
        Top(by="ppl", min_tokens=3).select(scored)


@pytest.fixture
def mixed() -> Samples:
    return samples_with(
        ifd=VALUES, ifd__tokens=TOKENS, flag=[1, 0, 1, 0, 1, 0, NONE], **{"r-ifd": [1, 2, 3, 4, 5, 6, NONE]},
        input__source=["dolly", "oasst", "dolly", None, "it's", 'say "x"', "dolly"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("ifd < 1", [0, 1, 4, 5, 6]),
        ("not ifd < 1", [2]),
        ("ifd >= 0.9 and ifd.tokens > 10", [1, 2]),
        ('ifd == 0.9 or ifd <> ifd or input.source = "oasst"', [1, 4]),
        ("`r-ifd` between 2 and 4", [1, 2, 3]),
        ("`r-ifd` * 2 - 1 >= ifd.tokens / 2", [4, 5]),
        ("input.source in ('dolly', \"oasst\")", [0, 1, 2, 6]),
        ("input.source not in ('dolly', 'oasst')", [4, 5]),
        ("input.source is null", [3]),
        ("input.source is not null and ifd is not null", [0, 1, 2, 4, 5, 6]),
        ("input.source = 'it''s' or input.source = 'say \"x\"'", [4, 5]),
        ("input.source like '%o%l%'", [0, 2, 6]),
        ("flag", [0, 2, 4]),
        ("not flag", [1, 3, 5]),
        ("flag = true and not (ifd.tokens < 40)", [2]),
        ("flag is true", [0, 2, 4]),
        ("ifd = null", []),
        ("-ifd < -0.85", [1, 2, 4]),
    ],
)
def test_where_keeps_the_rows_of_which_it_is_true(mixed, condition, kept):
    chosen = Where(condition=condition).select(mixed)
    assert chosen.positions.tolist() == kept
    assert sorted([*kept, *chosen.left_out]) == list(range(7))
    assert set(chosen.left_out.values()) <= {f"not true: {condition}"}


def test_where_names_its_columns():
    assert Where(condition="ifd < 1 and (input.source = 'x' or `r-ifd`.tokens in (1, 2))").needs() == [
        "ifd", "input.source", "r-ifd.tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "condition",
    [
        "", "ifd <", "1 = 1", "ifd < 1; drop table x", "abs(ifd) < 1", "ifd < (select 1)", "exists(select 1)",
        "ifd in (select 1)", "ifd in x", "case when ifd then 1 end", "__import__('os').system('true')", 
        "x.* = 1",         "load_file('/etc/passwd') = ifd", "@@version = ifd", "lambda: 0", "ifd[0] = 1",
    ],
)  # fmt: skip
def test_where_computes_nothing_but_conditions(condition):
    with pytest.raises(ValueError, match=r"condition|column"):
        Where(condition=condition)


@pytest.mark.parametrize("condition", ["input.source < 3", "ifd = 'x'", "ifd like '%x%'", "input.source"])
def test_where_refuses_to_compare_text_with_numbers(mixed, condition):
    with pytest.raises(UserError, match="compares what cannot be"):
        Where(condition=condition).select(mixed)


@pytest.mark.parametrize(
    ("hook", "name", "options"),
    [
        ("score", "length", {}),
        ("select", "top", {"by": "ifd"}),
        ("select", "where", {"condition": "ifd < 1"}),
        ("select", "random", {}),
        ("select", "longest", {}),
        ("select", "all", {}),
    ],
)
def test_they_keep_the_rules_of_their_hooks(hook, name, options):
    assert conforms(hook, name, **options)
