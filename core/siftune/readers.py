"""The reader of causal language models: how surprising each token of a response is, and nothing twice.

Bodies run once over many rows in batches of a token budget; the head runs only where a token is scored, a few
positions at a time, so that no tensor of batch x length x vocabulary ever exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .prompts import Rendered

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]

SURROGATES = re.compile("[\ud800-\udfff]")
HEAD_BYTES = 8 << 20  # logits that exist at once, in float32
UNLIMITED = 1 << 20  # tokenizers without a limit say 1e30


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text up to the last scored one, and which are scored: `ids[start:end]`, with `start >= 1`.

    `offsets` are the characters of each scored token, counted from the beginning of the response; `head` is how
    many special tokens open the text; `cut` is how many scored tokens a length limit left out.
    """

    ids: npt.NDArray[np.int64]
    start: int
    end: int
    offsets: list[Span]
    head: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return self.end - self.start

    def alone(self) -> tuple[Encoded, Encoded]:
        """This and its unconditional reading (the opening special tokens, then the same response tokens), both
        scoring the same tokens. Without an opening token the first has no context alone and is scored in neither."""
        ids = np.concatenate([self.ids[: self.head], self.ids[self.start : self.end]])
        if self.head:
            return self, replace(self, ids=ids, start=self.head, end=len(ids))
        both = replace(self, start=min(self.start + 1, self.end), offsets=self.offsets[1:])
        return both, replace(both, ids=ids, start=1, end=max(len(ids), 1))


def clean(text: str) -> str:
    """Lone surrogates, which no tokenizer reads, as replacement characters: one for one, so offsets stay."""
    return text if text.isascii() else SURROGATES.sub("\ufffd", text)


@lru_cache(maxsize=4)
def load_tokenizer(path: str, digest: str) -> Any:
    """The fast tokenizer in a folder; `digest` only tells one content of it from another."""
    from transformers import AutoTokenizer

    try:
        words = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"model {path!r}: its tokenizer cannot be read: {_first_line(error)}") from error
    if not words.is_fast:
        raise UserError(f"model {path!r}: its tokenizer gives no character offsets (it has no tokenizer.json)")
    words.backend_tokenizer.no_truncation()
    words.backend_tokenizer.no_padding()
    return words


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


_last: tuple[tuple[str, ...], Reader] | None = None


def reader(model: str, *, dtype: str | None = None, device: str | None = None, attention: str = "sdpa") -> Reader:
    """A causal LM ready to read; the last one is kept, so that steps of one run share it.

    dtype: "float32" on a processor and "bfloat16" on a GPU unless said. device: a GPU where there is one.
    Raises UserError for a model that cannot be loaded whole, has code of its own, or sees what comes after.
    """
    global _last
    import torch

    from . import models

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = dtype or ("float32" if where.type == "cpu" else "bfloat16")
    key = (models.digest(model), kind, str(where), attention)
    if _last is None or _last[0] != key:
        _last = None  # two large models would not fit at once
        _last = (key, Reader(models.folder(model), name=str(model), dtype=kind, device=where, attention=attention))
    return _last[1]


