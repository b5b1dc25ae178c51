"""The shapes that a row of instruction data comes in, each read into a Sample and written back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import UserError, suggestion
from .samples import ROLES, Message, Sample

Row = Mapping[str, Any]


class BadRow(Exception):
    """What is malformed about one row; the reader adds file and row."""


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "bool": "a boolean"}
    return names.get(type(value).__name__, "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _text(row: Row, name: str, *, optional: bool = False) -> str:
    if name not in row:
        if optional:
            return ""
        raise BadRow(f"has no field {name!r}")
    value = row[name]
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    raise BadRow(f"field {name!r} is {_kind(value)}, not a text")


def _conversation(value: Any, name: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(f"field {name!r} is {_kind(value)}, not a list of messages")
    messages: list[Message] = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping):
            raise BadRow(f"message {number} of {name!r} is {_kind(turn)}, not an object")
        for key in (role_key, text_key):
            if not isinstance(turn.get(key), str):
                problem = (
                    f"has no {key!r}" if key not in turn else f"has a {key!r} that is {_kind(turn[key])}, not a text"
                )
                raise BadRow(f"message {number} of {name!r} {problem}")
        role = turn[role_key]
        if role not in roles:
            raise BadRow(f"message {number} of {name!r} has the unknown role {role!r}.{suggestion(role, roles)}")
        messages.append({"role": roles[role], "content": turn[text_key]})
    return messages


@dataclass(frozen=True)
class Shape:
    """One shape of rows. `keys` have to be there for a row to look like it; `own` are all that it reads."""

    name: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    own: ClassVar[tuple[str, ...]]

    def read(self, row: Row) -> Sample:
        """The sample that a row says. Raises BadRow."""
        raise NotImplementedError

    def write(self, sample: Sample) -> dict[str, Any]:
        """A row that says this sample."""
        raise NotImplementedError


class Alpaca(Shape):
    """`instruction`, `output`, and where given `input`, `system` and earlier turns as `history`."""

    name = "alpaca"
    keys = ("instruction", "output")
    own = ("instruction", "input", "output", "system", "history")

    def read(self, row: Row) -> Sample:
        output, system = _text(row, "output"), _text(row, "system", optional=True)
        sample = Sample.of(_text(row, "instruction"), output, _text(row, "input", optional=True), system)
        history = row.get("history")
        if not history:
            return sample
        if not isinstance(history, Sequence) or isinstance(history, str):
            raise BadRow(f"field 'history' is {_kind(history)}, not a list of pairs")
        before: list[Message] = []
        for number, pair in enumerate(history, 1):
            if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(t, str) for t in pair)):
                raise BadRow(f"turn {number} of 'history' is not a pair of texts")
            before += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        head = sample.messages[:1] if system else ()
        return Sample((*head, *before, *sample.messages[len(head) :]), sample.split)

    def write(self, sample: Sample) -> dict[str, Any]:
        row: dict[str, Any] = {
            "instruction": sample.instruction,
            "input": sample.input,
            "output": sample.response,
        }
        if sample.system:
            row["system"] = sample.system
        turns = [m for m in sample.messages if m["role"] != "system"]
        turns = turns[:-2] if turns and turns[-1]["role"] == "assistant" else turns[:-1]
        if turns:
            if [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2):
                raise UserError(
                    f"sample {sample.id} does not alternate between user and assistant, "
                    "which alpaca's history cannot say; write --format messages"
                )
            texts = [m["content"] for m in turns]
            row["history"] = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        return row


class ShareGPT(Shape):
    """`conversations` of `from` and `value`, and where given `system`."""

    name = "sharegpt"
    keys = ("conversations",)
    own = ("conversations", "system")
    roles: ClassVar[Mapping[str, str]] = {
        **{role: role for role in ROLES},
        "human": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "bing": "assistant",
        "bard": "assistant",
        "observation": "tool",
        "function_response": "tool",
    }
    back: ClassVar[Mapping[str, str]] = {
        "user": "human",
        "assistant": "gpt",
        "system": "system",
        "tool": "observation",
    }

    def read(self, row: Row) -> Sample:
        messages = _conversation(row["conversations"], "conversations", "from", "value", self.roles)
        system = _text(row, "system", optional=True)
        return Sample(tuple([{"role": "system", "content": system}, *messages] if system else messages))

    def write(self, sample: Sample) -> dict[str, Any]:
        return {"conversations": [{"from": self.back[m["role"]], "value": m["content"]} for m in sample.messages]}


class Messages(Shape):
    """`messages` of `role` and `content`."""

    name = "messages"
    keys = ("messages",)
    own = ("messages",)
    roles: ClassVar[Mapping[str, str]] = {role: role for role in ROLES}

    def read(self, row: Row) -> Sample:
        return Sample(tuple(_conversation(row["messages"], "messages", "role", "content", self.roles)))

    def write(self, sample: Sample) -> dict[str, Any]:
        return {"messages": [dict(message) for message in sample.messages]}


class PromptCompletion(Shape):
    """`prompt` and `completion`, each a text or a list of messages."""

    name = "prompt"
    keys = ("prompt", "completion")
    own = ("prompt", "completion")

    def read(self, row: Row) -> Sample:
        messages: list[Message] = []
        for name, role in (("prompt", "user"), ("completion", "assistant")):
            value = row[name]
            if isinstance(value, str):
                messages.append({"role": role, "content": value})
            elif value is None:
                raise BadRow(f"field {name!r} is null, not a text")
            else:
                messages += _conversation(value, name, "role", "content", Messages.roles)
        return Sample(tuple(messages))

    def write(self, sample: Sample) -> dict[str, Any]:
        if len(sample.messages) == 2 and [m["role"] for m in sample.messages] == ["user", "assistant"]:
            return {"prompt": sample.prompt, "completion": sample.response}
        messages = [dict(message) for message in sample.messages]
        return {"prompt": messages[:-1], "completion": messages[-1:]}


SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in (Messages(), ShareGPT(), Alpaca(), PromptCompletion())}


def named(name: str) -> Shape:
    """The shape of this name. Raises UserError."""
    if name not in SHAPES:
        raise UserError(f"no row format {name!r}.{suggestion(name, SHAPES)}")
    return SHAPES[name]


def detect(row: Row) -> Shape | None:
    """The first shape whose keys a row has."""
    return next((shape for shape in SHAPES.values() if all(key in row for key in shape.keys)), None)


def expected() -> str:
    """The shapes as an error names them."""
    return ", ".join(f"{shape.name} ({', '.join(shape.keys)})" for shape in SHAPES.values())
