"""What no array can be made of, and a model that lies elsewhere, are the plugin's fault and said as such."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import siftune
from siftune import Column, Method, Selection, Trained, hookimpl
from siftune.calling import Fault

from .conftest import row


class Ragged(Method):
    """Vectors of different lengths."""

    @hookimpl
    def embed(self, samples: Any) -> Any:
        return [[0.0] * (at + 1) for at in range(len(samples))]


class Heavy(Method):
    """Weights that are words."""

    @hookimpl
    def select(self, samples: Any) -> Any:
        return Selection([0], weights=["heavy"])


class Stream(Method):
    """Positions that can be read once."""

    @hookimpl
    def select(self, samples: Any) -> Any:
        return (at for at in range(len(samples)))


class Elsewhere(Method):
    """A model that is not in the folder of the step."""

    place: Annotated[Path, "where"]

    @hookimpl
    def train(self, samples: Any) -> Any:
        (self.place / "config.json").write_text("{}")
        return Trained(self.place, base="nothing")


class Wordy(Method):
    """Texts where numbers are promised."""

    def gives(self) -> list[Column]:
        return [Column("wordy", better="higher")]

    @hookimpl
    def score(self, samples: Any) -> Any:
        return ["seven" for _ in samples]


class Singular(Method):
    """Takes an argument that no hook has."""

    @hookimpl
    def score(self, sample: Any) -> Any:
        return [0.0]


def test_texts_where_numbers_are_promised_are_a_fault() -> None:
    with pytest.raises(Fault, match=r"wordy .*returned 'seven' for 'wordy', which gives\(\) promises as a number"):
        siftune.apply(Wordy(), [row(1), row(2)])


def test_an_argument_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(Fault, match=r"score singular .*: Argument.*'sample'.*; it may take samples, run"):
        siftune.apply(Singular(), [row(1)])


@pytest.mark.parametrize("kind", [Ragged, Heavy, Stream])
def test_what_is_no_array_is_a_fault_of_its_step(kind: type[Method]) -> None:
    with pytest.raises(Fault, match=rf"{kind.__name__.lower()} .*returned "):
        siftune.apply(kind(), [row(1), row(2)])


def test_a_model_that_lies_elsewhere_is_a_fault_of_its_step(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(Fault, match=r"train elsewhere .*belongs into run.folder"):
        siftune.apply(Elsewhere(place=tmp_path / "elsewhere"), [row(1)], folder=tmp_path / "model")
