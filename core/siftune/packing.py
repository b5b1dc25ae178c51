"""Rows laid end to end: no padding, attention inside each row, one large product for all of them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

NAME = "siftune_rows"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
Ids = npt.NDArray[np.int64]

_lock = threading.Lock()
_inside: dict[int, tuple[int, str]] = {}  # how many threads read with a configuration, and what it said before
_ends: ContextVar[Sequence[int]] = ContextVar("ends of the rows that are being read")

# what models hand to any attention and what says nothing of how it is to be computed
HARMLESS = frozenset({"position_ids", "cache_position", "position_embeddings", "output_attentions", "use_cache"})


def keep_freed_memory() -> None:
    """Let glibc keep what is freed between two batches, up to 256 MB: handing every activation back to the
    system and asking for it again costs a fifth of the time. Elsewhere nothing happens."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)
        libc.mallopt(M_MMAP_THRESHOLD, 64 << 20)
    except (OSError, AttributeError):
        pass


def body(trunk: Any, rows: Sequence[Ids]) -> Any:
    """Last hidden states of all rows, one after the other: `(tokens, width)`."""
    import torch

    lengths = [len(one) for one in rows]
    ids = torch.from_numpy(np.concatenate(rows))
    places = torch.cat([torch.arange(length) for length in lengths])
    token = _ends.set(np.cumsum(lengths).tolist())
    try:
        with switched(trunk.config):
            return trunk(input_ids=ids[None], position_ids=places[None], use_cache=False).last_hidden_state[0]
    finally:
        _ends.reset(token)


def works(trunk: Any, size: int) -> bool:
    """Whether two rows read together give what each gives alone: not with recurrent layers, with attention of
    the model's own making, or with windows that a short trial would not show."""
    import torch

    config = trunk.config.get_text_config()
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    rows = [np.arange(3, 12) * 5 % size, np.arange(1, 8) * 11 % size]
    with torch.inference_mode():
        alone = [trunk(input_ids=torch.from_numpy(one)[None], use_cache=False).last_hidden_state[0] for one in rows]
        try:
            together = body(trunk, rows)
        except Exception:  # whatever a model does not take, it is read the ordinary way
            return False
    expected = torch.cat(alone).float()
    loose = (1e-4 if together.dtype == torch.float32 else 0.05) * float(expected.abs().max())
    return together.shape == expected.shape and torch.allclose(together.float(), expected, atol=loose)


@contextmanager
def switched(config: Any) -> Iterator[None]:
    """The model reads rows end to end; outside of this it is as it was. Several threads may be inside."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    with _lock:
        inside, before = _inside.get(id(config), (0, config._attn_implementation))
        _inside[id(config)] = (inside + 1, before)
        config._attn_implementation = NAME
    try:
        yield
    finally:
        with _lock:
            inside, before = _inside.pop(id(config))
            if inside > 1:
                _inside[id(config)] = (inside - 1, before)
            else:
                config._attn_implementation = before


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: Any = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Any, None]:
    """Causal attention inside each row: `(1, heads, tokens, width)` to `(1, tokens, heads, width)`."""
    from torch.nn.functional import scaled_dot_product_attention

    unknown = {name for name, what in more.items() if what is not None and what is not True} - HARMLESS
    if unknown or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(sorted(unknown)) or 'a mask'}")
    share = query.shape[1] // key.shape[1]
    if share > 1:
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    start = 0
    for end in _ends.get():
        one = slice(start, end)
        seen = scaled_dot_product_attention(
            query[:, :, one], key[:, :, one], value[:, :, one], is_causal=True, scale=scaling
        )
        out[:, one] = seen.transpose(1, 2)
        start = end
    return out, None