class Reader:
    """A causal language model and its tokenizer: `context` is the longest input in tokens."""

    def __init__(self, path: Path, *, name: str, dtype: str, device: Any, attention: str) -> None:
        import torch

        from . import models

        self.name, self.dtype, self.device = name, dtype, device
        self.tokenizer = models.tokenizer(str(path))
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise UserError(f"dtype {dtype!r}: take float32 or bfloat16")
        self.model = _load(path, name, kind, attention).to(device).eval()
        self.context = _context(self.model.config, self.tokenizer)
        # rows are sorted by length, so a batch pads little; on a processor a batch gains little either
        self.budget = 512 if device.type == "cpu" else 32768
        self.body, self.head = _parts(self.model, name)

    # ---- text to tokens -------------------------------------------------------------------------------------

    def encode(
        self, texts: Sequence[Rendered], special: bool, max_length: int | None = None
    ) -> list[Encoded]:
        """Tokenise, and find the tokens that are exactly the response's characters, by their offsets.

        `special`: the tokenizer adds its special tokens (False: the text has them). Longer than `max_length`
        (default and most: the context) is cut at the right, and `cut` says how much of the response that took.
        """
        limit = min(max_length or self.context, self.context)
        words = self.tokenizer.backend_tokenizer
        read = [clean(one.text[: one.end]) for one in texts]
        found: list[Encoded] = []
        # in pieces: the tokenizer's own encodings take far more room than the ids
        for first in range(0, len(texts), 64):
            pieces = words.encode_batch(read[first : first + 64], add_special_tokens=special)
            for one, text, piece in zip(texts[first : first + 64], read[first : first + 64], pieces, strict=True):
                found.append(self._located(one, text, piece, special, limit))
        return found

    def _located(self, one: Rendered, text: str, piece: Any, special: bool, limit: int) -> Encoded:
        words = self.tokenizer.backend_tokenizer
        ids, spans, head = _tiled(piece)
        first = next((i for i in range(head, len(ids)) if spans[i][1] > one.start), len(ids))
        low = spans[first][0] if first < len(ids) else one.start
        # A vocabulary writes a word with the blank before it; any other token that reaches over the boundary
        # holds words of the prompt, so there the boundary is forced.
        if low < one.start and text[low : one.start] != " ":
            ids, spans, head = _tiled(words.encode(text[: one.start], add_special_tokens=special))
            more, places, lead = _tiled(words.encode(text[one.start :], add_special_tokens=False))
            first = len(ids)
            ids = [*ids, *more[lead:]]
            spans += [(a + one.start, b + one.start) for a, b in places[lead:]]
        if not head and ids and ids[0] == self.tokenizer.bos_token_id:
            head = 1  # a chat template writes it into the text
        first = max(first, 1)  # the first token of all has nothing before it
        whole = len(ids)
        end = max(min(whole, limit), first)
        offsets = [(max(a - one.start, 0), b - one.start) for a, b in spans[first:end]]
        kept = np.array(ids[:end], np.int64)
        if first >= limit:  # the prompt fills the context
            return Encoded(kept, first, first, [], head, max(whole - first, 0))
        return Encoded(kept, first, max(len(kept), first), offsets, head, max(whole - end, 0))

    # ---- tokens to losses -----------------------------------------------------------------------------------

    def token_losses(
        self, encoded: Sequence[Encoded], *, advance: Callable[..., None] | None = None
    ) -> list[Floats]:
        """Negative log-likelihood, in nats, of every scored token given all before it: float32, one array a row.

        Equal readings are computed once. The value of a row does not depend on its neighbours or its place.
        `advance(tokens=n)` is called for every batch.
        """
        losses: list[Floats] = [np.zeros(0, np.float32)] * len(encoded)
        same: dict[tuple[bytes, int], list[int]] = {}
        for i, one in enumerate(encoded):
            if len(one):
                same.setdefault((one.ids.tobytes(), one.start), []).append(i)
        first = [places[0] for places in same.values()]
        for batch in _batches([len(encoded[i].ids) - 1 for i in first], self.budget):
            rows = [first[i] for i in batch]
            for i, found in zip(rows, self._halving([encoded[j] for j in rows], self._losses), strict=True):
                losses[i] = found
            if advance is not None:
                advance(tokens=sum(len(encoded[i].ids) for i in rows))
        for places in same.values():
            for i in places[1:]:
                losses[i] = losses[places[0]]
        return losses

    def _losses(self, rows: Sequence[Encoded]) -> list[Floats]:
        import torch

        with torch.inference_mode():
            # the last token is only foretold, never read
            hidden = self._body([row.ids[:-1] for row in rows])
            wanted = torch.cat([hidden[i, row.start - 1 : row.end - 1] for i, row in enumerate(rows)])
            del hidden
            targets = torch.from_numpy(np.concatenate([row.ids[row.start : row.end] for row in rows]))
            found = self._head(wanted, targets.to(self.device)).cpu().numpy()
        return np.split(found, np.cumsum([len(row) for row in rows])[:-1])

    def _body(self, ids: Sequence[npt.NDArray[np.int64]]) -> Any:
        """Last hidden states `(rows, longest, width)`. Padding stands at the right, where a causal model does not
        look, so no mask is needed and a row cannot feel its neighbours."""
        import torch

        longest = max(len(one) for one in ids)
        padded = np.zeros((len(ids), longest), np.int64)
        for row, one in zip(padded, ids, strict=True):
            row[: len(one)] = one
        return self.body(input_ids=torch.from_numpy(padded).to(self.device), use_cache=False).last_hidden_state

    def _head(self, hidden: Any, targets: Any) -> Any:
        """Loss of each target under the state that foretells it, `(n,)` float32, a few states at a time."""
        import torch

        step = max(16, HEAD_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for at in range(0, len(targets), step):
            logits = self.head(hidden[at : at + step]).float()
            right = logits.gather(1, targets[at : at + step, None])[:, 0]
            losses[at : at + step] = torch.logsumexp(logits, 1) - right
        return losses

    def hidden_states(
        self, encoded: Sequence[Encoded], *, advance: Callable[..., None] | None = None
    ) -> Iterator[tuple[int, Floats]]:
        """Last hidden states of every token of a row: yields `(position, float32 (tokens, width))`, shortest rows
        first. Padding is taken off, and a row does not depend on the others."""
        import torch

        def states(rows: Sequence[Encoded]) -> list[Floats]:
            with torch.inference_mode():
                hidden = self._body([row.ids for row in rows]).float().cpu().numpy()
            return [hidden[i, : len(row.ids)] for i, row in enumerate(rows)]

        full = [i for i, one in enumerate(encoded) if len(one.ids)]
        for batch in _batches([len(encoded[i].ids) for i in full], self.budget):
            rows = [full[i] for i in batch]
            yield from zip(rows, self._halving([encoded[i] for i in rows], states), strict=True)
            if advance is not None:
                advance(tokens=sum(len(encoded[i].ids) for i in rows))

    def _halving(self, rows: Sequence[Encoded], work: Callable[[Sequence[Encoded]], list[Floats]]) -> list[Floats]:
        """Do the work; where memory runs out, halve the batch (and the budget of those to come) and go on."""
        import torch

        try:
            return work(rows)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(rows) == 1:
                raise UserError(
                    f"model {self.name}: one row of {len(rows[0].ids):,} tokens does not fit in memory; "
                    "give --max-length"
                ) from error
        # out of the except clause: there the error still holds the tensors
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.budget = max(self.budget // 2, 64)
        half = len(rows) // 2
        return [*self._halving(rows[:half], work), *self._halving(rows[half:], work)]


def _tiled(piece: Any) -> tuple[list[int], list[Span], int]:
    """Ids and character spans without what a tokenizer puts at the end, and how many special tokens open the text.

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
        spans.append((min(low, reached), max(high, reached)) if high <= reached else (min(low, reached), high))
        reached = max(reached, high)
    return ids[:end], spans, head


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in batches of near-equal length, shortest first, each at most `budget` tokens with its padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _context(config: Any, tokenizer: Any) -> int:
    """The longest input: what positions allow, and what the tokenizer says where it says anything."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    said = [getattr(text, name, None) for name in names]
    limits = [int(n) for n in [*said, tokenizer.model_max_length] if n and 0 < int(n) < UNLIMITED]
    return min(limits, default=2048)


def _load(path: Path, name: str, dtype: Any, attention: str) -> Any:
    """The model, whole: nothing missing, nothing left over, no code of its own, safetensors only."""
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
    for what, said in (
        ("missing_keys", "lacks weights"),
        ("mismatched_keys", "has weights of another shape"),
        ("unexpected_keys", "has weights that its configuration does not know"),
    ):
        if found := sorted(str(key) for key in info.get(what, ())):
            raise UserError(f"model {name!r} {said}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}")
    return model


def _parts(model: Any, name: str) -> tuple[Any, Any]:
    """Body and head of the model, tried out on a few tokens: the head over the body has to be the model, and a
    token must not change what stands before it."""
    import torch

    body, head = model.base_model, model.get_output_embeddings()
    size = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(8) * 7 % size)[None].to(model.device)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % size
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[0].float()
        states = body(input_ids=ids, use_cache=False).last_hidden_state
        changed = body(input_ids=other, use_cache=False).last_hidden_state
        loose = 1e-3 if states.dtype == torch.float32 else 0.1
        if not torch.allclose(states[0, :-1], changed[0, :-1], atol=loose * float(states.abs().max())):
            raise UserError(f"model {name!r} sees the tokens that come after; a causal language model is needed")
        if torch.allclose(head(states)[0].float(), whole, atol=loose * float(whole.abs().max())):
            return body, head
    return _capped(model, name, whole, head(states)[0].float(), body, head)


def _capped(model: Any, name: str, whole: Any, plain: Any, body: Any, head: Any) -> tuple[Any, Any]:
    """Models that scale or cap their logits say how in their configuration."""
    import torch

    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def finished(logits: Any) -> Any:
        logits = logits * scale
        return cap * torch.tanh(logits / cap) if cap else logits

    if not torch.allclose(finished(plain), whole, atol=1e-2 * float(whole.abs().max())):
        raise UserError(f"model {name!r}: its logits are not its head over its body; this reader cannot read it")
    return body, lambda states: finished(head(states))
