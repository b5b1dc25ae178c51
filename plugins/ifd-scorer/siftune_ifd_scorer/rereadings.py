"""Scores that are other readings of what `score ifd` has kept: no model is read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from siftune import Column, Context, Method, Outcome, Samples, hookimpl


class Perplexity(Method):
    """Perplexity of the response, exp of its mean loss, after what was asked or alone."""

    of: Annotated[Literal["conditioned", "alone"], "the response after what was asked, or alone"] = (
        "conditioned"
    )
    source: Annotated[str, "name of the scores that are read"] = "ifd"

    def needs(self) -> Sequence[str]:
        return [f"{self.source}.loss_{self.of}"]

    def gives(self) -> Sequence[Column]:
        # neither way is better: the most surprising responses are noise, the least are known already
        return [Column("perplexity", "perplexity")]

    @hookimpl
    def score(self, samples: Samples) -> Outcome:
        losses = samples.column(f"{self.source}.loss_{self.of}")
        known = ~np.isnan(losses)
        with np.errstate(over="ignore"):
            values = np.exp(losses)
        left_out = {int(at): f"no {self.source}.loss_{self.of}" for at in np.flatnonzero(~known)}
        failed = {
            int(at): "the perplexity is no number" for at in np.flatnonzero(known & ~np.isfinite(values))
        }
        return Outcome(values, left_out, failed)


class TShirt(Method):
    """Token-selective IFD (T-SHIRT, 2506.01317): exp of the mean difference of the two losses over the tokens
    where it is large, against all tokens of the view."""

    scope: ClassVar[Literal["rows", "view"]] = "view"

    share: Annotated[
        float, "share of all tokens that counts, those whose loss the instruction moves most"
    ] = 0.5
    source: Annotated[str, "name of the scores that are read, made with --keep-token-losses"] = "ifd"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"--share {self.share} is no share between 0 and 1")

    def needs(self) -> Sequence[str]:
        return [f"{self.source}.token_losses_{part}" for part in ("conditioned", "alone")]

    def gives(self) -> Sequence[Column]:
        return [
            Column("t-shirt", "ratio", "higher", below=1.0, at_least={"t-shirt.tokens": 5.0}),
            Column("t-shirt.tokens", "tokens"),
        ]

    @hookimpl
    def score(self, samples: Samples, run: Context) -> Outcome:
        given, alone = (samples.column(name) for name in self.needs())
        moved = [
            None if a is None or b is None else np.asarray(a, np.float64) - np.asarray(b, np.float64)
            for a, b in zip(given, alone, strict=True)
        ]
        known = [one for one in moved if one is not None]
        every = np.abs(np.concatenate(known)) if known else np.zeros(1)
        threshold = float(np.quantile(every, 1 - self.share))
        run.note(threshold=threshold)
        values, counts = np.full(len(samples), np.nan), np.zeros(len(samples))
        left_out: dict[int, str] = {}
        for at, one in enumerate(moved):
            if one is None:
                left_out[at] = f"no token losses of {self.source}"
                continue
            # all of them count where the threshold is nothing
            large = one[np.abs(one) > threshold] if self.share < 1 else one
            if len(large):
                values[at], counts[at] = np.exp(large.mean()), len(large)
            else:
                left_out[at] = f"no token whose loss moves by more than {threshold:.3g}"
        return Outcome({"t-shirt": values, "t-shirt.tokens": counts}, left_out)
