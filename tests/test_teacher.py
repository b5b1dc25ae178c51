"""The chat client against a real server on the loopback that behaves, and misbehaves, as such servers do."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from siftune import UserError, endpoint, teacher
from siftune.answers import Answers, Kept
from siftune.loopback import listening
from siftune.teacher import Chat, Request

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
    "additionalProperties": False,
}
Reply = tuple[int, dict[str, str], Any]


def said(text: str, reason: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return 200, {}, {"choices": [choice], "usage": {"completion_tokens": len(text.split())}}


def refused(status: int, message: str, **headers: str) -> Reply:
    return status, headers, {"error": {"message": message, "type": "invalid_request_error"}}


class Server(ThreadingHTTPServer):
    """Answers with what `reply` gives for the number of the request and its body."""

    daemon_threads = True

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.together = self.most = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """A client that is gone, which some tests want."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers.items()))
            self.server.times.append(time.monotonic())
            self.server.together += 1
            self.server.most = max(self.server.most, self.server.together)
        try:
            if self.path != "/v1/chat/completions":
                self.answer(404, {}, "<html><b>Not Found</b></html>")
            else:
                self.answer(*self.server.reply(number, body))
        finally:
            with self.server.lock:
                self.server.together -= 1

    def do_GET(self) -> None:
        self.answer(200, {}, {"data": [{"id": "toy"}]})

    def answer(self, status: int, headers: dict[str, str], body: Any) -> None:
        bits = body if isinstance(body, Iterator) else [_bytes(body)]
        length = {} if isinstance(body, Iterator) else {"Content-Length": str(len(bits[0]))}
        try:
            self.send_response(status)
            for name, value in {**length, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for bit in bits:
                self.wfile.write(bit)
        except OSError:  # the client is gone, which some tests want
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def _bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


@contextmanager
def serving(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    with listening(server := Server(reply)):
        yield server


def requests(count: int, **how: Any) -> list[Request]:
    return [Request(i, [{"role": "user", "content": f"say {i}"}], **how) for i in range(count)]


def echo(_: int, body: dict[str, Any]) -> Reply:
    return said(body["messages"][-1]["content"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "BACKOFF", 0.01)
    for name in ("SIFTUNE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_many_requests_are_answered_together_and_come_back_with_their_keys() -> None:
    def slow(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.1 if number else 0)
        return echo(number, body)

    with serving(slow) as server, closing(Chat(server.url, "toy", concurrency=8)) as chat:
        answers = {answer.key: answer for answer in chat.ask(requests(33))}
        assert {key: answer.text for key, answer in answers.items()} == {i: f"say {i}" for i in range(33)}
        assert answers[3].finish_reason == "stop" and answers[3].tokens == 2 and not answers[3].cached
        assert server.most == 8
        assert server.bodies[0]["model"] == "toy" and server.bodies[0]["temperature"] == 0


def test_answers_come_as_they_are_ready_and_requests_are_pulled_as_they_can_be_sent() -> None:
    pulled = []

    def source() -> Iterator[Request]:
        for request in requests(1000):
            pulled.append(request.key)
            yield request

    release = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "say 1":
            release.wait(10)
        return echo(number, body)

    with serving(reply) as server, closing(Chat(server.url, "toy", concurrency=2)) as chat:
        asking = chat.ask(source())
        assert next(asking).key == 0 and pulled == [0]  # the first goes alone
        assert [next(asking).key for _ in range(5)] == [2, 3, 4, 5, 6]
        release.set()
        for taken, answer in enumerate(asking, 7):
            assert len(pulled) <= taken + 4  # two that are sent, and two more so that nobody idles
            if answer.key == 1:
                break
        asking.close()
        assert 1 not in [answer.key for answer in asking] and answer.key == 1


def test_a_busy_server_is_left_in_peace_for_as_long_as_it_says() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return refused(429, "slow down", **{"Retry-After": "0.6"}) if number == 1 else echo(number, body)

    with serving(reply) as server, closing(Chat(server.url, "toy", concurrency=1)) as chat:
        answers = list(chat.ask(requests(3)))
        assert not any(answer.error for answer in answers)
        assert server.times[2] - server.times[1] >= 0.6


def test_retry_after_may_be_a_date() -> None:
    from siftune.endpoint import _retry_after

    assert 28 < _retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) <= 31
    assert _retry_after({"retry-after": "soon"}) == 0 == _retry_after({})


def test_a_server_that_is_only_busy_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "TRIES", 2)
    turned_away = 0

    def reply(number: int, body: dict[str, Any]) -> Reply:
        nonlocal turned_away
        if body["messages"][-1]["content"] == "say 1" and turned_away < 5:
            # the one other worker sends its second when it has its first answer
            until = time.monotonic() + 30
            while len(server.bodies) < number + 3 and time.monotonic() < until:
                time.sleep(0.001)
            turned_away += 1
            return refused(429, "later")
        return echo(number, body)

    def source() -> Iterator[Request]:
        """Requests for as long as the server waits for others than the one that it turns away."""
        for number in itertools.takewhile(lambda _: turned_away < 5, itertools.count()):
            yield Request(number, [{"role": "user", "content": f"say {number}"}])

    with serving(reply) as server, closing(Chat(server.url, "toy", concurrency=2)) as chat:
        assert not any(answer.error for answer in chat.ask(source()))
        assert turned_away == 5


@pytest.mark.parametrize(
    "trouble",
    [
        refused(500, "oops"),
        (503, {}, "<html>unavailable</html>"),
        (200, {}, "{not json"),
        (200, {}, "[" * 200_000),
        (200, {}, {"error": {"message": "upstream timed out"}}),
        (200, {}, {"choices": []}),
        said("half of it", "error"),
        said("half of it", "abort"),
        (200, {"Content-Encoding": "gzip"}, "not packed at all"),
        (200, {"Content-Length": "1000", "Connection": "close"}, said("cut off")[2]),
        (500, {"Content-Length": "1000", "Connection": "close"}, "cut off"),
    ],
    ids=lambda trouble: str(trouble)[:40],
)
def test_trouble_on_the_way_is_tried_again(trouble: Reply, tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return trouble if number == 1 else echo(number, body)

    with serving(reply) as server:
        with closing(Chat(server.url, "toy", tmp_path / "answers.sqlite", concurrency=1)) as chat:
            assert [answer.text for answer in chat.ask(requests(3))] == ["say 0", "say 1", "say 2"]
        assert len(server.bodies) == 4
        with closing(Chat(server.url, "toy", tmp_path / "answers.sqlite")) as chat:
            assert [answer.text for answer in chat.ask(requests(3))] == ["say 0", "say 1", "say 2"]


def test_an_answer_that_is_packed_is_unpacked() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return 200, {"Content-Encoding": "gzip"}, gzip.compress(_bytes(echo(number, body)[2]))

    with serving(reply) as server, closing(Chat(server.url, "toy")) as chat:
        assert [answer.text for answer in chat.ask(requests(1))] == ["say 0"]


def test_a_server_that_sends_blanks_for_ever_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.3)
    monkeypatch.setattr(teacher, "TRIES", 1)

    def blanks() -> Iterator[bytes]:
        while True:  # until the client is gone
            time.sleep(0.02)
            yield b" "

    with serving(lambda *_: (200, {"Content-Length": "1000000"}, blanks())) as server:
        with closing(Chat(server.url, "toy")) as chat:
            (answer,) = chat.ask(requests(1))
    assert answer.error == "no answer in 1 tries: the reply had no end after 0.3 s"


@pytest.mark.parametrize("usage", [None, [], {}, {"completion_tokens": "many"}, {"completion_tokens": None}])
def test_an_answer_counts_though_its_tokens_cannot_be_counted(usage: Any) -> None:
    with serving(lambda *_: (200, {}, said("yes")[2] | {"usage": usage})) as server:
        with closing(Chat(server.url, "toy")) as chat:
            (answer,) = chat.ask(requests(1))
        assert answer.text == "yes" and answer.tokens == 0 and len(server.bodies) == 1


def test_equal_requests_are_sent_once_and_answered_alike() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "bad":
            return refused(400, "too long")
        return said(f"answer {number}")

    same = {"first": 1, "bad": 3, "same": 9}
    asked = [Request((word, i), [{"role": "user", "content": word}]) for word, n in same.items() for i in range(n)]
    with serving(reply) as server, closing(Chat(server.url, "toy")) as chat:
        answers = {answer.key: answer for answer in chat.ask(asked)}
        assert len(server.bodies) == 3 and set(answers) == {request.key for request in asked}
    assert {answers["bad", i].error for i in range(3)} == {"HTTP 400: too long"}
    assert len({answers["same", i].text for i in range(9)}) == 1
    assert sum(answer.cached for answer in answers.values()) == 8


def test_an_asking_that_somebody_still_holds_ends_when_the_client_is_closed() -> None:
    go_on = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> Reply:
        if number > 1:
            go_on.wait(10)
        return echo(number, body)

    with serving(reply) as server:
        chat = Chat(server.url, "toy", concurrency=2)
        asking = chat.ask(requests(50))
        next(asking), next(asking)
        until = time.monotonic() + 10
        while len(server.bodies) < 4 and time.monotonic() < until:  # two under way, and one more waits
            time.sleep(0.01)
        chat.close()
        go_on.set()
        with pytest.raises(RuntimeError, match="closed before all was asked"):
            next(asking)
        for thread in threading.enumerate():
            if thread.name == "teacher":
                thread.join(10)
        assert len(server.bodies) == 4
        with pytest.raises(RuntimeError, match="closed"):
            list(chat.ask(requests(1)))


def test_a_thread_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "LOOK", 0.05)
    monkeypatch.setattr(Chat, "_work", lambda *_: None)
    with serving(echo) as server, closing(Chat(server.url, "toy")) as chat:
        with pytest.raises(RuntimeError, match="has ended before its time"):
            list(chat.ask(requests(3)))


def test_a_request_that_never_works_fails_alone_after_a_bounded_number_of_tries(tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return refused(500, "poison") if body["messages"][-1]["content"] == "say 1" else echo(number, body)

    with serving(reply) as server:
        with closing(Chat(server.url, "toy", tmp_path / "answers.sqlite")) as chat:
            answers = {answer.key: answer for answer in chat.ask(requests(3))}
        assert answers[1].error == "no answer in 6 tries: HTTP 500: poison" and not answers[1].text
        assert answers[0].text == "say 0" and answers[2].text == "say 2"
        # an error is not kept: the next run tries again
        server.reply = echo
        with closing(Chat(server.url, "toy", tmp_path / "answers.sqlite")) as chat:
            again = {answer.key: answer for answer in chat.ask(requests(3))}
        assert again[1].text == "say 1" and not again[1].cached and again[0].cached


def test_an_endpoint_that_is_gone_stops_the_asking() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return echo(number, body) if number < 3 else refused(502, "bad gateway")

    with serving(reply) as server, closing(Chat(server.url, "toy", concurrency=4)) as chat:
        with pytest.raises(UserError, match=r"none of the last 20 requests: HTTP 502: bad gateway.*is kept"):
            list(chat.ask(requests(500)))
        assert len(server.bodies) < 250


def test_an_endpoint_that_never_answers_is_given_up_soon_and_said_to_be_in_trouble_at_once() -> None:
    said: list[str] = []
    with serving(lambda number, body: refused(500, "boom")) as server:
        with closing(Chat(server.url, "toy", say=said.append)) as chat:
            with pytest.raises(UserError, match="none of the last 2 requests: HTTP 500: boom"):
                list(chat.ask(requests(500)))
        assert len(server.bodies) == 2 * teacher.TRIES
    assert said == [f"{server.url}: HTTP 500: boom; what fails is tried again, up to 6 times"]


def test_a_bad_request_fails_alone_and_at_once() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "say 0":
            return refused(400, "This model's maximum context length is 10 tokens")
        return echo(number, body)

    with serving(reply) as server, closing(Chat(server.url, "toy")) as chat:
        answers = {answer.key: answer for answer in chat.ask(requests(2))}
        assert answers[0].error.startswith("HTTP 400: This model's maximum context length")
        assert answers[1].text == "say 1" and len(server.bodies) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refused(401, "Incorrect API key provided: sk-secret"), r"the key was refused \(HTTP 401\).*\*\*\*"),
        (refused(404, "The model `toy` does not exist"), "has no model 'toy'; name one with --teacher-model"),
        (refused(400, "toy is not a valid model ID: model toy not found"), "has no model 'toy'"),
        (refused(402, "Insufficient Balance"), "cannot pay"),
        ((429, {}, {"error": {"message": "over", "code": "insufficient_quota"}}), "no quota left"),
        ((301, {"Location": "https://elsewhere/v1"}, ""), "sends on to https://elsewhere/v1"),
    ],
)
def test_what_no_request_would_do_better_is_said_after_one(
    reply: Reply, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIFTUNE_API_KEY", "sk-secret")
    with serving(lambda *_: reply) as server, closing(Chat(server.url, "toy")) as chat:
        with pytest.raises(UserError, match=message) as caught:
            list(chat.ask(requests(50)))
        assert len(server.bodies) == 1
        assert "sk-secret" not in str(caught.value)


def test_a_key_that_is_missing_is_asked_for() -> None:
    with serving(lambda *_: refused(401, "no key")) as server, closing(Chat(server.url, "toy")) as chat:
        with pytest.raises(UserError, match="wants a key; set SIFTUNE_API_KEY"):
            list(chat.ask(requests(1)))


def test_an_address_without_the_api_is_named() -> None:
    with serving(echo) as server, closing(Chat(server.url[:-3], "toy")) as chat:
        with pytest.raises(UserError, match=r"there is no .*/chat/completions .*most addresses end in /v1"):
            list(chat.ask(requests(3)))
        assert len(server.bodies) == 1


def test_nobody_listening_is_said_at_once() -> None:
    with serving(echo) as server:
        url = server.url
    with closing(Chat(url, "toy")) as chat, pytest.raises(UserError, match=f"no teacher answers at {url}"):
        list(chat.ask(requests(100)))
    with closing(Chat(url)) as chat, pytest.raises(UserError, match=f"no teacher answers at {url}"):
        list(chat.ask(requests(100)))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:8000/v1", "neither an address"),
        ("http://", "neither an address"),
        ("http://host:port/v1", "is no address"),
        ("https://me:secret@host/v1", "a key belongs in SIFTUNE_API_KEY"),
        ("https://host/v1?key=secret", "a key belongs in SIFTUNE_API_KEY"),
        ("vllm:", "names no model"),
    ],
)
def test_a_teacher_that_is_no_address_is_refused(address: str, message: str) -> None:
    for refusing in (teacher.check, Chat):
        with pytest.raises(UserError, match=message):
            refusing(address)


