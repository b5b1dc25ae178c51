"""`train lora` and `train full`: their options, and the model that each leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from siftune import Context, Method, Samples, Trained, UserError, hookimpl

if TYPE_CHECKING:
    from siftune.models import Reader

WEIGHT = "weight"

Dtype = Literal["float32", "bfloat16"]


class Full(Method):
    """Train all weights of a causal language model on the responses of the samples."""

    requires: ClassVar = ("model",)
    uses: ClassVar = ("prompts", "readers")
    # the rate for a width of 2,000; see learning_rate_of
    base_rate: ClassVar[float] = 5e-5

    model: Annotated[str | None, "causal LM to start from"] = None
    continue_: Annotated[bool, "start from the model that the chain trained last, not from the run's"] = False
    template: Annotated[str | None, "prompt template that is trained with"] = None
    epochs: Annotated[float, "how often each sample is seen"] = 2.0
    steps: Annotated[int | None, "train for so many steps instead of epochs"] = None
    batch_size: Annotated[int, "samples per step"] = 8
    at_once: Annotated[int | None, "samples of a step that are in memory together (all, unless said)"] = None
    learning_rate: Annotated[float | None, "highest rate (by the model's width, unless said)"] = None
    max_length: Annotated[int, "tokens after which a sample is cut"] = 1024
    gradient_checkpointing: Annotated[bool, "on a GPU: less memory for a third more time"] = False
    seed: Annotated[int | None, "order of the samples, and what is drawn"] = None
    dtype: Annotated[Dtype | None, "precision of the arithmetic"] = None
    device: Annotated[str | None, "where to compute"] = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "at_once", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} has to be above 0")
        if self.max_length < 2:
            raise ValueError("--max-length has to be at least 2")
        if self.batch_size % (self.at_once or self.batch_size):
            raise ValueError("--at-once has to divide --batch-size")

    def needs(self) -> list[str]:
        return [f"{WEIGHT}?"]

    @hookimpl
    def train(self, samples: Samples, run: Context) -> Trained:
        assert self.model is not None
        folder, figures = run.folder / "model", run.folder / "figures.json"
        if not folder.is_dir():  # there already if a kill came between here and the engine's own note
            told = self._train(samples, run)
            figures.write_text(json.dumps(told))
            (run.folder / "model.unfinished").rename(folder)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        return Trained(folder, base=self.model, figures=json.loads(figures.read_text()))

    def _train(self, samples: Samples, run: Context) -> dict[str, Any]:
        import torch
        from siftune import prompts, readers

        from .encoding import encode
        from .fitting import Plan, fit
        from .order import order

        reader = self._load()
        template = prompts.template(self.template, reader.tokenizer)
        weights = samples.column(WEIGHT) if WEIGHT in samples.columns else [1.0] * len(samples)
        limit = min(self.max_length, reader.context)
        made = encode(samples, weights, reader.tokenizer, template, limit)
        if made.cut:
            run.warn(f"{made.cut} of {len(samples)} samples are longer than {limit} tokens and were cut")
        for reason, count in made.left_out.most_common():
            run.warn(f"{count} of {len(samples)} samples were not trained on: {reason}")
        if not made.rows:
            raise UserError("train: nothing to train on: none of the samples has a response that fits")
        seed = self.seed or 0
        torch.manual_seed(seed)  # draws what a low-rank change starts from
        model = self._prepare(reader.model)
        rate = self.learning_rate or learning_rate_of(self.base_rate, reader.model)
        with readers.quiet():  # the run has its own progress
            told = fit(
                model,
                made.rows,
                Plan(
                    order([len(row.ids) for row in made.rows], self.batch_size, self.epochs, self.steps, seed),
                    self.batch_size,
                    self.at_once or self.batch_size,
                    rate,
                    seed,
                    self.dtype or "float32",
                    self.device or "cpu",
                    self.gradient_checkpointing,
                ),
                run,
            )
            self._save(model, reader.tokenizer, run.folder)
        return {"samples": len(samples), "cut": made.cut, "left_out": sum(made.left_out.values()), **told}

    def _load(self) -> Reader:
        """The model on its own: the one that `models.reader` keeps is for reading, and others may hold it."""
        import torch
        from siftune import models

        assert self.model is not None
        return models.Reader(
            models.folder(self.model),
            name=self.model,
            dtype=self._stored(),
            device=torch.device(self.device or "cpu"),
            attention="sdpa",
        )

    def _stored(self) -> str:
        """Precision of the weights. They change by little at a time, which bfloat16 would round away."""
        return "float32"

    def _prepare(self, model: Any) -> Any:
        model.requires_grad_(True)
        return model.train()

    def _save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        import torch

        model.eval().to(getattr(torch, self.dtype or "float32"))
        _write(model, tokenizer, folder / "model.unfinished")


class LoRA(Full):
    """Train a low-rank change of every linear layer, and leave a model in which it is merged."""

    base_rate: ClassVar[float] = 5e-4

    rank: Annotated[int, "rank of the change"] = 16
    alpha: Annotated[float, "the change is scaled with alpha / rank"] = 32.0
    dropout: Annotated[float, "share of the inputs to the change that is dropped"] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError("--rank is at least 1, --alpha above 0, and --dropout from 0 to below 1")

    def _stored(self) -> str:
        return self.dtype or "float32"

    def _prepare(self, model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        how = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
        )
        changed = get_peft_model(model, how)
        if self.gradient_checkpointing:
            changed.enable_input_require_grads()
        return changed.train()

    def _save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        model.eval()
        # the name that was given, not where this machine keeps it
        model.peft_config["default"].base_model_name_or_path = self.model
        # embeddings are no linear layers; asked whether they changed, peft would ask the hub
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
        _write(model.merge_and_unload(safe_merge=True), tokenizer, folder / "model.unfinished")


def learning_rate_of(base: float, model: Any) -> float:
    """`base * (2000 / width) ** 0.781`: narrower models bear higher rates.

    The rule and its exponent for Llama models are those of Thinking Machines' Tinker documentation, as is ten
    times the rate for a low-rank change (base 5e-4) that training all weights takes (5e-5).
    """
    return float(f"{base * (2000 / model.config.get_text_config().hidden_size) ** 0.781:.3g}")


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model's folder from which everything downstream reads: safetensors, tokenizer, chat template."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
