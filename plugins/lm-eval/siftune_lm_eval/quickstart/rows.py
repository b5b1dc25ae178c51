"""The rows of the group `quickstart`, in the model's prompt template, and what the answer to one is worth.

lm-eval loads this file by its path, from the tasks beside it.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

Doc = Mapping[str, Any]
Written = Callable[[str, str], tuple[str, str]]  # prompt and response as the model is shown them


def _plain(prompt: str, response: str) -> tuple[str, str]:
    """How nano was trained, for whoever runs the group with lm-eval's own command."""
    return f"{prompt}\n\n", response


def _read(name: str) -> list[dict[str, Any]]:
    with gzip.open(HERE / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _test(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def choice(written: Written = _plain, **_: Any) -> dict[str, Any]:
    """A prompt, its response, and three of about its length to other prompts of the same source."""
    rows = []
    for row in _read("choice.jsonl.gz"):
        pairs = [written(row["prompt"], one) for one in row["choices"]]
        rows.append({**row, "context": pairs[0][0], "choices": [said for _, said in pairs]})
    return _test(rows)


def loss(written: Written = _plain, **_: Any) -> dict[str, Any]:
    """A prompt and its response."""
    rows = []
    for row in _read("loss.jsonl.gz"):
        context, response = written(row["prompt"], row["response"])
        rows.append({**row, "context": context, "response": response})
    return _test(rows)


def chosen(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Whether the right response is chosen.

    `acc_mutual_info` is the figure to look at: log p(response | prompt) - log p(response), what the prompt
    adds. The same four responses stand under four prompts, each right once, and likelihood alone (`acc`, per
    byte `acc_bytes`) mostly picks the one that is easiest to write whatever was asked. The last three read no
    prompt.
    """
    count = len(doc["choices"])
    told = [likelihood for likelihood, _ in results]
    after, alone = told[:count], told[count:]
    sizes = [len(one.encode()) for one in doc["choices"]]
    by: dict[str, Sequence[float]] = {
        "acc_mutual_info": [a - b for a, b in zip(after, alone, strict=True)],
        "acc": after,
        "acc_bytes": [a / size for a, size in zip(after, sizes, strict=True)],
        "acc_blind": [a / size for a, size in zip(alone, sizes, strict=True)],
        "acc_longest": sizes,
        "acc_shortest": [-size for size in sizes],
    }
    return {name: _share(values, doc["answer"]) for name, values in by.items()}


def _share(values: Sequence[float], answer: int) -> float:
    """1 if the answer has the highest value, a share of it where others have the same, else 0."""
    best = max(values)
    return (values[answer] == best) / sum(value == best for value in values)


def lost(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """How many bits a byte of the response costs after its prompt."""
    return {"bits_per_byte": -results[0][0] / math.log(2) / len(doc["response"].encode())}
