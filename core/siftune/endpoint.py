"""One OpenAI-compatible address: what it takes of the chat API, and what its refusals mean."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .answers import Kept
from .errors import UserError

if TYPE_CHECKING:
    import httpx2

    from .teacher import Request

KEYS = ("SIFTUNE_API_KEY", "OPENAI_API_KEY")  # where the key is looked for; the first that is set
TIMEOUT = 600.0  # seconds until an answer begins, and from there to its end
BROKEN = ("error", "abort")  # reasons why an answer ended that make it none
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_MODEL = re.compile(
    r"(?i)model_not_found|(invalid|unknown|no such) model|model\b[^.]*\b(not exist|not found|not a valid)"
)


class Later(Exception):
    """No answer this time; another try may bring one, after `wait` seconds if the server named a time.

    `busy` says that the server only has too much to do.
    """

    def __init__(self, said: str, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(said)
        self.wait, self.busy = wait, busy


class Never(Exception):
    """This request gets no answer, however often it is asked."""


@dataclass(frozen=True)
class Dialect:
    """What a server takes of the chat API. The richest is tried first; what it refuses is not sent again."""

    schemas: str = "json_schema"  # then "json_object", then "prompt": only told in words
    limit: str = "max_tokens"  # or "max_completion_tokens"
    temperature: bool = True

    def body(self, request: Request, model: str) -> dict[str, Any]:
        """The request as this server takes it."""
        body: dict[str, Any] = {"model": model, "messages": request.messages, self.limit: request.max_tokens}
        if self.temperature:
            body["temperature"] = request.temperature
        if request.schema is None:
            return body
        if self.schemas == "json_schema":
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            return body | {"response_format": {"type": "json_schema", "json_schema": schema}}
        told = "Answer with one JSON object that follows this JSON schema, and with nothing else:\n"
        *before, last = request.messages
        words = f"{last['content']}\n\n{told}{json.dumps(request.schema)}"
        body["messages"] = [*before, {**last, "content": words}]
        return body | ({"response_format": {"type": "json_object"}} if self.schemas == "json_object" else {})

    def without(self, refused: str, request: Request) -> Dialect:
        """The dialect after a refusal in these words; the same where they are about something else."""
        if "max_completion_tokens" in refused and self.limit == "max_tokens":
            return dataclasses.replace(self, limit="max_completion_tokens")
        if re.search(r"\btemperature\b", refused) and self.temperature:
            return dataclasses.replace(self, temperature=False)
        about_schema = re.search(r"response_format|schema|json_object|structured|guided|grammar|^$", refused)
        if request.schema is not None and about_schema and self.schemas != "prompt":
            less = "json_object" if self.schemas == "json_schema" else "prompt"
            return dataclasses.replace(self, schemas=less)
        return self

    def difference(self, other: Dialect) -> str:
        """What is sent in place of what, for the user to know."""
        if self.schemas != other.schemas:
            instead = {"json_object": "JSON mode", "prompt": "the prompt alone"}[other.schemas]
            return f"takes no {self.schemas}; {instead} asks for the form of the answers"
        if self.limit != other.limit:
            return f"takes no {self.limit}; it is sent {other.limit}"
        return "takes no temperature; it uses its own"


class Endpoint:
    """A connection pool to one address. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        connections: int,
        say: Callable[[str], None],
        key: str | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`key` is the one of the environment unless given. `alive` raises UserError if a server of ours
        has ended. Raises UserError for a text that is no address."""
        self.url, self._say, self._alive = checked(url), say, alive
        self._key = _key() if key is None else key
        self.proven = False  # it has answered once
        self._dialect = Dialect()
        self._taken: set[tuple[Dialect, str, float]] = set()  # forms of a request that it has answered
        self._learning = threading.Lock()
        http = _http()
        try:
            self._client: httpx2.Client = http.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=http.Timeout(TIMEOUT, connect=15.0),
                limits=http.Limits(max_connections=connections, max_keepalive_connections=connections),
                # a proxy is no way to this very machine
                trust_env=urlsplit(self.url).hostname not in LOOPBACK,
            )
        except (http.InvalidURL, ValueError) as error:
            raise UserError(f"{self.url} cannot be used: {error}") from None

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def send(self, request: Request, model: str) -> Kept:
        """One try, said again only where the server wants it said otherwise.

        Raises Later or Never, or UserError where no request would do better.
        """
        while True:
            dialect = self._dialect
            form = dialect, json.dumps(request.schema), request.temperature
            # escaped, so that a lone surrogate in the data is the server's to refuse and ends no run
            response = self._posted(json.dumps(dialect.body(request, model)).encode("ascii"))
            if response.is_success:
                kept = self._read(response)
                self.proven = True
                self._taken.add(form)
                return kept
            said = self._said(response)
            refused = response.status_code in (400, 415, 422, 501)
            # where it took this form before, it is this one request that it does not like
            if refused and form not in self._taken and self._learn(dialect, said, request):
                continue
            raise self._failure(response, said, model)

    def _posted(self, body: bytes) -> httpx2.Response:
        """The whole reply. Some servers send blanks for as long as an answer takes, so there is an end to the
        whole of it and not only to each wait."""
        http = _http()
        headers = {"Content-Type": "application/json"}
        try:
            with self._client.stream("POST", "/chat/completions", content=body, headers=headers) as reply:
                end, parts = time.monotonic() + TIMEOUT, []
                for part in reply.iter_raw():
                    parts.append(part)
                    if time.monotonic() > end:
                        raise Later(f"the reply had no end after {TIMEOUT:g} s")
                whole: httpx2.Response = http.Response(
                    reply.status_code, headers=reply.headers, content=b"".join(parts)
                )
                return whole
        except http.DecodingError as error:
            raise Later(f"the reply cannot be unpacked: {error}") from None
        except http.TransportError as error:
            raise self._unreachable(error) from error

    def only_model(self) -> str:
        """The model of an endpoint that serves one. Raises UserError if it serves another number."""
        http = _http()
        names, status = [], ""
        try:
            listed = self._client.get("/models", timeout=30)
            if listed.status_code in (401, 403):
                raise UserError(self._refused(listed.status_code, self._said(listed), ""))
            status = "" if listed.is_success else f" Asked for its models, it says HTTP {listed.status_code}."
            names = [] if status else [str(one["id"]) for one in listed.json()["data"]]
        except http.TransportError as error:
            raise self._unreachable(error, first=True) from error
        except (ValueError, KeyError, TypeError, RecursionError, http.DecodingError):
            pass
        if len(names) == 1:
            return names[0]
        shown = f" It serves {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}." if names else status
        raise UserError(f"{self.url} does not serve exactly one model; name it with --teacher-model.{shown}")

    def _learn(self, used: Dialect, said: str, request: Request) -> bool:
        """Whether the request can be said in another way, which is then how all are said."""
        with self._learning:
            if self._dialect != used:
                return True
            self._dialect = used.without(said, request)
            if self._dialect == used:
                return False
            self._say(f"the teacher {used.difference(self._dialect)}")
            return True

    def _unreachable(self, error: httpx2.TransportError, first: bool = False) -> Exception:
        http = _http()
        self._alive()
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        nobody = isinstance(error, (http.ConnectError, http.ConnectTimeout))
        if first or (nobody and not self.proven):
            return UserError(
                f"no teacher answers at {self.url} ({said}). Is the address right, and the server up?"
            )
        return Later(said)

    def _failure(self, response: httpx2.Response, said: str, model: str) -> Exception:
        """What a refusal means: for the run, for this request, or only for now."""
        status = response.status_code
        shown = f"HTTP {status}{': ' + said if said else ''}"
        if response.has_redirect_location:
            return UserError(f"{self.url} sends on to {response.headers['location']}; name that address")
        if status in (401, 402, 404, 405) or (status == 403 and not self.proven):
            return UserError(self._refused(status, said, model))
        if "insufficient_quota" in response.text:
            return UserError(f"{self.url}: the account has no quota left. It says: {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            return Later(shown, _retry_after(response.headers), busy=status == 429)
        if not self.proven and NO_MODEL.search(said):
            return UserError(self._refused(404, said, model))
        return Never(shown)

    def _refused(self, status: int, said: str, model: str) -> str:
        said = f" It says: {said}" if said else ""
        if status in (401, 403):
            held = "the key was refused" if self._key else f"it wants a key; set {KEYS[0]}"
            return f"{self.url}: {held} (HTTP {status}).{said}"
        if status == 402:
            return f"{self.url}: the account cannot pay (HTTP 402).{said}"
        if "model" in said.lower():
            return f"{self.url} has no model {model!r}; name one with --teacher-model.{said}"
        return f"there is no {self.url}/chat/completions (HTTP {status}); most addresses end in /v1.{said}"

    def _read(self, response: httpx2.Response) -> Kept:
        """The answer in a reply. What is no reply of the chat API counts as trouble on the way."""
        try:
            reply = response.json()
            choice = reply["choices"][0]
            content = choice["message"].get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            reason = str(choice.get("finish_reason") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Later(f"the reply is not one of the chat API: {self._said(response)}") from None
        if reason in BROKEN:
            raise Later(f"the server broke the answer off ({reason})")
        return Kept(str(content), reason, _tokens(reply))

    def _said(self, response: httpx2.Response) -> str:
        """The server's own words on what is wrong, on one line and without the key."""
        try:
            body: Any = response.json()
            for name in ("error", "message", "detail"):
                if isinstance(body, Mapping) and name in body:
                    body = body[name]
            text = body if isinstance(body, str) else json.dumps(body)
        except (ValueError, RecursionError):
            text = re.sub(r"<[^>]*>", " ", response.text)
        return self._scrubbed(" ".join(text.split())[:400])

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _key() -> str:
    """The key of the environment, or none. Raises UserError for one that no header can hold."""
    name = next((name for name in KEYS if os.environ.get(name)), KEYS[0])
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise UserError(f"the key in {name} holds a blank or a letter that no key has; was it copied whole?")
    return key


def _tokens(reply: Mapping[str, Any]) -> int:
    """How many tokens the server says it wrote; 0 where it says nothing that can be counted."""
    usage = reply.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) else 0


def checked(url: str) -> str:
    """The address without the slash at its end and without the path that is added here.

    Raises UserError for one that holds more, or is none.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for a port that is none
    except ValueError as error:
        raise UserError(f"teacher {url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"teacher {url!r} is neither an address, as in https://host/v1, nor vllm:MODEL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"the teacher's address holds more than host and path; a key belongs in {KEYS[0]}")
    return url.rstrip("/").removesuffix("/chat/completions")


def _http() -> Any:
    import httpx2  # a twentieth of a second that `siftune --help` does not have

    return httpx2


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 where there is none."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
