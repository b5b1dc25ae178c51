"""vLLM's server as a child, against a stand-in that takes the same command line; nothing outlives the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from siftune import UserError, vllm_server
from siftune.teacher import Chat, Request, served
from siftune.vllm_server import Server

# Writes down how it was started, and starts a worker that does not listen to SIGTERM, as vLLM's may not.
STAND_IN = """
    import argparse, json, os, subprocess, sys, time
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    parser = argparse.ArgumentParser()
    for name in ("model", "served-model-name", "host", "load-format", "max-model-len",
                 "structured-outputs-config", "fault"):
        parser.add_argument("--" + name)
    parser.add_argument("--port", type=int)
    told = parser.parse_args()

    deaf = ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
            "time.sleep(600)")
    worker = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    worker.stdout.readline()
    with open(os.environ["STAND_IN_NOTES"], "w") as notes:
        json.dump({"told": vars(told), "pids": [os.getpid(), worker.pid], "python": sys.executable,
                   "env": {k: v for k, v in os.environ.items() if "VLLM" in k or "API_KEY" in k}}, notes)
    if told.fault == "dies":
        print("loading weights")
        sys.exit("CUDA out of memory, key " + os.environ["VLLM_API_KEY"])
    if told.fault == "hangs":
        print("still loading", flush=True)
        time.sleep(600)

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body, status=200):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())
        def do_GET(self):
            self.reply({}, 200 if self.path == "/health" else 404)
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
                return self.reply({"error": "Unauthorized"}, 401)
            if asked["model"] != told.served_model_name:
                return self.reply({"error": "no such model"}, 404)
            if told.fault == "breaks":
                print("the engine broke", flush=True)
                os._exit(1)
            message = {"role": "assistant", "content": "hello"}
            self.reply({"choices": [{"message": message, "finish_reason": "stop"}]})
        def log_message(self, *_):
            pass

    ThreadingHTTPServer((told.host, told.port), Handler).serve_forever()
"""


class StandIn:
    """Where the stand-in lies, and what it noted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.notes = folder, folder / "model", folder / "notes.json"
        package = folder / "site" / "vllm" / "entrypoints" / "openai"
        package.mkdir(parents=True)
        for place in (package, package.parent, package.parent.parent):
            (place / "__init__.py").touch()
        (package / "api_server.py").write_text(textwrap.dedent(STAND_IN))
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")

    def noted(self) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads(self.notes.read_text())
        return noted

    def alive(self) -> list[int]:
        return [pid for pid in self.noted()["pids"] if _runs(pid)]


def _runs(pid: int) -> bool:
    """Whether a process does anything yet; one that is only waiting to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks for processes in /proc")
    one = StandIn(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    monkeypatch.setenv("STAND_IN_NOTES", str(one.notes))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    for name in ("SIFTUNE_VLLM_PYTHON", "SIFTUNE_VLLM_ARGS", "SIFTUNE_API_KEY", "VLLM_CPU_KVCACHE_SPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(vllm_server, "POLL", 0.02)
    return one


def test_the_server_is_started_asked_and_stopped_with_all_it_started(stand_in: StandIn) -> None:
    notes: list[str] = []
    chat = Chat(f"vllm:{stand_in.model}", say=notes.append)
    assert not stand_in.notes.exists()  # not before it is needed
    with closing(chat):
        answers = list(chat.ask(Request(i, [{"role": "user", "content": "hi"}], attempt=i) for i in range(5)))
        assert [answer.text for answer in answers] == ["hello"] * 5, answers
        told = stand_in.noted()["told"]
        assert told["model"] == told["served_model_name"] == str(stand_in.model)
        assert told["host"] == "127.0.0.1" and told["load_format"] == "safetensors"
        environment = stand_in.noted()["env"]
        assert environment["VLLM_NO_USAGE_STATS"] == "1" and environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
        assert "OPENAI_API_KEY" not in environment and len(environment["VLLM_API_KEY"]) == 32
        assert len(stand_in.alive()) == 2
        folder = chat._server._folder  # type: ignore[union-attr]
        assert os.getpgid(stand_in.noted()["pids"][1]) != os.getpgid(0)
    assert eventually(lambda: not stand_in.alive())
    assert not folder.exists()
    assert len(notes) == 1 and "starting vLLM" in notes[0]


def test_answers_that_are_kept_start_no_server_until_the_model_changes(stand_in: StandIn) -> None:
    memory = stand_in.folder / "answers.sqlite"
    request = Request(0, [{"role": "user", "content": "hi"}])
    for cached in (False, True):
        stand_in.notes.unlink(missing_ok=True)
        with closing(Chat(f"vllm:{stand_in.model}", memory=memory)) as chat:
            (answer,) = chat.ask([request])
        assert answer.text == "hello" and answer.cached == cached and stand_in.notes.exists() != cached
    (stand_in.model / "config.json").write_text('{"trained": "further"}')
    with closing(Chat(f"vllm:{stand_in.model}", memory=memory)) as chat:
        assert [answer.cached for answer in chat.ask([request])] == [False]


def test_a_server_that_dies_is_quoted(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIFTUNE_VLLM_ARGS", "--fault dies")
    with pytest.raises(UserError, match=r"vLLM ended. Its log ends:\nloading weights\nCUDA out of memory") as caught:
        Server(stand_in.model, "toy")
    assert stand_in.noted()["env"]["VLLM_API_KEY"] not in str(caught.value)
    assert eventually(lambda: not stand_in.alive())


def test_a_server_that_is_never_healthy_is_not_waited_for_for_ever(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIFTUNE_VLLM_ARGS", "--fault hangs")
    monkeypatch.setattr(vllm_server, "GRACE", 0.2)

    wait = Server._wait

    def once_up(self: Server, patience: float) -> None:  # so that a busy machine changes nothing
        assert eventually(lambda: "still loading" in self._last_lines(), 30)
        wait(self, patience)

    monkeypatch.setattr(Server, "_wait", once_up)
    with pytest.raises(UserError, match=r"not healthy after 0.3 s. Its log ends:\nstill loading"):
        Server(stand_in.model, "toy", patience=0.3)
    assert eventually(lambda: not stand_in.alive())


def test_a_server_that_breaks_while_it_is_asked_is_quoted(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIFTUNE_VLLM_ARGS", "--fault breaks")
    with closing(Chat(f"vllm:{stand_in.model}")) as chat:
        with pytest.raises(UserError, match=r"vLLM ended. Its log ends:\nthe engine broke"):
            list(chat.ask([Request(0, [{"role": "user", "content": "hi"}])]))
    assert eventually(lambda: not stand_in.alive())


RUN = """
    import sys, time
    from pathlib import Path
    from siftune.vllm_server import Server
    server = Server(Path(sys.argv[1]), "toy")
    print("up", flush=True)
    time.sleep(600 if sys.argv[2] == "waits" else 0)
