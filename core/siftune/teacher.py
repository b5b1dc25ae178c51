"""The teacher: asked by many at once, patient, and never paid twice for the same answer."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from .answers import Answers
from .endpoint import Endpoint, Later, Never, checked
from .errors import UserError

if TYPE_CHECKING:
    from .vllm_server import Server

TRIES = 6  # of one request, where it may help
BACKOFF = 1.0  # seconds before the second try; doubled for each further one
LONGEST = 60.0  # seconds between two tries, where the server names no time
PATIENCE = 600.0  # the longest Retry-After, in seconds, that is waited for
GIVE_UP = 20  # requests in a row that failed on every try: the endpoint is gone, not a request
NEVER = 2  # the same for an endpoint that has answered none at all, and is asked one at a time
LOOK = 5.0  # seconds between two looks at the threads that ask

log = logging.getLogger(__name__)


@dataclass
class Request:
    """One conversation to be answered. `key` is the caller's own and comes back with the answer.

    `schema` is the JSON schema that the answer should follow; whether it does is for the caller to check.
    `attempt` tells apart two tries of the same request, which would otherwise be given the same answer.
    """

    key: Any
    messages: list[dict[str, str]]
    schema: dict[str, Any] | None = None
    temperature: float = 0.0
    max_tokens: int = 2048
    attempt: int = 0

    def digest(self, model: str) -> str:
        """What an answer is kept under: everything that makes it, whichever endpoint serves the model."""
        asked = [model, self.messages, self.schema, float(self.temperature), self.max_tokens, self.attempt]
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass
class Answer:
    """What came back: a text with the reason why it ended ("stop", "length", ...), or an error."""

    key: Any
    text: str = ""
    finish_reason: str = ""
    error: str = ""
    cached: bool = False
    tokens: int = 0  # that the teacher wrote, by its own count


class Chat:
    """A teacher (or judge): `http(s)://...`, or `vllm:MODEL[@PYTHON]` for a server that is started here.

    Such a server is started when the first answer is missing, and stopped by `close`.
    """

    def __init__(
        self,
        teacher: str,
        model: str | None = None,
        memory: Path | None = None,
        concurrency: int | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        """`memory` is the file that keeps the answers. `concurrency` is how many requests are under way at
        once: 16 unless told otherwise, 128 for a server of our own. Raises UserError for a teacher that is no
        address."""
        self._own, self._python = served(teacher)
        self._url = teacher if self._own else checked(teacher)
        self._model = model or self._own
        self._say = say
        self.concurrency = concurrency or (128 if self._own else 16)
        self._answers = Answers(memory)
        self._endpoint: Endpoint | None = None
        self._server: Server | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._stops: list[threading.Event] = []  # one for each asking that is not over
        self._answered = 0
        self._in_vain = 0  # requests since the last answer that failed on every try
        self._troubled = False
        self._quiet_until = 0.0

    def ask(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answers in the order in which they come. Requests are pulled as they can be sent; of equal ones the
        first is sent, and what it is answered holds for all.

        A request that fails gives an answer with an error. Raises UserError where no request would do better:
        nobody listens, the key or the model is refused, the server has gone.
        """
        todo: SimpleQueue[tuple[Request, str] | None] = SimpleQueue()
        done: SimpleQueue[tuple[str, Answer | BaseException]] = SimpleQueue()
        stop = threading.Event()
        self._stops.append(stop)
        source, model, more = iter(requests), "", True
        workers: list[threading.Thread] = []
        under_way: dict[str, list[Request]] = {}  # those that were sent, and what else waits for their answer
        try:
            while True:
                if self._closed:
                    raise RuntimeError("the teacher was closed before all was asked")
                while more and len(under_way) < self._room():
                    request = next(source, None)
                    if request is None:
                        more = False
                        break
                    model = model or self._kept_under()
                    key = request.digest(model)
                    if key in under_way:
                        under_way[key].append(request)
                        continue
                    kept = self._answers.get(key)
                    if kept:
                        text, reason, tokens = kept
                        yield Answer(request.key, text, reason, cached=True, tokens=tokens)
                        continue
                    self._open()
                    if len(workers) < self.concurrency and len(workers) <= len(under_way):
                        # threads of our own: a pool's would be waited for when the program ends
                        told = (todo, done, stop)
                        worker = threading.Thread(target=self._work, args=told, name="teacher", daemon=True)
                        worker.start()
                        workers.append(worker)
                    todo.put((request, key))
                    under_way[key] = []
                if not under_way:
                    return
                key, answer = _next(done, workers)
                if isinstance(answer, BaseException):
                    raise answer
                others = under_way.pop(key)
                yield answer
                for other in others:
                    yield replace(answer, key=other.key, cached=not answer.error)
        finally:
            stop.set()
            self._stops.remove(stop)
            for _ in workers:
                todo.put(None)

    def close(self) -> None:
        """Stop the server if one was started, and let go of connections and the file of answers.

        An asking that is not over ends here, so that one which a traceback still holds pays for nothing more.
        """
        for stop in list(self._stops):
            stop.set()
        with self._opening:
            self._closed = True
            if self._server:
                self._server.stop()
            if self._endpoint:
                self._endpoint.close()
            self._endpoint = self._server = None
        self._answers.close()

    def _room(self) -> int:
        """How many requests may wait for an answer: enough that nobody idles while the caller is busy.

        The first goes alone, so that a wrong key is found out by one request and not by sixteen.
        """
        return 2 * self.concurrency if self._endpoint and self._endpoint.proven else 1

    def _kept_under(self) -> str:
        """The model as its answers are kept; one that is served from here by what is in its folder."""
        if self._own:
            from . import models

            return models.digest(self._own)
        self._model = self._model or self._open().only_model()
        return self._model

    def _open(self) -> Endpoint:
        """The connections, made when they are first needed, after the server where it is ours."""
        with self._opening:
            if self._closed:
                raise RuntimeError("the teacher is closed")
            if self._endpoint:
                return self._endpoint
            if self._own:
                from . import models
                from .vllm_server import Server

                folder = models.folder(self._own)
                server = self._server = Server(folder, self._model, self._python, say=self._say)
                endpoint = Endpoint(server.url, self.concurrency, self._say, server.key, server.check)
            else:
                endpoint = Endpoint(self._url, self.concurrency, self._say)
            self._endpoint = endpoint
            return endpoint

    def _work(
        self,
        todo: SimpleQueue[tuple[Request, str] | None],
        done: SimpleQueue[tuple[str, Answer | BaseException]],
        stop: threading.Event,
    ) -> None:
        while (task := todo.get()) is not None:
            answer: Answer | BaseException
            try:
                answer = self._answer(*task, stop)
            except BaseException as error:  # whatever it is, it is raised where the answers are read
                answer = error
            done.put((task[1], answer))

    def _answer(self, request: Request, key: str, stop: threading.Event) -> Answer:
        """One request until it is answered, refused, or has been tried often enough."""
        trouble, failed = "", 0
        for sent in itertools.count():
            if stop.wait(self._pause(sent)):
                return Answer(request.key, error="stopped")
            endpoint, before = self._open(), self._answered
            try:
                kept = endpoint.send(request, self._model)
            except Never as error:
                return Answer(request.key, error=str(error))
            except Later as error:
                trouble = str(error)
                if not self._troubled:
                    self._troubled = True
                    self._say(f"{endpoint.url}: {trouble}; what fails is tried again, up to {TRIES} times")
                # a server that is busy with our other requests is not failing this one
                failed += not (error.busy and self._answered > before)
                if failed == TRIES or error.wait > PATIENCE:
                    break
                if error.wait:  # what one request is told holds for all
                    self._quiet_until = max(self._quiet_until, time.monotonic() + error.wait)
                continue
            self._answers.put(key, kept)
            self._answered += 1
            self._in_vain = 0
            return Answer(request.key, kept.text, kept.finish_reason, tokens=kept.tokens)
        self._in_vain += 1
        if self._in_vain >= (GIVE_UP if self._answered else NEVER):
            raise UserError(
                f"{endpoint.url} has answered none of the last {self._in_vain} requests: {trouble}. "
                "What it answered before is kept: the same command again goes on from there"
            )
        return Answer(request.key, error=f"no answer in {sent + 1} tries: {trouble}")

    def _pause(self, sent: int) -> float:
        """Seconds before the next try: longer each time, hardly ever the same for two, and not before the
        server said."""
        own = min(BACKOFF * 2.0 ** min(sent - 1, 30), LONGEST) * random.uniform(0.5, 1.0) if sent else 0.0
        told = self._quiet_until - time.monotonic()
        return max(own, told + random.uniform(0.0, BACKOFF)) if told > 0 else own


