"""The seven hooks are documented: an example that runs in every docstring, and the README's table."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import siftune
from siftune import HOOKS, Evaluation, Method, Sample, hookspecs
from siftune.testing import made_up, tiny_model, toy_samples

README = Path(__file__).parents[1] / "README.md"
HEAD = """
import shutil
import string
from typing import Annotated

import numpy as np

from siftune import Column, Evaluation, Fate, Method, Outcome, Selection, Trained, hookimpl, models

"""


def example(hook: str) -> str:
    """The class in a hook's docstring."""
    text = getattr(hookspecs, hook).__doc__ + "\n"
    found = re.search(r"^( *)class \w+\(Method\):\n(?:\1 .*\n| *\n)*", text, re.MULTILINE)
    assert found, f"the docstring of {hook} has no example class"
    return textwrap.dedent(found[0])


def arguments(hook: str) -> str:
    return ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)


def test_hooks_are_those_of_the_module() -> None:
    specs = [name for name, thing in vars(hookspecs).items() if hasattr(thing, "siftune_spec")]
    assert specs == list(HOOKS)
    assert all(getattr(hookspecs, hook).siftune_spec["firstresult"] for hook in HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_runs(hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"example_of_{hook}.py").write_text(HEAD + example(hook), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"example_of_{hook}")
    kind = next(
        thing for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, Method) and thing.__module__ == module.__name__
    )  # fmt: skip
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
    options = {"model": str(tiny_model(tmp_path / "tiny"))} if "model" in {f.name for f in kind.fields()} else {}
    columns = {name: made_up(name, 3) for name in kind(**options).needs()}
    samples = None if hook == "evaluate" else toy_samples()
    given: dict[str, Any] = {"folder": tmp_path / "model"} if hook == "train" else {}
    answer = siftune.apply(kind(**options), samples, **given, **columns)
    match hook:
        case "embed":
            assert answer.shape == (3, 26) and answer.dtype == np.float32
        case "cluster":
            labels, centres, distances = answer
            assert labels.shape == distances.shape == (3,) and centres.ndim == 2
        case "score":
            assert [values.tolist() for values in answer.values()] == [[1.0, 0.0, 0.0]]
        case "reflect":
            assert all(isinstance(one, Sample) and one.response.isupper() for one in answer)
            assert {one.parent for one in answer} == {one.id for one in toy_samples()}
        case "select":
            assert answer == [1, 0, 2]
        case "train":
            assert (tmp_path / "model" / "config.json").is_file() and answer.base == options["model"]
        case "evaluate":
            assert isinstance(answer, Evaluation) and answer.metrics["parameters"] > 1000


@pytest.mark.parametrize("hook", HOOKS)
def test_the_readme_names_the_arguments_of_a_hook(hook: str) -> None:
    row = re.search(rf"^\|\s*`{hook}`\s*\|\s*`([^`|]*)`\s*\|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert row, f"README.md has no row '| `{hook}` | `{arguments(hook)}` | ...'"
    assert row[1] == arguments(hook)
