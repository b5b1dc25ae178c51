"""embed sentence: one vector per sample from a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from siftune import Context, Method, Outcome, Samples, UserError, hookimpl, models, readers

from .texts import View, text

# Padded tokens of one batch. Rows are sorted by length, so a larger one only pads more; a GPU wants it large.
BATCH = {"cpu": 2048, "cuda": 65536}


class Sentence(Method):
    """A vector per sample from a sentence encoder."""

    reads: ClassVar[str] = "sentence-encoder"
    shard: ClassVar[int] = 256

    model: Annotated[str, "sentence-transformers model; minilm ships"] = "minilm"
    view: Annotated[View, "what of a sample is read; prompts alone select worse"] = "full"
    pooling: Annotated[Literal["mean", "cls", "max", "last"] | None, "in place of the model's own"] = None
    normalize: Annotated[bool, "scale every vector to length 1"] = True
    half: Annotated[bool, "keep the vectors in float16: half the disk, three digits"] = False
    max_length: Annotated[int | None, "tokens read of a text, at most what the model takes"] = None
    dtype: Annotated[str | None, "of the encoder's arithmetic"] = None
    device: Annotated[str | None, "where the encoder runs"] = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 3:
            raise ValueError("--max-length is at least 3")

    @hookimpl
    def embed(self, samples: Samples, run: Context) -> Any:
        encoder = _encoder(
            models.digest(self.model), self.model, self.pooling, self.normalize, self.max_length,
            self.dtype or "float32", self.device or "cpu",
        )  # fmt: skip
        texts = [text(sample, self.view) for sample in samples]
        lengths, cut = _lengths(encoder, texts)
        vectors = np.zeros((len(texts), encoder.get_embedding_dimension()), np.float32)
        empty = {at: f"empty {self.view}" for at, said in enumerate(texts) if not said.strip()}
        budget = BATCH.get(encoder.device.type, BATCH["cpu"])
        full = [at for at in np.argsort(lengths, kind="stable").tolist() if at not in empty]
        for batch in batches(full, lengths, budget):
            vectors[batch] = encoder.encode(
                [texts[at] for at in batch],
                batch_size=len(batch),
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            run.advance(tokens=int(lengths[batch].sum()))
        if self.normalize:
            norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
            np.divide(vectors, norms, out=vectors, where=norms > 0, casting="same_kind")
        run.note(cut=run.figures.get("cut", 0) + cut)
        return Outcome(vectors.astype(np.float16) if self.half else vectors, left_out=empty)


def batches(order: Sequence[int], lengths: npt.NDArray[np.int64], budget: int) -> Iterator[list[int]]:
    """Positions, sorted by length, in batches of at most so many padded tokens."""
    batch: list[int] = []
    for at in order:
        if batch and (len(batch) + 1) * lengths[at] > budget:
            yield batch
            batch = []
        batch.append(int(at))
    if batch:
        yield batch


def _lengths(encoder: Any, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
    """Tokens read of every text, and how many texts are cut."""
    limit = encoder.max_seq_length or 1 << 30
    ids = encoder.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    lengths = np.array([len(one) for one in ids], np.int64)
    return np.minimum(lengths, limit), int((lengths > limit).sum())


@lru_cache(maxsize=1)
def _encoder(
    digest: str,
    model: str,
    pooling: str | None,
    normalize: bool,
    max_length: int | None,
    dtype: str,
    device: str,
) -> Any:
    """The encoder, ready; the last one is kept, so that shards and steps share it."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder = models.folder(model)
    try:
        with readers.quiet():
            encoder = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
            )
    except Exception as error:
        said = str(error).strip().splitlines()
        raise UserError(
            f"model {model!r} is no sentence encoder: {type(error).__name__}: {said[0] if said else ''}"
        ) from error
    if max_length is not None:
        encoder.max_seq_length = min(max_length, encoder.max_seq_length or max_length)
    _adapt(encoder, model, pooling, normalize)
    return encoder.eval()


def _adapt(encoder: Any, model: str, pooling: str | None, normalize: bool) -> None:
    """Put in the pooling that was asked for, and take out the model's own normalising where it was not."""
    modules = dict(encoder.named_children())
    for key, module in modules.items():
        if type(module).__name__ == "Normalize" and not normalize:
            delattr(encoder, key)
    if pooling is None:
        return
    pools = [module for module in modules.values() if type(module).__name__ == "Pooling"]
    if not pools:
        raise UserError(f"model {model!r} has no pooling of its own to replace; leave out --pooling")
    pools[0].pooling_mode = {"last": "lasttoken"}.get(pooling, pooling)
    pools[0].pooling_output_dimension = pools[0].embedding_dimension
