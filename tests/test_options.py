"""Fields as options: the same checks on the command line, in a recipe and in Python."""

from __future__ import annotations

import pickle
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from siftune import Method, UserError, hookimpl
from siftune.options import build, of


class Every(Method):
    """One field of each kind."""

    must: Annotated[str, "has no default"]
    whole: Annotated[int, "an integer"] = 1
    part: Annotated[float, "a number"] = 0.5
    flag: Annotated[bool, "a flag"] = False
    place: Annotated[Path | None, "a file"] = None
    word: Annotated[Literal["ppl", "loss"] | None, "one of two"] = None
    either: Annotated[int | Literal["auto"], "a number or auto"] = "auto"
    many: Annotated[list[str], "again and again"] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.whole < 0:
            raise ValueError("--whole must not be negative")

    @hookimpl
    def score(self, samples: Any) -> Any:
        return [0.0 for _ in samples]


def test_each_annotation_is_an_option() -> None:
    options = of(Every)
    assert {name: option.spelled for name, option in options.items()}["flag"] == "--flag"
    assert options["must"].required and options["flag"].flag and options["many"].many
    assert options["either"].kind.name == "auto|integer"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"whole": "3"}, ("whole", 3)),
        ({"whole": 3}, ("whole", 3)),
        ({"part": "1e-3"}, ("part", 0.001)),
        ({"part": 2}, ("part", 2.0)),
        ({"flag": True}, ("flag", True)),
        ({"word": "loss"}, ("word", "loss")),
        ({"either": "auto"}, ("either", "auto")),
        ({"either": "7"}, ("either", 7)),
        ({"either": 7}, ("either", 7)),
        ({"many": "a"}, ("many", ["a"])),
        ({"many": ["a", "b"]}, ("many", ["a", "b"])),
        ({"place": "x.txt"}, ("place", Path("base/x.txt"))),
    ],
)
def test_values_are_converted(given: dict[str, Any], wanted: tuple[str, Any]) -> None:
    method = build(Every, {"must": "m", **given}, "score every", Path("base"))
    assert getattr(method, wanted[0]) == wanted[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"whole": "three"}, "score every: Invalid value for '--whole': 'three' is not an integer"),
        ({"whole": 2.5}, "'--whole': 2.5 is not an integer"),
        ({"whole": True}, "'--whole': True is not an integer"),
        ({"part": "nan"}, "'nan' is not a number"),
        ({"part": "inf"}, "'inf' is not a number"),
        ({"flag": "maybe"}, "'maybe' is not true or false"),
        ({"flag": "yes"}, "'--flag': 'yes' is not true or false"),
        ({"word": "los"}, "'los' is not ppl, loss. Did you mean 'loss'?"),
        ({"either": "atuo"}, "'atuo' is not auto or an integer. Did you mean 'auto'?"),
        ({"whole": -1}, "score every: --whole must not be negative"),
        ({"hole": 1}, "score every has no option 'hole'. Did you mean 'whole'?"),
        ({"zzz": 1}, "score every has no option 'zzz'. It has --must, --whole"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Every, {"must": "m", **given}, "score every")
    assert said in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="score every needs --must: has no default"):
        build(Every, {}, "score every")


@pytest.mark.parametrize("name", ["budget", "on", "as_", "name", "replace", "score", "embed"])
def test_words_of_a_recipe_cannot_be_options(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} cannot be an option"):
        type("Taken", (Method,), {"__annotations__": {name: "int"}, name: 1})


def test_a_type_that_is_none_is_refused() -> None:
    class Wrong(Method):
        """Wrong."""

        table: Annotated[dict[str, int] | None, "a table"] = None

    Wrong.__annotations__["table"] = Annotated[dict, "a table"]
    with pytest.raises(TypeError, match="is no type for an option"):
        of(Wrong)


def test_a_method_is_hashable_distinct_and_travels_by_its_fields() -> None:
    one, two = Every(must="m", whole=2), Every(must="m", whole=2)
    assert one != two and len({one, two}) == 2
    copy = pickle.loads(pickle.dumps(one))
    assert copy.options() == one.options()
