"""What a plugin's author needs for tests: the rules of a hook as assertions, toy samples, a tiny model."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from . import api, options
from .errors import UserError, suggestion
from .hookspecs import HOOKS
from .methods import Evaluation, Method, Trained, found, load
from .samples import Array, Pool, Sample, Samples

# a fifth of a second to seconds each: imported inside the hook that uses them
HEAVY = (
    "torch", "transformers", "datasets", "sklearn", "faiss",
    "peft", "sentence_transformers", "lm_eval", "ray", "vllm",
)  # fmt: skip
BUDGET = 2  # of the three toy samples

_TOYS: tuple[dict[str, Any], ...] = (
    {"messages": [
        {"role": "user", "content": "Name a colour of the sky."},
        {"role": "assistant", "content": "Blue. At dusk it is often orange, or even green?"},
    ]},
    {"messages": [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Übersetze: the bridge"},
        {"role": "assistant", "content": "Brücke 🌉"},
        {"role": "user", "content": "And the river?"},
        {"role": "assistant", "content": "Fluss"},
    ]},
    {"messages": [
        {"role": "user", "content": "Sort these numbers.\n\n3, 1, 2"},
        {"role": "assistant", "content": "1, 2, 3\n\nEach was compared with the next, and exchanged."},
    ]},
)  # fmt: skip


def toy_samples() -> list[Sample]:
    """Three samples: a plain one, a conversation of two turns with a system message, one with an input."""
    plain, talk, sort = (Sample(tuple(copy.deepcopy(row["messages"]))) for row in _TOYS)
    return [plain, talk, replace(sort, split=len("Sort these numbers."), id="")]


def conforms(hook: str, name: str, /, *, on: Samples | None = None, **given: Any) -> list[str]:
    """Assert that an installed method keeps the rules of its hook, and give what was checked in sentences.

    The method is run on three toy samples, or on the view `on`, with the options that are given; columns that
    it needs are made up, and a causal LM where it reads one. AssertionError says which rule is broken. A
    method that cannot be run here (it needs a teacher) is skipped with the reason, after all else is checked.
    """
    return list(_conforms(hook, name, given, on))


def check(name: str, words: Sequence[str] = ()) -> Iterator[str]:
    """The same for the command line: `name` is METHOD or HOOK/METHOD, `words` are options of the method.

    Raises UserError for the rule that is broken.
    """
    from .chain import parse

    hook = _hook(name)
    method = name.rpartition("/")[2]
    steps = parse([hook, method, *words])
    if len(steps) != 1:
        raise UserError(f"one method at a time; check {steps[1].label} by itself")
    given = {key.rstrip("_"): value for key, value in steps[0].options.items()}
    try:
        for told in _conforms(hook, method, given, None):
            yield f"ok: {told}"
    except AssertionError as error:
        raise UserError(str(error)) from error
    except unittest.SkipTest as reason:
        yield f"not run: {reason}"


def _hook(name: str) -> str:
    hook, _, method = name.rpartition("/")
    if hook:
        if hook not in HOOKS:
            raise UserError(f"no hook {hook!r}.{suggestion(hook, HOOKS)}")
        return hook
    every = {one: found(one) for one in HOOKS}
    hooks = [one for one, methods in every.items() if method in methods]
    if len(hooks) > 1:
        raise UserError(
            f"{method!r} is a method of several hooks; write "
            + " or ".join(f"{one}/{method}" for one in hooks)
        )
    if not hooks:
        names = [known for methods in every.values() for known in methods]
        raise UserError(f"no installed method {method!r}.{suggestion(method, names)} See: siftune methods")
    return hooks[0]


def _conforms(hook: str, name: str, given: Mapping[str, Any], on: Samples | None) -> Iterator[str]:
    try:
        kind = load(hook, name)
    except UserError as error:
        raise AssertionError(str(error)) from error
    label = f"{hook} {name}"
    yield f"{label} is {kind.__name__} of {found(hook)[name].source}"
    documentation = kind.__doc__ or ""
    # a class without one is given its own signature by dataclass
    assert documentation.strip() and not documentation.startswith(f"{kind.__name__}("), (
        f"{label}: {kind.__name__} has no docstring; its first line is what --help shows"
    )
    yield from _options(kind, label)
    yield _light(kind, label)
    with tempfile.TemporaryDirectory(prefix="siftune-") as scratch:
        method = _configured(kind, label, given, Path(scratch))
        yield _strings(method, label)
        again = _pickled(method, label)
        yield f"{label} survives a trip to another process"
        yield from _runs(hook, label, method, again, on, Path(scratch))


def _options(kind: type[Method], label: str) -> Iterator[str]:
    try:
        known = options.of(kind)
    except (NameError, TypeError) as error:
        raise AssertionError(
            f"{label}: the types of its options cannot be read when it runs: {error}"
        ) from error
    for option in known.values():
        assert option.help.strip(), (
            f'{label}: {option.spelled} says nothing of itself; write Annotated[type, "what it is"]'
        )
        if option.required:
            continue
        try:
            checked = option.check(option.default, Path())
        except UserError as error:
            raise AssertionError(
                f"{label}: the default of {option.spelled} is no value for it: {error}"
            ) from error
        assert checked == option.default, f"{label}: the default of {option.spelled} becomes {checked!r}"
    yield (
        f"every option says what it is: {', '.join(o.spelled for o in known.values())}"
        if known
        else "it takes no options"
    )


def _light(kind: type[Method], label: str) -> str:
    """Import the module in a fresh interpreter that has the same path."""
    code = (
        "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "importlib.import_module(sys.argv[2]); "
        "print(json.dumps([name for name in sys.argv[3:] if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code, json.dumps(sys.path), kind.__module__, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{label}: {kind.__module__} cannot be imported by itself:\n{done.stderr}"
    pulled = json.loads(done.stdout.splitlines()[-1])
    assert not pulled, (
        f"{label}: importing {kind.__module__} imports {', '.join(pulled)}; import it inside the hook"
    )
    return f"importing {kind.__module__} imports nothing heavy"


def _configured(kind: type[Method], label: str, given: Mapping[str, Any], scratch: Path) -> Method:
    try:
        method = options.build(kind, given, label)
    except UserError as error:
        raise AssertionError(f"{error} (name it for the check too)") from error
    fields = {field.name for field in kind.fields()}
    if "model" in fields and kind.reads == "causal-lm" and getattr(method, "model", None) is None:
        method.model = str(tiny_model(scratch / "tiny"))  # type: ignore[attr-defined]
    return method


def _strings(method: Method, label: str) -> str:
    """Every option that is set, written as a command line would, gives the same value."""
    kind, known = type(method), options.of(type(method))
    written: dict[str, Any] = {}
    for name, value in method.options().items():
        if value is not None:
            text = value if known[name].flag else str(value)  # a flag is said without a value
            written[known[name].key] = [str(one) for one in value] if known[name].many else text
    try:
        back = options.build(kind, written, label).options()
    except UserError as error:
        raise AssertionError(f"{label}: its options cannot be written as text: {error}") from error
    for name, value in method.options().items():
        assert back[name] == value, f"{label}: {known[name].spelled} {value!r} as text gives {back[name]!r}"
    return "its options can be written as text"


def _pickled(method: Method, label: str) -> Method:
    try:
        back = pickle.loads(pickle.dumps(method))
    except Exception as error:
        raise AssertionError(
            f"{label}: it cannot travel to another process: {type(error).__name__}: {error}"
        ) from error
    assert isinstance(back, Method) and back.options() == method.options(), (
        f"{label}: its options do not survive pickling"
    )
    return back


def _runs(
    hook: str, label: str, method: Method, again: Method, on: Samples | None, scratch: Path
) -> Iterator[str]:
    for name in type(method).requires:
        value = getattr(method, name, None)
        if value is None and name in ("model", "teacher", "teacher_model"):
            what = f"a {type(method).reads}" if name == "model" else f"a {name.replace('_', ' ')}"
            raise unittest.SkipTest(f"{label} needs {what}; name one: --{name.replace('_', '-')}")
    samples = on if on is not None else _samples(hook, method)
    before = _said(samples)
    answers = []
    for number, one in enumerate((method, again)):
        folder = scratch / f"model-{number}" if hook == "train" else None
        budget = BUDGET if hook == "select" else None
        view = None if hook == "evaluate" else _copied(samples)
        answers.append(api.apply(one, view, budget=budget, folder=folder))
        if view is not None:
            assert _said(view) == before, f"{label} changed the samples or the columns that it was handed"
    yield from _shape(hook, label, answers[0], len(samples))
    first, second = (_compared(answer) for answer in answers)
    assert first == second, (
        f"{label} gave two answers to the same question; draw with numpy's default_rng(self.seed)"
    )
    yield "two runs agree, and what it was handed is as it was"


def _samples(hook: str, method: Method) -> Samples:
    """Three samples with made-up columns for what the method needs."""
    if hook == "evaluate":
        return Samples.of([])
    try:
        needed = [name for name in method.needs() if not name.endswith("?")]
    except Exception as error:
        raise AssertionError(
            f"{type(method).__name__}.needs() fails: {type(error).__name__}: {error}"
        ) from error
    rows = toy_samples()
    own = {name: made_up(name, len(rows)) for name in needed if not name.startswith("input.")}
    came = {name[6:]: made_up(name, len(rows)) for name in needed if name.startswith("input.")}
    if not came:
        return Samples.of(rows, **own)
    plain = {name: [_plain(value) for value in values] for name, values in came.items()}
    tables = [
        {"messages": list(row.messages), **{name: values[at] for name, values in plain.items()}}
        for at, row in enumerate(rows)
    ]
    return Samples.of(tables, **own)


def made_up(name: str, rows: int) -> Array:
    """Values for a column of this name: vectors, clusters, lists of losses, or numbers below 1."""
    drawn = np.random.default_rng(crc32(name.encode()))
    if "embedding" in name or "vector" in name:
        return drawn.normal(size=(rows, 4)).astype(np.float32)
    if name == "cluster":
        return np.arange(rows) % 2.0
    if "losses" in name:
        lists = np.empty(rows, object)
        lists[:] = [drawn.gamma(2.0, size=12) for _ in range(rows)]
        return lists
    return (np.arange(rows) + 1) / (rows + 1)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _copied(samples: Samples) -> Samples:
    """The same view of a pool of its own, so that one run leaves nothing for the next."""
    pool = Pool(copy.deepcopy(samples.pool.samples), copy.deepcopy(samples.pool.source))
    for held in samples.pool.columns.values():
        pool.attach(replace(held, values=np.array(held.values)))
    return Samples(pool, samples.rows.copy())


def _said(samples: Samples) -> Any:
    """What the samples and their columns say, to be compared."""
    columns = {
        name: samples.pool.held(name).at(samples.rows, len(samples.pool)) for name in samples.pool.names()
    }
    return [(one.id, list(one.messages), one.split, one.parent) for one in samples], _compared(columns)


def _compared(answer: Any) -> Any:
    """An answer as something that == compares by what it says, NaN equal to NaN."""
    if isinstance(answer, Trained):
        from . import models

        return models.digest(str(answer.folder))
    if isinstance(answer, Evaluation):
        return _compared([answer.metrics, answer.items])
    if isinstance(answer, Sample):
        return [answer.id, answer.parent]
    if isinstance(answer, np.ndarray):
        return [answer.shape, _compared(answer.tolist())]
    if isinstance(answer, Mapping):
        return {key: _compared(value) for key, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [_compared(one) for one in answer]
    return "NaN" if isinstance(answer, float) and answer != answer else answer


def _shape(hook: str, label: str, answer: Any, rows: int) -> Iterator[str]:
    """What came out; that counts, types and finiteness are right, the engine has checked already."""
    if hook == "score":
        columns: dict[str, Array] = answer
        values = [value for column in columns.values() for value in column.tolist()]
        assert any(value is not None and value == value for value in values), (
            f"{label} gave no value for any of {rows} samples"
        )
        yield f"it gave {', '.join(columns)} for {rows} samples"
    elif hook == "embed":
        assert np.isfinite(answer).any(), f"{label} gave no vector for any of {rows} samples"
        yield f"it gave vectors of {answer.shape[1]} dimensions"
    elif hook == "cluster":
        yield f"it gave {len(answer[1])} clusters"
    elif hook == "select":
        assert answer, f"{label} kept none of {rows} samples"
        yield f"it kept {len(answer)} of {rows} samples with a budget of {BUDGET}"
    elif hook == "reflect":
        yield f"it wrote {len(answer)} new samples"
    elif hook == "train":
        yield f"it trained a {answer.kind}"
    else:
        assert answer.metrics, f"{label} gave no figure"
        yield f"it measured {', '.join(answer.metrics)}"


# ---- a tiny model ----

_WORDS = ("the", "and", "is", "in", "of", "to", "er", "on", "re", "answer", "colour")
_SPECIAL = ("<pad>", "<s>", "</s>")


def tiny_model(folder: str | Path, chat_template: str | None = None) -> Path:
    """Write a random causal LM of 37,000 weights with its tokenizer, always the same; gives its folder.

    A Llama of two layers that reads 2,048 tokens, saved as safetensors; its tokenizer is a byte-level BPE
    with a few merges and opens a text with <s>. With `chat_template` (Jinja) it also carries that.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    words = _tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        initializer_range=0.2, architectures=["LlamaForCausalLM"],
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    words.save_pretrained(folder)
    config.save_pretrained(folder)
    # not model.save_pretrained, which draws a progress bar
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _tokenizer(chat_template: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*_SPECIAL, *letters]
    merges = []
    for word in ("Ġ" + word for word in _WORDS):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    ids = {token: at for at, token in enumerate(vocabulary)}
    bare = Tokenizer(models.BPE(vocab=ids, merges=merges))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=2048
    )
    words.chat_template = chat_template
    return words