def test_a_model_that_is_not_there_is_named_before_a_server_is_started() -> None:
    with pytest.raises(UserError, match="teacher 'vllm:/no/such/model': no model '/no/such/model'"):
        teacher.check("vllm:/no/such/model")
    teacher.check("https://host/v1")


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("SIFTUNE_API_KEY", "sk-mine")
    with serving(echo) as server, closing(Chat(server.url, "toy", tmp_path / "answers.sqlite")) as chat:
        list(chat.ask(requests(2)))
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-mine"}
    assert not any(b"sk-" in file.read_bytes() for file in tmp_path.iterdir())


def test_a_key_that_no_header_can_hold_is_not_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with serving(echo) as server, closing(Chat(server.url, "toy")) as chat:
        with pytest.raises(UserError, match="the key in OPENAI_API_KEY holds a blank") as caught:
            list(chat.ask(requests(1)))
        assert "sk-" not in str(caught.value) and not server.bodies
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\n")  # as a file ends
    with serving(echo) as server, closing(Chat(server.url, "toy")) as chat:
        list(chat.ask(requests(1)))
        assert server.headers[0]["Authorization"] == "Bearer sk-one"


def test_a_server_that_lists_no_models_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(503, {}, "busy"))
    with serving(echo) as server, closing(Chat(server.url)) as chat:
        with pytest.raises(UserError, match=r"name it with --teacher-model\. Asked for its models.* HTTP 503"):
            list(chat.ask(requests(1)))