"""


@pytest.mark.parametrize("how", ["ends", signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_run_however_it_ends(how: str | signal.Signals, stand_in: StandIn) -> None:
    what = "ends" if how == "ends" else "waits"
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(stand_in.model), what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None and run.stdout.readline() == b"up\n"
        assert how == "ends" or len(stand_in.alive()) == 2
        if isinstance(how, signal.Signals):
            run.send_signal(how)
        try:
            run.wait(20)
        finally:
            run.kill()  # else leaving waits for it without an end
    assert eventually(lambda: not stand_in.alive())


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_survives_where_the_guard_is_killed(asked: bool, stand_in: StandIn) -> None:
    server = Server(stand_in.model, "toy")
    os.kill(server._guard.pid, signal.SIGKILL)
    if asked:
        assert eventually(lambda: server._guard.poll() is not None)
        with pytest.raises(UserError, match="vLLM ended"):
            server.check()
    server.stop()
    assert eventually(lambda: not stand_in.alive())


def test_nothing_survives_where_the_guard_hangs(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(stand_in.model, "toy")
    os.kill(server._guard.pid, signal.SIGSTOP)
    monkeypatch.setattr(vllm_server, "GRACE", -4.9)  # with the five seconds on top, a short wait for it
    server.stop()
    assert eventually(lambda: not stand_in.alive())
    assert not server._folder.exists()


def test_a_python_without_vllm_is_named(stand_in: StandIn) -> None:
    bare = stand_in.folder / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"vLLM is not installed for .*bare-python.*SIFTUNE_VLLM_PYTHON"):
        Server(stand_in.model, "toy", python=str(bare))


def test_a_python_that_is_not_there_is_named(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIFTUNE_VLLM_PYTHON", "/no/such/python")
    with pytest.raises(UserError, match="there is no python '/no/such/python' to start vLLM with"):
        Server(stand_in.model, "toy")


def test_an_environment_of_its_own_is_used(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    own = stand_in.folder / "python-of-its-own"
    own.symlink_to(sys.executable)
    with closing(Chat(f"vllm:{stand_in.model}@{own}")) as chat:
        (answer,) = chat.ask([Request(0, [{"role": "user", "content": "hi"}])])
    assert answer.text == "hello" and stand_in.noted()["python"] == str(own)


def test_what_follows_the_at_sign_is_a_python_or_a_revision(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    assert served("vllm:org/name") == ("org/name", None)
    assert served("vllm:org/name@main") == ("org/name@main", None)
    assert served(f"vllm:org/name@{python}") == ("org/name", str(python))
    assert served(f"vllm:org/name@main@{python}") == ("org/name@main", str(python))
    assert served("https://host/v1") == ("", None)
