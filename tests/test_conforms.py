"""Every installed method keeps the rules of its hook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from siftune import HOOKS
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


class Teacher(BaseHTTPRequestHandler):
    """Answers every chat with the least that its JSON schema allows, or with the same text."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        form = asked.get("response_format")
        text = json.dumps(least(form["json_schema"]["schema"])) if form else "A better text."
        message = {"role": "assistant", "content": text}
        answer = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Teacher) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("hook", "name"), METHODS, ids=[f"{hook}-{name}" for hook, name in METHODS])
def test_it_conforms(hook: str, name: str, teacher: str) -> None:
    given = dict(OPTIONS.get(f"{hook} {name}", {}))
    if "teacher" in load(hook, name).requires:
        given |= {"teacher": teacher, "teacher_model": "toy"}
    conforms(hook, name, **given)


def test_every_hook_has_a_method() -> None:
    assert {hook for hook, _ in METHODS} == set(HOOKS)
