"""A teacher for the tests of methods that ask one: a real server on the loopback that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    """The chat API, as much of it as a teacher needs."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.bodies.append(body)
        content, reason = server.write(body)
        message = {"role": "assistant", "content": content}
        reply = {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 7}}
        data = json.dumps(reply if reason != "refused" else {"error": {"message": content}}).encode()
        self.send_response(400 if reason == "refused" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@contextmanager
def teaching(write: Callable[[Body], tuple[str, str]]) -> Iterator[Any]:
    """A server whose answers, and the reasons why they end, `write` gives for the body of a request ("refused" is an
    error of the server). Has `url`, and the `bodies` that came."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that was killed
    server.write, server.bodies = write, []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    with listening(server):
        yield server


@contextmanager
def listening(server: ThreadingHTTPServer) -> Iterator[None]:
    """The server answers in a thread of its own, and is gone afterwards."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def part(body: Body, tag: str) -> str:
    """What a teacher was shown in this tag, see asking.Asking; empty where there is none."""
    content: str = body["messages"][-1]["content"]
    found = content.rpartition(f"<{tag}>\n")[2].partition(f"\n</{tag}>")[0]
    return found if f"<{tag}>\n" in content else ""
