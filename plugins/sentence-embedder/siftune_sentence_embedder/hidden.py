"""embed hidden: one vector per sample from the last hidden states of a causal LM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from siftune import Context, Method, Outcome, Samples, hookimpl, models, prompts

from .texts import View

Pooling = Literal["weighted", "mean", "last"]


class Hidden(Method):
    """A vector per sample from a causal LM: its last hidden states, pooled over the tokens."""

    requires: ClassVar[Sequence[str]] = ("model",)
    shard: ClassVar[int] = 256
    uses: ClassVar[Sequence[str]] = ("prompts", "readers")

    model: Annotated[str | None, "causal LM that reads the samples"] = None
    template: Annotated[str | None, "prompt template"] = None
    view: Annotated[View, "what of a sample is read; prompts alone select worse"] = "full"
    pooling: Annotated[Pooling, "later tokens weigh more (RDS+), all the same, or the last alone"] = (
        "weighted"
    )
    normalize: Annotated[bool, "scale every vector to length 1"] = True
    half: Annotated[bool, "keep the vectors in float16: half the disk, three digits"] = False
    max_length: Annotated[int | None, "tokens read of a text, at most the model's context"] = None
    dtype: Annotated[str | None, "of the model's arithmetic"] = None
    device: Annotated[str | None, "where the model runs"] = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError("--max-length is at least 1")

    @hookimpl
    def embed(self, samples: Samples, run: Context) -> Any:
        assert self.model is not None
        reader = models.reader(self.model, dtype=self.dtype, device=self.device)
        how = prompts.template(self.template, reader.tokenizer)
        texts: list[prompts.Rendered] = []
        left_out: dict[int, str] = {}
        for at, sample in enumerate(samples):
            try:
                said = self._text(sample, how)
            except (prompts.Refused, IndexError) as error:
                said, left_out[at] = "", str(error) or "no response"
            if not said.strip():
                left_out.setdefault(at, f"empty {self.view}")
            texts.append(prompts.Rendered(said, 0, len(said)))
        read = [at for at in range(len(samples)) if at not in left_out]
        # a response alone has no template around it, so the tokenizer's own special tokens open it
        special = how.special or self.view == "response"
        encoded = reader.encode([texts[at] for at in read], special, self.max_length)
        run.note(cut=run.figures.get("cut", 0) + sum(one.cut > 0 for one in encoded))
        vectors = np.zeros((len(samples), reader.model.config.get_text_config().hidden_size), np.float32)
        for at, states in reader.hidden_states(encoded, advance=run.advance):
            vectors[read[at]] = pooled(states, self.pooling)
        if self.normalize:
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            np.divide(vectors, norms, out=vectors, where=norms > 0, casting="same_kind")
        return Outcome(vectors.astype(np.float16) if self.half else vectors, left_out=left_out)

    def _text(self, sample: Any, how: prompts.Template) -> str:
        if self.view == "response":
            return str(sample.response)
        pair = how.pair(sample)
        return pair.text if self.view == "full" else pair.text[: pair.start]


def pooled(states: npt.NDArray[np.float32], how: str) -> npt.NDArray[np.float64]:
    """One vector out of the states of a text's tokens `(tokens, width)`.

    "weighted" weighs token i of L by i / (1 + ... + L) (RDS+, arXiv 2503.01807).
    """
    if how == "last":
        last: npt.NDArray[np.float64] = states[-1].astype(np.float64)
        return last
    weights = np.arange(1, len(states) + 1, dtype=np.float64) if how == "weighted" else np.ones(len(states))
    mean: npt.NDArray[np.float64] = weights @ states.astype(np.float64) / weights.sum()
    return mean
