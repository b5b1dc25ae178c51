"""The training itself: steps in a fixed order, an epoch's accuracies, the best epoch, and going on after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from siftune import Context, UserError

from . import checkpoint
from .losses import Loss, loss
from .network import judged
from .quadruples import NAMES, PAIRS, Quadruple
from .ranker import scored
from .reading import Words, encoded

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

WARM = 0.1  # share of the steps in which the rate rises
CLIP = 1.0
DECAY = 0.01
# A checkpoint is written when this much time has passed, and twenty times what writing the last one took.
EVERY_SECONDS = 30.0
SHARE = 20


@dataclass(frozen=True)
class Plan:
    """How to train: `orders` has the rows of each epoch in their order, `weight` is that of the triplets."""

    orders: Sequence[Rows]
    batch_size: int
    learning_rate: float
    weight: float
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def batches(self) -> list[Rows]:
        """Every batch of all epochs."""
        size = self.batch_size
        return [order[at : at + size] for order in self.orders for at in range(0, len(order), size)]


@dataclass
class Progress:
    """How far a training is: batches seen, steps taken, what epochs have come to, and the best of them."""

    seen: int = 0
    taken: int = 0
    losses: list[float] = field(default_factory=list)  # of the epoch under way
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: int = -1  # place in epochs


@dataclass
class Step:
    """What one batch came to; rate and norm are None where nothing was left to learn and no step was taken."""

    loss: Loss
    total: float
    rows: Rows
    rate: float | None = None
    norm: float | None = None


def rate(taken: int, total: int) -> float:
    """Share of the highest rate: rises from 0 over the first tenth of the steps, then falls to 0."""
    warm = WARM * total
    return taken / max(1.0, warm) if taken < warm else max(0.0, (total - taken) / max(1.0, total - warm))


def optimizer_of(net: Any) -> Any:
    """AdamW over all weights, biases and norms included."""
    from torch.optim import AdamW

    return AdamW(net.parameters(), lr=0.0, weight_decay=DECAY)


def learn(
    net: Any, words: Words, rows: Sequence[Quadruple], allowed: Flags, plan: Plan, optimizer: Any, progress: Progress
) -> Iterator[Step]:
    """Go through the batches that `progress` has not seen, a Step for each; `progress` is kept up."""
    import torch

    batches = plan.batches
    asked, _ = words.read([row.instruction for row in rows])
    kinds = [kind for kind in range(3) if any(row.answers[kind] is not None for row in rows)]
    # an answer that is missing is read as nothing, and no pair that it is in is allowed
    said = {kind: words.read([row.answers[kind] or "" for row in rows])[0] for kind in kinds}
    device = torch.device(plan.device)
    for chosen in batches[progress.seen :]:
        # a seed for each step: what is dropped does not hang on where a training was killed
        torch.manual_seed(plan.seed * 1_000_003 + progress.seen)
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            answers = {kind: [said[kind][at] for at in chosen] for kind in kinds}
            scores, surprise, form = _forward(net, words, [asked[at] for at in chosen], answers, device)
        flags = torch.from_numpy(allowed[chosen]).to(device)
        told = loss(scores.float(), surprise.float(), form.float(), flags, plan.weight)
        step = Step(told, 0.0 if told.total is None else float(told.total.detach()), chosen)
        progress.seen += 1
        if not math.isfinite(step.total):
            raise UserError(
                f"train scar-ranker: the loss is {step.total} at step {progress.seen}; "
                f"try a lower --learning-rate (it was {plan.learning_rate:g})"
            )
        if step.total > 0:
            told.total.backward()
            step.norm = float(torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP))
            step.rate = plan.learning_rate * rate(progress.taken, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = step.rate
            optimizer.step()
            optimizer.zero_grad()
            progress.taken += 1
        yield step


def _forward(
    net: Any, words: Words, asked: Sequence[Sequence[int]], said: Mapping[int, Sequence[Sequence[int]]], device: Any
) -> tuple[Any, Any, Any]:
    """Scores `(3, n)`, v_c and v_p `(3, n, width)`; zeros for a kind of answer that nobody has."""
    import torch

    # texts of a step are read in groups of like length: together, a third to two thirds would be padding
    first, form = encoded(net, words, [*asked, *(ids for kind in said.values() for ids in kind)], device)
    asked_of = first[: len(asked)].repeat(len(said), 1)
    form = form[len(asked) :]
    scores, surprise = judged(net, asked_of, first[len(asked) :], form)
    made = []
    for part in (scores, surprise, form):
        pieces = dict(zip(said, part.chunk(len(said)), strict=True))
        made.append(torch.stack([pieces.get(kind, torch.zeros_like(part[: len(asked)])) for kind in range(3)]))
    return made[0], made[1], made[2]


def accuracies(net: Any, words: Words, rows: Sequence[Quadruple], device: str) -> dict[str, float]:
    """For each of the three pairs, the share of rows in which the better answer scores higher."""
    return {name: float(right.mean()) for name, right in orders(net, words, rows, device).items()}


def orders(net: Any, words: Words, rows: Sequence[Quadruple], device: str) -> dict[str, Flags]:
    """For each of the three pairs, whether the better answer scores higher, for every row that has both; equal
    answers count as wrong, and no quality is asked for. Pairs that no row has are left out.
    Raises UserError where a score is no number."""
    pairs = [(row.instruction, answer) for row in rows for answer in row.answers if answer is not None]
    training = net.training
    given, _ = scored(net.eval(), words, pairs, device)
    net.train(training)
    if not np.isfinite(given).all():
        raise UserError("train scar-ranker: its scores are no numbers any more; try a lower --learning-rate")
    found = iter(given.tolist())
    scores = np.array([[np.nan if one is None else next(found) for one in row.answers] for row in rows]).reshape(-1, 3)
    told = {}
    for name, (a, b) in zip(NAMES, PAIRS, strict=True):
        both = ~np.isnan(scores[:, a]) & ~np.isnan(scores[:, b])
        if both.any():
            told[name] = scores[both, a] > scores[both, b]
    return told


def fit(
    net: Any,
    words: Words,
    rows: Sequence[Quadruple],
    allowed: Flags,
    held_out: Sequence[Quadruple],
    plan: Plan,
    run: Context,
) -> Progress:
    """Train the network in place and leave in it the weights of the epoch with the best mean accuracy on what
    is held out; of equals the first. Raises UserError where the loss, or a score, stops being a number."""
    optimizer = optimizer_of(net.train())
    progress = Progress()
    told = checkpoint.resume(net, optimizer, run.folder)
    if told is not None:
        progress = Progress(**told)
        run.say(f"going on from step {progress.seen} of {len(plan.batches)}")
    lengths = [math.ceil(len(order) / plan.batch_size) for order in plan.orders]
    ends = np.cumsum(lengths).tolist()
    saved, took = time.monotonic(), 0.0
    through = len(rows) * progress.seen // len(plan.batches)
    for step in learn(net, words, rows, allowed, plan, optimizer, progress):
        progress.losses.append(step.total)
        # however often a row is seen, the progress counts to the number of rows
        now = len(rows) * progress.seen // len(plan.batches)
        run.advance(rows=now - through)
        through = now
        if progress.seen in ends:
            _finish_epoch(net, words, held_out, plan, progress, run)
        began = time.monotonic()
        if began - saved >= max(EVERY_SECONDS, SHARE * took) and progress.seen < len(plan.batches):
            checkpoint.write(net, optimizer, asdict(progress), run.folder)
            saved = time.monotonic()
            took = saved - began
    checkpoint.load_best(net, run.folder)
    net.eval()
    return progress


def _finish_epoch(
    net: Any, words: Words, held_out: Sequence[Quadruple], plan: Plan, progress: Progress, run: Context
) -> None:
    told = accuracies(net, words, held_out, plan.device)
    mean = float(np.mean(list(told.values()))) if told else 0.0
    learned, progress.losses = progress.losses, []
    progress.epochs.append({"loss": float(np.mean(learned)), **told, "accuracy": mean})
    number, total = len(progress.epochs), len(plan.orders)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
    run.say(f"epoch {number} of {total}: loss {np.mean(learned):.4f}; accuracy of {shown}")
    if progress.best < 0 or mean > progress.epochs[progress.best]["accuracy"]:
        progress.best = number - 1
        checkpoint.write_best(net, run.folder)