def _next(
    done: SimpleQueue[tuple[str, Answer | BaseException]], workers: list[threading.Thread]
) -> tuple[str, Answer | BaseException]:
    """What is done next. Raises RuntimeError where a thread is gone, for what it had would never come."""
    while True:
        try:
            return done.get(timeout=LOOK)
        except Empty:
            if not all(worker.is_alive() for worker in workers):
                raise RuntimeError("a thread that asks the teacher has ended before its time") from None


def check(teacher: str) -> None:
    """Raises UserError for a teacher that cannot be one, without asking it anything: for before a run."""
    model, _ = served(teacher)
    if not model:
        checked(teacher)
        return
    from . import models

    try:
        models.folder(model)
    except UserError as error:
        raise UserError(f"teacher {teacher!r}: {error}") from None


def served(teacher: str) -> tuple[str, str | None]:
    """MODEL and PYTHON of `vllm:MODEL[@PYTHON]`: an interpreter follows the last @ if that is a file."""
    if not teacher.startswith("vllm:"):
        return "", None
    named = teacher.removeprefix("vllm:")
    if not named:
        raise UserError("teacher 'vllm:' names no model, as in vllm:org/name")
    model, _, python = named.rpartition("@")
    if model and Path(python).expanduser().is_file():
        return model, str(Path(python).expanduser().absolute())
    return named, None