def test_a_model_need_not_be_named_where_there_is_one() -> None:
    with serving(echo) as server, closing(Chat(server.url)) as chat:
        list(chat.ask(requests(1)))
        assert server.bodies[0]["model"] == "toy"


def test_a_schema_is_sent_and_what_was_cut_says_so() -> None:
    with serving(lambda *_: said('{"word": "', "length")) as server:
        with closing(Chat(server.url, "toy")) as chat:
            (answer,) = chat.ask(requests(1, schema=SCHEMA, max_tokens=3))
        assert answer.finish_reason == "length" and not answer.error
        asked = server.bodies[0]
        assert asked["response_format"]["json_schema"]["schema"] == SCHEMA and asked["max_tokens"] == 3


@pytest.mark.parametrize(
    ("refuses", "told"),
    [(("json_schema",), ["JSON mode"]), (("json_schema", "json_object"), ["JSON mode", "the prompt alone"])],
)
def test_a_server_without_schemas_is_told_in_words_and_the_user_once(refuses: tuple[str, ...], told: list[str]) -> None:
    def reply(_: int, body: dict[str, Any]) -> Reply:
        kind = body.get("response_format", {}).get("type")
        if kind in refuses:
            return refused(400, f"response_format of type {kind} is not supported")
        return said('{"word": "yes"}')

    notes: list[str] = []
    with serving(reply) as server, closing(Chat(server.url, "toy", say=notes.append)) as chat:
        answers = list(chat.ask(requests(30, schema=SCHEMA)))
        assert all(answer.text == '{"word": "yes"}' for answer in answers)
        assert len(server.bodies) == 30 + len(told)
        assert '"additionalProperties"' in server.bodies[-1]["messages"][-1]["content"]
    assert len(notes) == len(told)
    assert all(words in note for words, note in zip(told, notes, strict=True))


