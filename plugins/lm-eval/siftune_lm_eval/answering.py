"""The model as lm-eval asks it: its own HFLM, but for the bundled group, which siftune's reader answers."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from siftune import UserError
from siftune.prompts import Rendered

if TYPE_CHECKING:
    from siftune.models import Encoded, Reader

BUNDLED = ("quickstart_choice", "quickstart_loss")


def model(reader: Reader, special: bool, batch_size: int | str, advance: Callable[..., None]) -> Any:
    """An lm-eval model over a loaded reader.

    HFLM moves blanks at the end of a context to what is scored. Published figures are made that way, so tasks
    in general are left to it. The bundled group has the response alone scored, by the tokens that training
    and `score` see. `special`: the tokenizer opens a text with its special tokens.
    """
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):  # type: ignore[misc, unused-ignore]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            ours = [i for i, request in enumerate(requests) if request.task_name in BUNDLED]
            mine = set(ours)
            others = [i for i in range(len(requests)) if i not in mine]
            answers: dict[int, tuple[float, bool]] = {}
            if others:
                told = super().loglikelihood([requests[i] for i in others], disable_tqdm)
                answers |= dict(zip(others, told, strict=True))
            told = _likelihoods(
                reader, special, [requests[i].args for i in ours], self.prefix_token_id, advance
            )
            return [one for _, one in sorted((answers | dict(zip(ours, told, strict=True))).items())]

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            advance(tokens=inps.numel())
            return super()._model_call(inps, *args, **kwargs)

    with quiet():
        return Model(
            pretrained=reader.model,
            tokenizer=reader.tokenizer,
            batch_size=batch_size,
            max_length=reader.context,
            softmax_dtype="float32",
        )


def _likelihoods(
    reader: Reader, special: bool, pairs: Sequence[tuple[str, str]], prefix: int, advance: Callable[..., None]
) -> list[tuple[float, bool]]:
    """Log-likelihood, in nats, of each continuation after its context; whether it is greedy is not asked."""
    told = [Rendered(before + said, len(before), len(before + said)) for before, said in pairs if before]
    after = iter(reader.encode(told, special))
    encoded = [next(after) if before else _alone(reader, said, prefix) for before, said in pairs]
    longest = max((len(one.ids) + one.cut for one in encoded), default=0)
    if any(one.cut for one in encoded):
        raise UserError(
            f"evaluate lm-eval: the group quickstart has rows of {longest} tokens, and {reader.name} reads "
            f"{reader.context}; name other tasks with --tasks"
        )
    losses = reader.token_losses(encoded, advance=advance)
    return [(-float(np.sum(loss, dtype=np.float64)), False) for loss in losses]


def _alone(reader: Reader, said: str, prefix: int) -> Encoded:
    """A response without its context, after the token that opens every text."""
    from siftune.models import Encoded

    (plain,) = reader.encode([Rendered(said, 0, len(said))], special=False)
    ids = np.concatenate([[prefix], plain.ids])
    return Encoded(ids, 1, len(ids), [(0, 0)] * (len(ids) - 1), 1, plain.cut)


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval draws bars, prints and logs; the run has its own progress, and what it prints is a result."""
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    drawn = tqdm.__init__

    def undrawn(self: Any, *args: Any, **kwargs: Any) -> None:
        drawn(self, *args, **{**kwargs, "disable": True})

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # bootstraps in this process: forks after threads and CUDA do not end well
    alone = mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"})
    try:
        with mock.patch.object(tqdm, "__init__", undrawn), redirect_stdout(io.StringIO()), alone:
            yield
    finally:
        logger.setLevel(level)
