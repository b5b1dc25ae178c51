"""Templates render a sample with the exact span of its response, whatever the response looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from siftune import UserError
from siftune.prompts import STYLES, Refused, template
from siftune.samples import Sample
from siftune.testing import tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# seen in the wild: trimmed contents, a thought before the last response only, no system message
TRIMS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
THINKS = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}{{ eos_token }}{% endfor %}"
)
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML
HIDES = "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"

RESPONSES = [
    "Blue.",
    " a blank first",
    "\n\nnewlines\n",
    "the words of the prompt: Which colour?",
    "{instruction} and {0}, %s",
    "### Response: ASSISTANT:",
    "</s><s>",
    "天气很好 🌉",
    "",
]
TALK = Sample((
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
))  # fmt: skip


class Words:
    """A tokenizer as far as built-in templates look at it."""

    chat_template = None
    eos_token = "</s>"
    name_or_path = "somewhere"


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tiny_model(tmp_path_factory.mktemp("tiny")))

    def make(chat_template: str) -> Any:
        words.chat_template = chat_template
        return words

    return make


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", [*STYLES, CHATML, TRIMS, THINKS])
def test_the_span_is_exactly_the_response(name: str, response: str, chatting: Any) -> None:
    how = template(name, Words()) if name in STYLES else template("chat", chatting(name))
    for sample in (Sample.of("Which colour?", response), Sample.of("Sort {x}", response, input="3, 1")):
        one = how.pair(sample)
        assert one.text[one.start : one.end] == response
        assert one.end == len(one.text)
        assert one.text[: one.start] == how.prompt(sample.messages[:-1], sample.split)
        assert sample.instruction in one.text[: one.start]


def test_what_the_built_in_templates_write() -> None:
    plain, apart = Sample.of("Which colour?", "Blue."), Sample.of("Sort.", "1 3", input="3 1")
    said = {
        name: (template(name, Words()).pair(plain).text, template(name, Words()).pair(apart).text) for name in STYLES
    }
    assert said["plain"] == ("Which colour?\n\nBlue.", "Sort.\n\n3 1\n\n1 3")
    assert said["wiz"] == ("Which colour?\n\n### Response:Blue.", "Sort.\n3 1\n\n### Response:1 3")
    assert said["alpaca"][0].endswith("request.\n\n### Instruction:\nWhich colour?\n\n### Response:Blue.")
    assert said["alpaca"][1].endswith("### Instruction:\nSort.\n\n### Input:\n3 1\n\n### Response:1 3")
    assert "further context" in said["alpaca"][1] and "further context" not in said["alpaca"][0]
    assert said["vicuna"][0].endswith("questions. USER: Which colour? ASSISTANT: Blue.")
    assert said["vicuna"][1].endswith("USER: Sort.\nInput:\n3 1 ASSISTANT: 1 3")


def test_several_turns_each_after_its_whole_context() -> None:
    first, second = template("vicuna", Words()).turns(TALK)
    assert first.text == "Be brief. USER: One? ASSISTANT: 1"
    assert second.text == "Be brief. USER: One? ASSISTANT: 1</s> USER: Two? ASSISTANT: 2"
    assert template("plain", Words()).pair(TALK).text == "Be brief.\n\nOne?\n\n1\n\nTwo?\n\n2"
    assert template("plain", Words()).pair(TALK, 0).closing == "</s>"
    with pytest.raises(IndexError):
        template("plain", Words()).pair(TALK, 2)


def test_the_input_belongs_to_the_last_user_message() -> None:
    talk = Sample((*TALK.messages[:3], *Sample.of("Sort.", "1 3", input="3 1").messages), split=5)
    first, second = template("wiz", Words()).turns(talk)
    assert first.text.endswith("One?\n\n### Response:1")
    assert second.text.endswith("Sort.\n3 1\n\n### Response:1 3")


def test_auto_takes_the_chat_template_and_falls_back_to_alpaca(chatting: Any) -> None:
    assert template(None, Words()).name == template("auto", Words()).name == "alpaca"
    how = template("auto", chatting(CHATML))
    assert (how.name, how.source, how.special) == ("chat", CHATML, False)
    assert template("plain", chatting(CHATML)).special
    one = how.pair(Sample.of("Hi", "Ho"))
    assert one.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo" and one.closing == "<|im_end|>\n"


def test_a_turn_is_read_as_the_template_writes_it(chatting: Any) -> None:
    thinks = template("chat", chatting(THINKS))
    assert thinks.pair(Sample.of("Hi", "Ho")).text == "[user]Hi</s>[assistant]<think></think>Ho"
    # trimming would move the span; the response is put in as it is
    trims = template("chat", chatting(TRIMS))
    assert trims.pair(Sample.of("Hi ", " Ho ")).text == "<s>[user]Hi[assistant] Ho "


@pytest.mark.parametrize(("source", "why"), [(REFUSES, "no system message"), (HIDES, "does not show the response")])
def test_a_template_that_does_not_read_a_conversation_says_so(source: str, why: str, chatting: Any) -> None:
    with pytest.raises(Refused, match=why):
        template("chat", chatting(source)).pair(TALK)


def test_a_name_that_is_none_is_one_sentence() -> None:
    with pytest.raises(UserError, match="Did you mean 'alpaca'"):
        template("alpacca", Words())
    with pytest.raises(UserError, match="somewhere has no chat template"):
        template("chat", Words())


def test_templates_differ_in_what_a_fingerprint_hashes() -> None:
    assert len({template(name, Words()).source for name in STYLES}) == len(STYLES)


def test_nano_is_read_as_it_was_trained() -> None:
    folder = Path(__file__).parents[1] / "plugins" / "nano" / "siftune_nano" / "model"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the weights of nano are not here")
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)
    chat, plain = template(None, words), template("plain", words)
    for sample in (Sample.of("Hi", "Ho", input="there"), Sample.of("Hi", "Ho")):
        assert chat.name == "chat" and chat.pair(sample).text == words.bos_token + plain.pair(sample).text