def test_what_is_refused_of_one_request_is_sent_with_the_others() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "say 3":
            return refused(400, "this text cannot be used with a grammar at any temperature")
        return echo(number, body)

    notes: list[str] = []
    with serving(reply) as server, closing(Chat(server.url, "toy", concurrency=1, say=notes.append)) as chat:
        answers = {answer.key: answer for answer in chat.ask(requests(6, schema=SCHEMA))}
        assert [key for key, answer in answers.items() if answer.error] == [3] and not notes
        assert all("response_format" in body and "temperature" in body for body in server.bodies)


def test_a_server_with_its_own_names_for_things_is_followed() -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return refused(400, "Unsupported parameter: use 'max_completion_tokens' instead of 'max_tokens'.")
        if "temperature" in body:
            return refused(400, "Unsupported value: 'temperature' does not support 0 with this model.")
        return echo(number, body)

    notes: list[str] = []
    with serving(reply) as server, closing(Chat(server.url, "toy", say=notes.append)) as chat:
        assert not any(answer.error for answer in chat.ask(requests(5)))
        assert len(server.bodies) == 7 and server.bodies[-1]["max_completion_tokens"] == 2048
    assert len(notes) == 2


def test_every_answer_is_paid_once_whatever_the_address(tmp_path: Path) -> None:
    memory = tmp_path / "folder" / "answers.sqlite"
    with serving(echo) as server, closing(Chat(server.url, "toy", memory)) as chat:
        first = {answer.key: answer.text for answer in chat.ask(requests(20))}
    with serving(echo) as server:
        with closing(Chat(server.url, "toy", memory)) as chat:
            again = list(chat.ask(requests(25)))
            assert sum(answer.cached for answer in again) == 20 and len(server.bodies) == 5
            assert {a.key: a.text for a in again if a.cached} == first
            assert all(answer.tokens == 2 and answer.finish_reason == "stop" for answer in again)
        for other in ({"temperature": 0.5}, {"attempt": 1}, {"max_tokens": 9}, {"schema": SCHEMA}):
            with closing(Chat(server.url, "toy", memory)) as chat:
                assert not any(answer.cached for answer in chat.ask(requests(2, **other)))
        with closing(Chat(server.url, "another", memory)) as chat:
            assert not any(answer.cached for answer in chat.ask(requests(2)))


