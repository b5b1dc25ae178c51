"""Every installed method keeps the rules of its hook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from siftune import HOOKS
from siftune.loopback import teaching
from siftune.methods import found, load
from siftune.testing import conforms

# what has no default, or would take long with it
OPTIONS: dict[str, dict[str, Any]] = {
    "embed columns": {"columns": ["input.quality", "ifd"]},
    "embed file": {"column": "vectors"},
    "select top": {"by": "ifd"},
    "select where": {"condition": "ifd < 0.6"},
    "select sibling": {"by": "ifd"},
    "train lora": {"steps": 2},
    "train full": {"steps": 2},
    "train scar-ranker": {"epochs": 1},
    "evaluate lm-eval": {"limit": 2},
}
# the toy methods of these tests break rules on purpose
METHODS = [(hook, name) for hook in HOOKS for name, one in found(hook).items() if one.package != "siftune-toys"]


def least(schema: dict[str, Any]) -> Any:
    """The least that a JSON schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: least(kind) for name, kind in schema["properties"].items()}
    return {"string": "A better text.", "boolean": False, "number": 1, "integer": 1}[schema["type"]]


def answered(body: dict[str, Any]) -> tuple[str, str]:
    """The least that the schema of a request allows, or the same text."""
    form = body.get("response_format")
    return json.dumps(least(form["json_schema"]["schema"])) if form else "A better text.", "stop"


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with teaching(answered) as server:
        yield server.url


@pytest.mark.parametrize(("hook", "name"), METHODS, ids=[f"{hook}-{name}" for hook, name in METHODS])
def test_it_conforms(hook: str, name: str, teacher: str) -> None:
    given = dict(OPTIONS.get(f"{hook} {name}", {}))
    if "teacher" in load(hook, name).requires:
        given |= {"teacher": teacher, "teacher_model": "toy"}
    conforms(hook, name, **given)


def test_every_hook_has_a_method() -> None:
    assert {hook for hook, _ in METHODS} == set(HOOKS)
