"""The reader of causal language models: how surprising each token of a response is, and nothing twice.

The body runs once over many rows in batches of a token budget; the head runs only where a token is scored, a
few positions at a time, so that no tensor of batch x length x vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import encoding, packing
from .encoding import UNLIMITED, Encoded, Ids, Span, clean, load_tokenizer
from .errors import UserError
from .prompts import Rendered

__all__ = ["UNLIMITED", "Encoded", "Reader", "clean", "load_tokenizer", "reader"]

Floats = npt.NDArray[np.float32]
R = TypeVar("R", "Encoded", "_Text")
F = TypeVar("F")

# Logits that exist at once, in float32: on a processor what its caches hold, but no fewer than 128 states, below which
# the product of a large vocabulary takes up to twice the time; elsewhere what keeps the device busy.
HEAD_BYTES, HEAD_STATES, HEAD_BYTES_ELSEWHERE = 4 << 20, 128, 256 << 20


@dataclass
class _Text:
    """A text to read once, and the spans of it that are scored, each with the rows that asked for it."""

    ids: Ids
    spans: dict[Span, list[int]]


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
        _last = (
            key,
            Reader(models.folder(model), name=str(model), dtype=kind, device=where, attention=attention),
        )
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
        self.context = encoding.context(self.model.config, self.tokenizer)
        self.body, self.head = _parts(self.model, name)
        size = int(self.model.config.get_text_config().vocab_size)
        self.packed = device.type == "cpu" and packing.works(self.body, size)
        if device.type == "cpu":
            packing.keep_freed_memory()
        # tokens in a batch. A processor gains by what no longer starts anew for every row, and loses by what
        # no longer fits into its caches; a GPU only gains.
        self.budget = (1024 if self.packed else 512) if device.type == "cpu" else 16384

    def encode(self, texts: Sequence[Rendered], special: bool, max_length: int | None = None) -> list[Encoded]:
        """Tokenise, and find the tokens that are exactly the response's characters, by their offsets.

        `special`: the tokenizer adds its special tokens (False: the text has them). Longer than `max_length`
        (default and most: the context) is cut at the right, and `cut` says how many tokens.
        """
        return encoding.encode(self.tokenizer, texts, special, min(max_length or self.context, self.context))

    def token_losses(self, encoded: Sequence[Encoded], *, advance: Callable[..., None] | None = None) -> list[Floats]:
        """Negative log-likelihood, in nats, of each scored token given all before it: an array for each row.

        What is read twice is computed once: equal texts, and texts that begin another (a conversation up to
        an earlier turn). The value of a row does not depend on its neighbours or its place.
        `advance(tokens=n)` is called for every batch.
        """
        losses: list[Floats] = [np.zeros(0, np.float32)] * len(encoded)
        texts = _shared(encoded)
        batches = self._batches([len(text.ids) - 1 for text in texts])
        with self._workers() as each:
            for read, answer in each(lambda batch: self._read([texts[i] for i in batch]), batches):
                for text, found in zip(read, answer, strict=True):
                    for places, one in zip(text.spans.values(), found, strict=True):
                        for place in places:
                            losses[place] = one
                if advance is not None:
                    advance(tokens=sum(len(text.ids) for text in read))
        return losses

    def hidden_states(
        self, encoded: Sequence[Encoded], *, advance: Callable[..., None] | None = None
    ) -> Iterator[tuple[int, Floats]]:
        """Last hidden states of every token of a row: yields `(position, float32 (tokens, width))`, shortest
        rows first. Padding is taken off, and a row does not depend on the others."""
        import torch

        def states(rows: Sequence[Encoded]) -> list[Floats]:
            with torch.inference_mode():
                hidden, starts = self._body([row.ids for row in rows])
                found = hidden.float().cpu().numpy()
            return [found[start : start + len(row.ids)] for start, row in zip(starts, rows, strict=True)]

        full = [i for i, one in enumerate(encoded) if len(one.ids)]
        for batch in self._batches([len(encoded[i].ids) for i in full]):
            rows = [full[i] for i in batch]
            yield from zip(rows, self._halving([encoded[i] for i in rows], states), strict=True)
            if advance is not None:
                advance(tokens=sum(len(encoded[i].ids) for i in rows))

    def _read(self, texts: Sequence[_Text]) -> tuple[Sequence[_Text], list[list[Floats]]]:
        return texts, self._halving(texts, self._losses)

    @contextmanager
    def _workers(self) -> Iterator[Callable[..., Iterator[Any]]]:
        """A way to map over batches: on a processor a thread for each core, with a batch of its own.

        Products of this size gain little from two cores, and a batch on each gains all of it.
        """
        import torch

        threads = torch.get_num_threads()
        if not self.packed or threads == 1:
            yield map
            return
        try:
            with (
                packing.switched(self.body.config),
                ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                yield pool.map
        finally:
            torch.set_num_threads(threads)

    def _losses(self, texts: Sequence[_Text]) -> list[list[Floats]]:
        import torch

        spans = [(at, start, end) for at, text in enumerate(texts) for start, end in text.spans]
        with torch.inference_mode():
            # the last token is only foretold, never read
            hidden, starts = self._body([text.ids[:-1] for text in texts])
            wanted = np.concatenate(
                [np.arange(starts[at] + start - 1, starts[at] + end - 1) for at, start, end in spans]
            )
            targets = np.concatenate([texts[at].ids[start:end] for at, start, end in spans])
            hidden = hidden[torch.from_numpy(wanted).to(self.device)]
            found = self._head(hidden, torch.from_numpy(targets).to(self.device)).cpu().numpy()
        pieces = iter(np.split(found, np.cumsum([end - start for _, start, end in spans])[:-1]))
        return [[next(pieces) for _ in text.spans] for text in texts]

    def _body(self, ids: Sequence[Ids]) -> tuple[Any, Sequence[int]]:
        """Last hidden states of all rows, flat `(n, width)`, and where each row starts in them.

        A processor reads rows end to end. Elsewhere they are padded at the right, where a causal model does
        not look, so no mask is needed and a row cannot feel its neighbours.
        """
        import torch

        if self.packed:
            ends = np.cumsum([len(one) for one in ids]).tolist()
            return packing.body(self.body, ids), [0, *ends[:-1]]
        longest = max(len(one) for one in ids)
        padded = np.zeros((len(ids), longest), np.int64)
        for row, one in zip(padded, ids, strict=True):
            row[: len(one)] = one
        hidden = self.body(input_ids=torch.from_numpy(padded).to(self.device), use_cache=False).last_hidden_state
        return hidden.flatten(0, 1), range(0, len(ids) * longest, longest)

    def _head(self, hidden: Any, targets: Any) -> Any:
        """Loss of each target under the state that foretells it, `(n,)` float32, a few states at a time."""
        import torch

        room = HEAD_BYTES if self.device.type == "cpu" else HEAD_BYTES_ELSEWHERE
        step = max(HEAD_STATES, room // (4 * self.model.config.get_text_config().vocab_size))
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for at in range(0, len(targets), step):
            logits = self.head(hidden[at : at + step]).float()
            right = logits.gather(1, targets[at : at + step, None])[:, 0]
            # log-sum-exp in place: a second tensor of this size costs as much as the sum
            top = logits.amax(1, keepdim=True)
            losses[at : at + step] = logits.sub_(top).exp_().sum(1).log_() + top[:, 0] - right
        return losses

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Positions in batches of near-equal length, shortest first: at most `budget` tokens, padding too."""
        batch: list[int] = []
        total = 0
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            total = total + lengths[i] if self.packed else (len(batch) + 1) * lengths[i]
            if batch and total > self.budget:
                yield batch
                batch, total = [], lengths[i]
            batch.append(i)
        if batch:
            yield batch

    def _halving(self, rows: Sequence[R], work: Callable[[Sequence[R]], list[F]]) -> list[F]:
        """Do the work; where memory runs out, halve the batch (and the budget of those to come) and go on."""
        try:
            return work(rows)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(rows) == 1:
                raise UserError(
                    f"model {self.name}: one row of {len(rows[0].ids):,} tokens does not fit in memory; "
                    "give --max-length"
                ) from error
        # out of the except clause: there the error still holds the tensors
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
        self.budget = max(self.budget // 2, 64)
        half: int = len(rows) // 2
        return [*self._halving(rows[:half], work), *self._halving(rows[half:], work)]


def _out_of_memory(error: BaseException) -> bool:
    """A GPU has an error of its own for it; a processor's allocator only says so."""
    import torch

    said = str(error).lower()
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "allocate memory" in said or "out of memory" in said


def _shared(encoded: Sequence[Encoded]) -> list[_Text]:
    """The texts that have to be read for all rows: one that begins another is read with it."""
    texts: list[_Text] = []
    scored = [i for i, one in enumerate(encoded) if len(one)]
    # big-endian bytes sort like the ids themselves: right behind a text stand those that it begins
    for i in sorted(scored, key=lambda i: encoded[i].ids.astype(">i4").tobytes(), reverse=True):
        one = encoded[i]
        if not (texts and np.array_equal(texts[-1].ids[: len(one.ids)], one.ids)):
            texts.append(_Text(one.ids, {}))
        texts[-1].spans.setdefault((one.start, one.end), []).append(i)
    return texts


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and reports of transformers: what is wrong with a model is said in one sentence."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(path: Path, name: str, dtype: Any, attention: str) -> Any:
    """The model, whole: nothing missing, nothing left over, no code of its own, safetensors only."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                # unsaid, every model takes the best that it has, which for a few is not sdpa
                attn_implementation=None if attention == "sdpa" else attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"model {name!r} cannot be loaded: {encoding.first_line(error)}") from error
    for what, said in (
        ("missing_keys", "lacks weights"),
        ("mismatched_keys", "has weights of another shape"),
        ("unexpected_keys", "has weights that its configuration does not know"),
    ):
        if found := sorted(str(key) for key in info.get(what, ())):
            raise UserError(f"model {name!r} {said}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}")
    return model


def _parts(model: Any, name: str) -> tuple[Any, Any]:
    """Body and head of the model, tried out on a few tokens: the head over the body has to be the model, and
    a token must not change what stands before it."""
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
        for way in (_finished(model.config.get_text_config(), head), head):
            if torch.allclose(way(states)[0].float(), whole, atol=loose * float(whole.abs().max())):
                return body, way
    raise UserError(f"model {name!r}: its logits are not its head over its body; this reader cannot read it")


def _finished(config: Any, head: Any) -> Any:
    """The head with what some models do to its logits after it, as their configurations say."""
    import torch

    up, down = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    scale, cap = (up or 1.0) / (down or 1.0), getattr(config, "final_logit_softcapping", None)
    if scale == 1.0 and not cap:
        return head

    def finished(states: Any) -> Any:
        logits = head(states).float() * scale
        return cap * torch.tanh(logits / cap) if cap else logits

    return finished