def test_what_is_kept_needs_no_server(tmp_path: Path) -> None:
    with serving(echo) as server, closing(Chat(server.url, "toy", tmp_path / "a.sqlite")) as chat:
        list(chat.ask(requests(3)))
        url = server.url
    with closing(Chat(url, "toy", tmp_path / "a.sqlite")) as chat:
        assert all(answer.cached for answer in chat.ask(requests(3)))


ASKING = """
    import sys
    from pathlib import Path
    from siftune.teacher import Chat, Request
    chat = Chat(sys.argv[1], "toy", Path(sys.argv[2]), concurrency=2)
    requests = (Request(i, [{"role": "user", "content": f"say {i}"}]) for i in range(200))
    for answer in chat.ask(requests):
        print(answer.key, flush=True)
"""


def asking(server: Server, memory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(ASKING), server.url, str(memory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_pays_for_nothing_twice(how: signal.Signals, tmp_path: Path) -> None:
    memory = tmp_path / "answers.sqlite"
    slow = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> Reply:
        if number > 40 and not slow.is_set():
            slow.wait(30)
        return echo(number, body)

    with serving(reply) as server:
        child = asking(server, memory)
        assert child.stdout is not None and child.stderr is not None
        seen = [int(child.stdout.readline()) for _ in range(40)]
        began = time.monotonic()
        os.kill(child.pid, how)
        child.wait(10)
        assert time.monotonic() - began < 5  # though two answers are under way
        rest = child.stdout.read()
        child.stdout.close()
        child.stderr.close()
        seen += [int(line) for line in rest.split()]
        before = len(server.bodies)
        slow.set()
        with closing(Chat(server.url, "toy", memory)) as chat:
            answers = {answer.key: answer for answer in chat.ask(requests(200))}
        assert len(answers) == 200 and not any(answer.error for answer in answers.values())
        assert all(answers[key].cached for key in seen)
        # all that was answered before the kill is known; only what was under way is asked again
        assert len(server.bodies) - before == 200 - sum(answer.cached for answer in answers.values())
        assert before - sum(answer.cached for answer in answers.values()) <= 2


def test_a_file_that_is_no_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_text("this is a text and no data base" * 10)
    with pytest.raises(UserError, match=r"cannot be kept in .*answers\.sqlite: file is not a database"):
        Chat("http://127.0.0.1:1/v1", "toy", tmp_path / "answers.sqlite")


def test_a_memory_that_is_damaged_is_named(tmp_path: Path) -> None:
    memory = tmp_path / "answers.sqlite"
    with closing(Answers(memory)) as answers:
        for number in range(200):
            answers.put(str(number), Kept("an answer " * 20, "stop", 1))
    whole = memory.read_bytes()
    memory.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with closing(Answers(memory)) as answers:
        with pytest.raises(UserError, match=r"cannot be read from .*answers\.sqlite: .*malformed"):
            answers.get("7")
        with pytest.raises(UserError, match=r"cannot be kept in .*answers\.sqlite: .*malformed"):
            answers.put("7", Kept("text", "stop", 1))


def test_the_memory_is_shared_between_two_runs_at_once(tmp_path: Path) -> None:
    memory = tmp_path / "answers.sqlite"
    with serving(echo) as server:
        children = [asking(server, memory) for _ in range(2)]
        for child in children:
            out, err = child.communicate(timeout=60)
            assert child.returncode == 0 and len(out.split()) == 200, err.decode()
    with closing(sqlite3.connect(memory)) as file:
        assert file.execute("SELECT count(*) FROM answers").fetchone() == (200,)


def test_a_lone_surrogate_ends_no_run() -> None:
    with serving(lambda *_: said("ok")) as server, closing(Chat(server.url, "toy")) as chat:
        (answer,) = chat.ask([Request(0, [{"role": "user", "content": "bad \ud800 text"}])])
        assert answer.text == "ok"


def test_a_fault_of_the_caller_is_raised_to_the_caller() -> None:
    def source() -> Iterator[Request]:
        yield requests(1)[0]
        raise RuntimeError("mine")

    with serving(echo) as server, closing(Chat(server.url, "toy")) as chat:
        with pytest.raises(RuntimeError, match="mine"):
            list(chat.ask(source()))
