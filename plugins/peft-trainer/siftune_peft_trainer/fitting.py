"""The training itself: transformers' Trainer over rows in a fixed order, resumed from where it was killed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from siftune import Context, UserError

from .encoding import UNSAID, Row

# A checkpoint is written when this much time has passed, and twenty times what writing the last one took: a
# killed training loses little, and one that is not killed is slowed by a twentieth at most.
EVERY_SECONDS = 30.0
SHARE = 20
WHOLE = "siftune.json"  # written into a checkpoint last: one without it was cut short by a kill
CURVE = 200  # points of the loss curve that are kept


@dataclass(frozen=True)
class Plan:
    """How to train. `order` has row numbers, `batch_size` of them a step, `at_once` of them in memory."""

    order: npt.NDArray[np.int64]
    batch_size: int
    at_once: int
    learning_rate: float
    seed: int
    dtype: str
    device: str
    gradient_checkpointing: bool

    @property
    def steps(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)


def fit(model: Any, rows: Sequence[Row], plan: Plan, run: Context) -> dict[str, Any]:
    """Train the model in place and give figures. Checkpoints lie in `run.folder / "checkpoints"`.

    The loss is the mean over the learned tokens of a step, each weighted with its row's weight (over all rows
    the weights have the mean 1). Raises UserError where the loss stops being a number.
    """
    checkpoints = run.folder / "checkpoints"
    cached = model.config.use_cache  # the Trainer turns it off, and would leave it so in the model that is written
    watch = _watcher(rows, plan, run, checkpoints)
    trainer = _trainer()(model=model, args=_arguments(plan, checkpoints), callbacks=[watch], **_data(rows, plan))
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    last = _newest(checkpoints)
    if last is not None:
        watch.seconds_before = json.loads((last / WHOLE).read_text())["seconds"]
        run.say(f"going on from step {last.name.rpartition('-')[2]} of {plan.steps}")
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.config.use_cache = cached
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": plan.steps,
        "tokens": int(sum(len(rows[row].ids) for row in plan.order)),
        "learned_tokens": int(sum(rows[row].said for row in plan.order)),
        "seconds": round(watch.seconds(), 1),
        "learning_rate": plan.learning_rate,
        "loss_curve": _thinned(losses),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _data(rows: Sequence[Row], plan: Plan) -> dict[str, Any]:
    """The rows as often and in the order as they are seen, and what puts some of them into one batch."""
    import torch

    weights = np.array([row.weight for row in rows])
    weighted = bool(len(weights) and np.ptp(weights) > 0)
    share = weights / weights.mean()

    def together(numbers: list[int]) -> dict[str, Any]:
        chosen = [rows[number] for number in numbers]
        longest = max(len(row.ids) for row in chosen)
        # padded at the right, where a causal model does not look; some count positions by the mask
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full((len(chosen), longest), UNSAID)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        for at, row in enumerate(chosen):
            ids[at, : len(row.ids)] = torch.tensor(row.ids)
            labels[at, : len(row.ids)] = torch.tensor(row.labels)
            mask[at, : len(row.ids)] = 1
        batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if weighted:
            batch["weights"] = torch.tensor(share[numbers], dtype=torch.float32)
        return batch

    return {"train_dataset": plan.order.tolist(), "data_collator": together}


def _arguments(plan: Plan, checkpoints: Path) -> Any:
    from transformers import TrainingArguments

    on_gpu = not plan.device.startswith("cpu")
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=plan.at_once,
        gradient_accumulation_steps=plan.batch_size // plan.at_once,
        num_train_epochs=1,  # the order holds every pass
        train_sampling_strategy="sequential",
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # of all steps, as in Alpaca
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=1.0,
        seed=plan.seed,
        bf16=plan.dtype == "bfloat16",
        use_cpu=not on_gpu,
        gradient_checkpointing=plan.gradient_checkpointing and on_gpu,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",  # the watcher says when
        save_total_limit=2,  # while the newer one is written, the older one is whole
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
        report_to=[],
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more than one would be DataParallel, with another batch size
    return arguments


def _trainer() -> Any:
    """The class, made where torch may be imported."""
    from torch.nn.functional import cross_entropy
    from transformers import Trainer

    class Weighing(Trainer):  # type: ignore[misc, unused-ignore]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            if "weights" not in inputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            weights, labels = inputs.pop("weights"), inputs.pop("labels")
            outputs = model(**inputs)
            logits, wanted = outputs.logits[:, :-1].float(), labels[:, 1:]
            each = cross_entropy(logits.transpose(1, 2), wanted, ignore_index=UNSAID, reduction="none")
            learned = (wanted != UNSAID).sum() if num_items_in_batch is None else num_items_in_batch
            loss = (each * weights[:, None]).sum() / learned
            return (loss, outputs) if return_outputs else loss

    return Weighing


def _watcher(rows: Sequence[Row], plan: Plan, run: Context, checkpoints: Path) -> Any:
    """Says how far the training is, stops it when it diverges, and decides when a checkpoint is due."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc, unused-ignore]
        seconds_before = 0.0
        saved_in = 0.0
        told = 0

        def seconds(self) -> float:
            return self.seconds_before + time.monotonic() - self.started

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = self.saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen = plan.order[(state.global_step - 1) * plan.batch_size : state.global_step * plan.batch_size]
            # however often a row is seen, the progress counts to the number of rows
            through = len(rows) * state.global_step // plan.steps
            run.advance(rows=through - self.told, tokens=sum(len(rows[row].ids) for row in seen))
            self.told = through
            self.began = time.monotonic()
            due = self.began - self.saved >= max(EVERY_SECONDS, SHARE * self.saved_in)
            control.should_save = due and state.global_step < plan.steps

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if not math.isfinite(logs.get("loss", 0.0)):
                raise UserError(
                    f"train: the loss is {logs['loss']} at step {state.global_step}; "
                    f"try a lower --learning-rate (it was {plan.learning_rate:g})"
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _mark(checkpoints / f"checkpoint-{state.global_step}", self.seconds())
            self.saved = time.monotonic()
            self.saved_in = self.saved - self.began

    return Watcher()


def _mark(checkpoint: Path, seconds: float) -> None:
    """Say that a checkpoint is whole, once all of it is on the disk."""
    for file in checkpoint.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    (checkpoint / WHOLE).write_text(json.dumps({"seconds": seconds}))


def _newest(checkpoints: Path) -> Path | None:
    whole = [mark.parent for mark in checkpoints.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _thinned(losses: Sequence[float]) -> list[float]:
    """At most so many points, each the mean of the steps it stands for."""
    parts = np.array_split(np.array(losses, np.float64), min(len(losses), CURVE) or 1)
    return [round(float(part.mean()), 5) for part in parts if len(part)]
