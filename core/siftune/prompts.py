"""Prompt templates: one object that renders a sample for scoring, training and evaluation alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError, suggestion
from .samples import Message, Sample

# Stands for the response while a chat template is rendered: private-use characters that no text contains.
MARK = "\ue0f3\ue17a\ue0f3"


class Refused(ValueError):
    """A template that does not read this conversation (no system message, roles out of turn, ...)."""


@dataclass(frozen=True)
class Rendered:
    """A turn in its context: `text[start:end]` is exactly the response's characters.

    `text` ends with the response; `closing` is what the template writes after it, which training wants to see
    and scoring does not.
    """

    text: str
    start: int
    end: int
    closing: str = ""


@dataclass(frozen=True)
class Style:
    """How a built-in template writes: everything around the words of the speakers."""

    system: str  # opens the text, unless the sample brings its own system message
    system_input: str  # the same where an input stands apart from the instruction
    gap: str  # between system message and first turn, and before each later user turn
    user: str
    user_input: str
    answer: str  # between what was asked and the response
    turn_end: bool = True  # whether a finished turn ends with the tokenizer's end token


STYLES: Mapping[str, Style] = {
    # Stanford Alpaca's two prompts; nothing stands between the colon and the response
    "alpaca": Style(
        system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        system_input="Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.",
        gap="\n\n",
        user="### Instruction:\n{instruction}",
        user_input="### Instruction:\n{instruction}\n\n### Input:\n{input}",
        answer="\n\n### Response:",
    ),
    # FastChat's vicuna_v1.1, with the blank before the response that its training has
    "vicuna": Style(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        system_input="",
        gap=" ",
        user="USER: {instruction}",
        user_input="USER: {instruction}\nInput:\n{input}",
        answer=" ASSISTANT: ",
    ),
    # WizardLM's
    "wiz": Style(
        system="",
        system_input="",
        gap="\n\n",
        user="{instruction}",
        user_input="{instruction}\n{input}",
        answer="\n\n### Response:",
    ),
    # parts joined by a blank line
    "plain": Style(
        system="",
        system_input="",
        gap="\n\n",
        user="{instruction}",
        user_input="{instruction}\n\n{input}",
        answer="\n\n",
        turn_end=False,
    ),
}


@dataclass(frozen=True)
class Template:
    """A prompt template with three views of a sample: prompt, response, and both with the response's span.

    `source` is the text that a fingerprint hashes. `special` says who brings the special tokens: True, the
    tokenizer adds its own; False, the text has them (chat templates).
    """

    name: str
    source: str
    special: bool
    eos: str = ""
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def prompt(self, messages: Sequence[Message], input_split: int | None = None) -> str:
        """The conversation so far, up to where the assistant's next words begin.

        `input_split`: where the instruction of the last user message ends; its input begins two characters
        later. Raises Refused if the template does not read such a conversation.
        """
        return self._around(messages, input_split)[0]

    def pair(self, sample: Sample, turn: int = -1) -> Rendered:
        """One assistant turn (by default the last) after the whole context before it.

        Raises IndexError if there is no such turn, Refused if the template does not read the conversation.
        """
        places = [i for i, m in enumerate(sample.messages) if m["role"] == "assistant"]
        at = places[turn]
        before, response = sample.messages[:at], sample.messages[at]["content"]
        # the split belongs to the sample's last user message, and to no earlier one
        users = [i for i, m in enumerate(sample.messages) if m["role"] == "user"]
        split = sample.split if users and users[-1] < at else None
        text, closing = self._around(before, split)
        return Rendered(text + response, len(text), len(text) + len(response), closing)

    def turns(self, sample: Sample) -> list[Rendered]:
        """Every assistant turn, each after the whole context before it."""
        return [self.pair(sample, turn) for turn in range(sample.turns)]

    def _around(self, before: Sequence[Message], split: int | None) -> tuple[str, str]:
        """What a response is written between."""
        if self.special:
            return _styled(STYLES[self.name], before, split, self.eos), self.eos
        return _chatted(self.tokenizer, before)


def template(name: str | None, tokenizer: Any) -> Template:
    """The template of this name; None and "auto" take the tokenizer's chat template, else Alpaca's.

    Raises UserError for an unknown name, and for "chat" where the tokenizer has no chat template.
    """
    own = getattr(tokenizer, "chat_template", None)
    if name in (None, "auto"):
        name = "chat" if own else "alpaca"
    if name == "chat":
        if not own:
            raise UserError(
                f"template chat: the tokenizer of {_named(tokenizer)} has no chat template; "
                f"take one of {', '.join(STYLES)}"
            )
        source = own if isinstance(own, str) else json.dumps(own, sort_keys=True)
        return Template("chat", source, False, getattr(tokenizer, "eos_token", None) or "", tokenizer)
    if name not in STYLES:
        raise UserError(f"no prompt template {name!r}.{suggestion(str(name), ['auto', 'chat', *STYLES])}")
    style = STYLES[name]
    source = json.dumps([getattr(style, f) for f in Style.__dataclass_fields__], ensure_ascii=False)
    return Template(name, source, True, getattr(tokenizer, "eos_token", None) or "")


def _named(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "")) or "this model"


def _styled(style: Style, before: Sequence[Message], split: int | None, eos: str) -> str:
    last = max((i for i, m in enumerate(before) if m["role"] == "user"), default=-1)
    apart = split is not None and last >= 0
    system = next((m["content"] for m in before if m["role"] == "system"), "")
    text = system or (style.system_input if apart and style.system_input else style.system)
    for at, message in enumerate(before):
        if message["role"] == "system":
            continue
        if message["role"] == "assistant":
            text += style.answer + message["content"] + (eos if style.turn_end else "")
            continue
        text += style.gap if text else ""
        said = message["content"]
        if at == last and split is not None:
            # replace, not format: the sample's own braces are text
            text += _filled(style.user_input, instruction=said[:split], input=said[split + 2 :])
        else:
            text += _filled(style.user, instruction=said)
    return text + style.answer


def _filled(pattern: str, **parts: str) -> str:
    pieces = pattern.split("{")
    return pieces[0] + "".join(
        parts[name] + rest for name, rest in (piece.split("}", 1) for piece in pieces[1:])
    )


def _chatted(tokenizer: Any, before: Sequence[Message]) -> tuple[str, str]:
    """A mark is rendered in the response's place: templates trim responses, open them with a line of their
    own, or close them, and where they put them is seen without ever searching for the response's text."""
    import jinja2

    messages = [*(dict(m) for m in before), {"role": "assistant", "content": MARK}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except jinja2.TemplateError as error:
        raise Refused(f"the chat template does not read it: {error}") from error
    if text.count(MARK) != 1:
        raise Refused("the chat template does not show the response")
    start, _, closing = text.partition(MARK)
    return start, closing
