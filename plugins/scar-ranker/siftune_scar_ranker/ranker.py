"""A ranker ready to score pairs, every text once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from siftune import UserError, models

from . import network
from .encoders import limit
from .reading import Words, encoded

Pair = tuple[str, str]
KEPT = 32_768  # instructions whose vector is kept from one shard to the next


def ranker(model: str, dtype: str | None, device: str | None, max_length: int) -> Ranker:
    """A ranker by reference; the last few are kept, so that shards and groups share them.

    Raises UserError for a model that is no ranker or does not fit.
    """
    return _ranker(models.digest(model), model, dtype or "float32", device or "cpu", max_length)


@lru_cache(maxsize=4)
def _ranker(digest: str, model: str, dtype: str, device: str, max_length: int) -> Ranker:
    return Ranker(model, dtype, device, max_length)


class Ranker:
    """A network, its tokenizer, and the instructions that it has read."""

    def __init__(self, model: str, dtype: str, device: str, max_length: int) -> None:
        import torch

        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise UserError(f"dtype {dtype!r}: take float32 or bfloat16")
        net, told = network.load(model)
        self.name, self.device = model, device
        # who trained the published ones did so on English
        self.languages = frozenset(told.get("languages", ["en"]))
        # the heads stay in float32: they are small, and scores stand close together; and so do the angles that turn
        # positions, which are no weights: rounded, they are off by the more the longer a text is
        for weight in net["encoder"].parameters():
            weight.data = weight.data.to(kind)
        self.net = net.to(device)
        config = net["encoder"].config
        self.words = Words(models.folder(model), config.pad_token_id or 0, min(max_length, limit(net["encoder"])))
        self._first: dict[str, Any] = {}

    def scores(
        self, pairs: Sequence[Pair], advance: Callable[..., None] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Scores of pairs of instruction and answer, and how many tokens of both the limit cut, `(n,)` each."""
        found = scored(self.net, self.words, pairs, self.device, self._first, advance)
        while len(self._first) > KEPT:
            del self._first[next(iter(self._first))]
        return found

    def forget(self) -> None:
        """Drop the instructions that were read."""
        self._first.clear()


def scored(
    net: Any,
    words: Words,
    pairs: Sequence[Pair],
    device: str,
    known: dict[str, Any] | None = None,
    advance: Callable[..., None] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores of pairs, and how many tokens were cut. A text that comes up twice is read once, so equal pairs
    score the same to the last bit; `known` holds the first states of instructions that were read before."""
    import torch

    if not pairs:
        return np.zeros(0), np.zeros(0, np.int64)
    known = {} if known is None else known
    distinct = list(dict.fromkeys(pairs))  # a product of matrices may give equal rows other last bits
    asked, said = (list(dict.fromkeys(side)) for side in zip(*distinct, strict=True))
    asked_ids, asked_over = words.read(asked)
    said_ids, said_over = words.read(said)
    # apart from the answers, so that what is known already does not change how those are batched
    fresh = [at for at, text in enumerate(asked) if text not in known]
    with torch.inference_mode():
        first, _ = encoded(net, words, [asked_ids[at] for at in fresh], device, advance)
        known.update({asked[at]: first[place].clone() for place, at in enumerate(fresh)})
        answers, form = encoded(net, words, said_ids, device, advance)
        row = {text: at for at, text in enumerate(said)}
        rows = torch.tensor([row[answer] for _, answer in distinct], device=device)
        instructions = torch.stack([known[instruction] for instruction, _ in distinct])
        found, _ = network.judged(net, instructions, answers[rows], form[rows])
    before, after = dict(zip(asked, asked_over, strict=True)), dict(zip(said, said_over, strict=True))
    cut = np.array([before[x] + after[y] for x, y in pairs], np.int64)
    scores = dict(zip(distinct, found.cpu().tolist(), strict=True))
    return np.array([scores[pair] for pair in pairs]), cut
