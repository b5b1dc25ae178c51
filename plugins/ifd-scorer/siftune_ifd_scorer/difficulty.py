"""IFD and r-IFD: how much what was asked helps a causal LM to foretell what was answered, and the reverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from siftune import Column, Context, Method, Outcome, Samples, UserError, hookimpl

from . import originals, pairs
from .pairs import Pair, Row

if TYPE_CHECKING:
    from siftune.models import Reader

Losses = tuple[np.ndarray, np.ndarray]  # of the same tokens, after what was asked and alone


class Difficulty(Method):
    """What IFD and r-IFD share: two passes over the same tokens, and the ratio of how hard both are."""

    requires: ClassVar[Sequence[str]] = ("model",)
    uses: ClassVar[Sequence[str]] = ("models", "readers", "encoding", "packing", "prompts")
    shard: ClassVar[int] = 128  # a kill loses seconds
    column: ClassVar[str]

    model: Annotated[str | None, "causal language model that reads the pairs"] = None
    template: Annotated[
        Literal["auto", "chat", "alpaca", "vicuna", "wiz", "plain", "none"] | None,
        "prompt template (default: the tokenizer's own chat template, else alpaca; or the reference's own)",
    ] = None
    definition: Annotated[
        Literal["ppl", "loss"] | None, "ratio of perplexities (default), or of mean losses (Cherry's)"
    ] = None
    reference: Annotated[
        Literal["cherry", "superfiltering", "reflection"] | None,
        "compute as this original program does, with its template, limit, prefixes and boundaries",
    ] = None
    max_length: Annotated[
        int | None, "longest input in tokens (default: the model's context, or the reference's own)"
    ] = None
    keep_token_losses: Annotated[
        bool, "keep the loss of every token, for perplexity, t-shirt and explain"
    ] = False
    attention: Annotated[Literal["sdpa", "flash"], "attention kernel; flash needs flash-attn installed"] = (
        "sdpa"
    )
    dtype: Annotated[Literal["float32", "bfloat16"] | None, "number format of the model"] = None
    device: Annotated[str | None, "where the model runs: cpu, cuda, cuda:1"] = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"--max-length {self.max_length} holds no pair")
        if self.reference is not None:
            originals.check(self.reference, self.template, reverse=self.column == "r-ifd")
        elif self.template == "none":
            raise ValueError(
                "--template none is the originals' bare join, and goes with --reference superfiltering"
            )

    def gives(self) -> Sequence[Column]:
        name = self.column
        columns = [
            self.range(),
            Column(f"{name}.loss_conditioned", "nats/token"),
            Column(f"{name}.loss_alone", "nats/token"),
            Column(f"{name}.tokens", "tokens"),
            Column(f"{name}.cut", "tokens"),
        ]
        if self.by_turn():
            columns += [
                Column(f"{name}.turns.{part}")
                for part in ("at", "ratio", "loss_conditioned", "loss_alone", "tokens")
            ]
        if self.keep_token_losses:
            columns += [Column(f"{name}.token_losses_{part}", "nats") for part in ("conditioned", "alone")]
            columns.append(Column(f"{name}.token_edges", "characters"))
        return columns

    def range(self) -> Column:
        """The ratio, and between which bounds it may choose."""
        raise NotImplementedError

    def by_turn(self) -> bool:
        """Whether every assistant turn is kept by itself."""
        return False

    def rows(self, samples: Samples, reader: Reader) -> list[Row]:
        """The pairs of every sample."""
        raise NotImplementedError

    def combined(self, turns: Sequence[Losses]) -> tuple[list[Losses], float]:
        """Which turns count, and the ratio over them."""
        return [turns[-1]], self.ratio(turns[-1])

    @hookimpl
    def score(self, samples: Samples, run: Context) -> Outcome:
        from siftune import models

        kernel = {"sdpa": "sdpa", "flash": "flash_attention_2"}[self.attention]
        reader = models.reader(str(self.model), dtype=self.dtype, device=self.device, attention=kernel)
        if self.reference is not None:  # the run may have filled in a template that is none of the program's
            try:
                originals.check(self.reference, self.template, reverse=self.column == "r-ifd")
            except ValueError as error:
                raise UserError(f"score {self.column}: {error}") from error
        rows = self.rows(samples, reader)
        read = [pair for row in rows if not isinstance(row, str) for _, pair in row]
        # one call for both passes: what they have in common is computed once, and batches are of one length
        losses = reader.token_losses(
            [p.conditioned for p in read] + [p.alone for p in read], advance=run.advance
        )
        found = iter(zip(losses[: len(read)], losses[len(read) :], strict=True))

        answers: list[dict[str, Any] | None] = [None] * len(samples)
        left_out: dict[int, str] = {}
        failed: dict[int, str] = {}
        for at, row in enumerate(rows):
            if isinstance(row, str):
                left_out[at] = row
                continue
            turns = [next(found) for _ in row]
            if not all(np.isfinite(one).all() for pair in turns for one in pair):
                failed[at] = f"the model gave a loss that is no number (in {reader.dtype})"
                continue
            try:
                answers[at] = self.told(row, turns)
            except ZeroDivisionError:
                left_out[at] = "the response alone is foretold without any loss, so there is no ratio"
            except OverflowError:
                failed[at] = "the ratio is too large for a number"
        names = [column.name for column in self.gives()]
        return Outcome({n: [None if a is None else a[n] for a in answers] for n in names}, left_out, failed)

    def told(self, row: Sequence[tuple[int, Pair]], turns: Sequence[Losses]) -> dict[str, Any]:
        """Every column of one sample."""
        name = self.column
        chosen, ratio = self.combined(turns)
        conditioned = np.concatenate([one[0] for one in chosen])
        alone = np.concatenate([one[1] for one in chosen])
        read = [pair for _, pair in row][-len(chosen) :]
        each = [(_mean(a), _mean(b)) for a, b in turns]
        return {
            name: ratio,
            f"{name}.loss_conditioned": _mean(conditioned),
            f"{name}.loss_alone": _mean(alone),
            f"{name}.tokens": len(conditioned),
            f"{name}.cut": sum(pair.cut for pair in read),
            f"{name}.turns.at": [turn for turn, _ in row],
            f"{name}.turns.ratio": [self.ratio(one) for one in turns],
            f"{name}.turns.loss_conditioned": [a for a, _ in each],
            f"{name}.turns.loss_alone": [b for _, b in each],
            f"{name}.turns.tokens": [len(one[0]) for one in turns],
            f"{name}.token_losses_conditioned": conditioned,
            f"{name}.token_losses_alone": alone,
            f"{name}.token_edges": [edge for pair in read for edge in pair.edges()],
        }

    def ratio(self, losses: Losses) -> float:
        """exp(L(y|x) - L(y)), the ratio of perplexities (Superfiltering, 2402.00530); or L(y|x) / L(y), the
        ratio of mean losses (Cherry, 2308.12032). Both cross 1 at the same place and rank differently."""
        given, alone = _mean(losses[0]), _mean(losses[1])
        definition = self.definition or ("loss" if self.reference == "cherry" else "ppl")
        # never exp over exp: a perplexity overflows long before the ratio does
        return given / alone if definition == "loss" else math.exp(given - alone)


def _mean(losses: np.ndarray) -> float:
    return float(losses.mean(dtype=np.float64))


class IFD(Difficulty):
    """Instruction-following difficulty: how much the instruction helps to foretell the response.

    Just below 1 is hard and still coherent, low is easy, above 1 the instruction does not help (mostly a
    mismatched pair), so the column chooses below 1 and from 10 scored tokens on.
    """

    column = "ifd"

    turns: Annotated[
        Literal["last", "mean", "pooled"],
        "of several assistant turns: the last one's ratio, the mean of all, or one ratio over all tokens",
    ] = "last"

    def range(self) -> Column:
        if self.reference == "cherry":  # its filter drops what is above 1, and 1 itself stays
            return Column("ifd", "ratio", "higher", below=math.nextafter(1.0, 2.0))
        least = {} if self.reference else {"ifd.tokens": 10.0}
        return Column("ifd", "ratio", "higher", below=1.0, at_least=least)

    def by_turn(self) -> bool:
        return self.reference is None

    def rows(self, samples: Samples, reader: Reader) -> list[Row]:
        if self.reference is not None:
            return originals.forward(self.reference, self.template, self.max_length, samples, reader)
        return pairs.forward(self.template, self.max_length, samples, reader, last=self.turns == "last")

    def combined(self, turns: Sequence[Losses]) -> tuple[list[Losses], float]:
        if self.turns == "last":
            return super().combined(turns)
        if self.turns == "mean":
            return list(turns), float(np.mean([self.ratio(one) for one in turns]))
        whole = (np.concatenate([a for a, _ in turns]), np.concatenate([b for _, b in turns]))
        return list(turns), self.ratio(whole)


class ReverseIFD(Difficulty):
    """Reverse IFD: how well the response lets the model recover the instruction (Selective Reflection-Tuning,
    2402.10110). Low is good: what was asked can be read off the answer."""

    column = "r-ifd"

    def range(self) -> Column:
        return Column("r-ifd", "ratio", "lower", below=1.0)

    def rows(self, samples: Samples, reader: Reader) -> list[Row]:
        if self.reference is not None:
            return originals.backward(self.template, self.max_length, samples, reader)
        return pairs.backward(self.template, self.max_length, samples, reader)
