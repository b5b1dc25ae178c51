"""Rendered texts become tokens, and which of them are exactly the response, by their character offsets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .prompts import Rendered

Ids = npt.NDArray[np.int64]
Span = tuple[int, int]

SURROGATES = re.compile("[\ud800-\udfff]")
UNLIMITED = 1 << 20  # tokenizers without a limit say 1e30


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text up to the last scored one, and which are scored: `ids[start:end]`, `start >= 1`.

    `offsets` are the characters of each scored token, counted from the beginning of the response; `head` is
    how many special tokens open the text; `cut` is how many scored tokens a length limit left out.
    """

    ids: Ids
    start: int
    end: int
    offsets: list[Span]
    head: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return self.end - self.start

    def alone(self) -> tuple[Encoded, Encoded]:
        """This, and its unconditional reading: the opening special tokens, then the same response tokens.

        Both score the same tokens. Without an opening token the first has no context alone and is scored in
        neither.
        """
        ids = np.concatenate([self.ids[: self.head], self.ids[self.start : self.end]])
        if self.head:
            return self, replace(self, ids=ids, start=self.head, end=len(ids))
        both = replace(self, start=min(self.start + 1, self.end), offsets=self.offsets[1:])
        return both, replace(both, ids=ids, start=1, end=max(len(ids), 1))


@lru_cache(maxsize=4)
def load_tokenizer(path: str, digest: str) -> Any:
    """The fast tokenizer in a folder; `digest` only tells one content of it from another."""
    from transformers import AutoTokenizer

    try:
        words = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as many kinds as there are broken files
        raise UserError(f"model {path!r}: its tokenizer cannot be read: {first_line(error)}") from error
    if not words.is_fast:
        raise UserError(
            f"model {path!r}: its tokenizer gives no character offsets (there is no tokenizer.json)"
        )
    words.backend_tokenizer.no_truncation()
    words.backend_tokenizer.no_padding()
    return words


def first_line(error: Exception) -> str:
    """An error of a library in one line: its kind, and how its message begins."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def clean(text: str) -> str:
    """Lone surrogates, which no tokenizer reads, as replacement characters, one for one: offsets stay."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


def context(config: Any, tokenizer: Any) -> int:
    """The longest input in tokens: what positions allow, and what the tokenizer says if it does."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    said = [*(getattr(text, name, None) for name in names), tokenizer.model_max_length]
    return min((int(n) for n in said if n and 0 < int(n) < UNLIMITED), default=2048)


def encode(tokenizer: Any, texts: Sequence[Rendered], special: bool, limit: int) -> list[Encoded]:
    """Tokenise, and find the tokens of the response. `special`: the tokenizer adds its special tokens (False:
    the text has them). What is longer than `limit` tokens is cut at the right."""
    words = tokenizer.backend_tokenizer
    found: list[Encoded] = []
    # in pieces: the tokenizer's own encodings take far more room than the ids
    for first in range(0, len(texts), 64):
        some = texts[first : first + 64]
        read = [clean(one.text[: one.end]) for one in some]
        pieces = words.encode_batch(read, add_special_tokens=special)
        for one, text, piece in zip(some, read, pieces, strict=True):
            ids, spans, head, start = _located(words, text, one.start, piece, special)
            if not head and ids and ids[0] == tokenizer.bos_token_id:
                head = 1  # a chat template writes it into the text
            found.append(_limited(ids, spans, head, start, one.start, limit))
    return found


def _located(
    words: Any, text: str, at: int, piece: Any, special: bool
) -> tuple[list[int], list[Span], int, int]:
    """Ids, spans, opening special tokens, and the place of the first token of what begins at `at`."""
    ids, spans, head = _tiled(piece)
    start = next((i for i in range(head, len(ids)) if spans[i][1] > at), len(ids))
    low = spans[start][0] if start < len(ids) else at
    # A vocabulary writes a word with the blank before it; any other token that reaches over the boundary
    # holds words of the prompt, so there the boundary is forced.
    if low < at and text[low:at] != " ":
        ids, spans, head = _tiled(words.encode(text[:at], add_special_tokens=special))
        start = len(ids)
        more, places, lead = _tiled(words.encode(text[at:], add_special_tokens=False))
        ids = [*ids, *more[lead:]]
        spans += [(a + at, b + at) for a, b in places[lead:]]
    return ids, spans, head, start


def _limited(ids: list[int], spans: list[Span], head: int, start: int, at: int, limit: int) -> Encoded:
    start = max(start, 1)  # the first token of all has nothing before it
    end = max(min(len(ids), limit), start)
    if start >= limit:  # the prompt fills what is read
        return Encoded(np.array(ids[:start], np.int64), start, start, [], head, max(len(ids) - start, 0))
    offsets = [(max(low - at, 0), high - at) for low, high in spans[start:end]]
    kept = np.array(ids[:end], np.int64)
    return Encoded(kept, start, max(len(kept), start), offsets, head, max(len(ids) - end, 0))


def _tiled(piece: Any) -> tuple[list[int], list[Span], int]:
    """Ids and spans without what a tokenizer puts at the end, and how many special tokens open the text.

    Byte-level tokenizers may trim the blank before a word off its offset; it is given back here.
    """
    ids: list[int] = piece.ids
    added: list[int] = piece.special_tokens_mask
    head, end = 0, len(ids)
    while head < end and added[head]:
        head += 1
    while end > head and added[end - 1]:
        end -= 1
    spans: list[Span] = [(0, 0)] * head
    reached = 0
    for low, high in piece.offsets[head:end]:
        high = max(high, reached)
        spans.append((min(low, reached), high))
        reached = high
    return ids[:end], spans, head
