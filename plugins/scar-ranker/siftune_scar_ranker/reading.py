"""Texts become tokens, each text once, and batches of near-equal length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from siftune import UserError
from siftune.encoding import UNLIMITED, clean

# padded tokens of one batch, by the kind of device
BATCH = {"cpu": 512, "cuda": 32768}


class Words:
    """A ranker's tokenizer; `limit` is the longest text in tokens, special ones included."""

    def __init__(self, folder: Path, padding: int, limit: int) -> None:
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(f"model {str(folder)!r} has no tokenizer.json")
        self.padding = padding
        self.limit = min(limit, _told_limit(folder))
        self._whole, self._cut = Tokenizer.from_file(str(file)), Tokenizer.from_file(str(file))
        for one in (self._whole, self._cut):
            one.no_padding()
            one.no_truncation()
        self._cut.enable_truncation(self.limit)

    def read(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids of every text, and how many tokens of it the limit cut off at its end."""
        plain = [clean(text) for text in texts]
        # a tokenizer without special tokens makes nothing of nothing
        ids = [one.ids or [self.padding] for one in self._whole.encode_batch_fast(plain)]
        over = [max(len(one) - self.limit, 0) for one in ids]
        return [self._cut.encode(plain[at]).ids if over[at] else one for at, one in enumerate(ids)], over

    def padded(self, ids: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
        """One batch: ids and mask `(n, longest)`, padded at the right."""
        import torch

        longest = max(map(len, ids))
        full = torch.full((len(ids), longest), self.padding)
        mask = torch.zeros(len(ids), longest, dtype=torch.long)
        for row, here, one in zip(full, mask, ids, strict=True):
            row[: len(one)] = torch.tensor(one)
            here[: len(one)] = 1
        return full.to(device), mask.to(device)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions by length, shortest first, in batches of at most so many tokens, padding too."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[at] > budget:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def encoded(
    net: Any, words: Words, ids: Sequence[Sequence[int]], device: Any, advance: Callable[..., None] | None = None
) -> tuple[Any, Any]:
    """First states and forms of texts, `(n, width)` each in float32, in the order of the texts; gradients flow."""
    import torch

    from .network import states

    width = int(net["encoder"].config.hidden_size)
    first, form = (torch.empty(len(ids), width, device=device) for _ in range(2))
    budget = BATCH.get(torch.device(device).type, BATCH["cpu"])
    for batch in batches([len(one) for one in ids], budget):
        some = [ids[at] for at in batch]
        places = torch.tensor(batch, device=device)
        first[places], form[places] = states(net, *words.padded(some, device))
        if advance is not None:
            advance(tokens=sum(map(len, some)))
    return first, form


def _told_limit(folder: Path) -> int:
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.is_file() else None
    return int(told) if told and 0 < told < UNLIMITED else UNLIMITED
