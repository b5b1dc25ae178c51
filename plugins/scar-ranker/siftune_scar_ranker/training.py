"""`train scar-ranker`: its options, and the ranker that it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from siftune import Context, Method, Samples, Trained, UserError, hookimpl
from siftune.intervals import wilson

from . import checkpoint, rows
from .quadruples import NAMES, Gate, Quadruple, allowed

REFERENCED = 1  # place in KINDS


class ScarRanker(Method):
    """Train a ranker of style consistency (SCAR) on answers of a human, of an LLM that rewrote the human's, and
    of an LLM by itself.

    Learned is direct above referenced above human, where both answers are good enough, by the losses in
    `losses`. The epoch with the best accuracy on instructions that were held out is kept.
    """

    reads: ClassVar[str] = "text-encoder"
    makes: ClassVar[str] = "ranker"
    uses: ClassVar[Sequence[str]] = ("encoding", "intervals")

    model: Annotated[str, "text encoder to start from, or a ranker to train further"] = "minilm"
    human: Annotated[str | None, "column of the input with the human's answer (the response, unless said)"] = None
    referenced: Annotated[str, "column with the human's answer as an LLM rewrote it; may be absent"] = "referenced"
    direct: Annotated[str, "column with the answer of an LLM by itself"] = "direct"
    rewrites: Annotated[bool, "--referenced and --direct name steps of reflect before this one, no columns"] = False
    quality: Annotated[
        str, "scores of answers: columns that end so (human_quality, ...), or with --rewrites the column itself"
    ] = "quality"
    gate: Annotated[
        Gate | None,
        "which pairs are learned from: both answers between the bounds (abs), the better one (abs_pos), less than "
        "--high apart (diff), that and both above --low (abs_diff), or all (none). abs where there is quality",
    ] = None
    low: Annotated[float, "lower bound of the gate, exclusive"] = 5.0
    high: Annotated[float, "upper bound of the gate, exclusive"] = 10.0
    regulariser: Annotated[float, "weight of the triplets; 0 leaves them out"] = 0.1
    without_referenced: Annotated[bool, "learn from direct and human answers only"] = False
    epochs: Annotated[int, "how often each quadruple is seen"] = 10
    batch_size: Annotated[int, "quadruples per step"] = 4
    learning_rate: Annotated[float, "highest rate"] = 2e-5
    linear_dim: Annotated[int, "width of the heads"] = 512
    held_out: Annotated[float, "share of the instructions that choose the epoch, and as many again to test it"] = 0.1
    max_length: Annotated[int, "tokens read of an instruction, and of an answer"] = 512
    seed: Annotated[int | None, "heads, split, order, and what is dropped"] = None
    dtype: Annotated[str | None, "number format of the arithmetic; weights stay in float32"] = None
    device: Annotated[str | None, "where to compute"] = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "linear_dim"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} has to be above 0")
        if self.regulariser < 0:
            raise ValueError("--regulariser is at least 0")
        if not 0 <= self.held_out < 0.5:
            raise ValueError("--held-out is from 0 to below 0.5: as many instructions again are left to test")
        if self.max_length < 8:
            raise ValueError("--max-length is at least 8")
        if self.low >= self.high and self.gate in ("abs", "abs_pos", None):
            raise ValueError("--low is below --high")
        if self.rewrites and self.human is not None:
            raise ValueError("--human names a column, and --rewrites takes answers from none")

    @property
    def names(self) -> rows.Names:
        """Where each kind of answer is; that a column is of the input goes without saying."""
        names = {"direct": self.direct, "referenced": self.referenced, "human": self.human or "human"}
        return names if self.rewrites else {kind: name.removeprefix("input.") for kind, name in names.items()}

    def needs(self) -> list[str]:
        # what somebody has named has to be there
        may_lack = {name: "?" if getattr(self, name) == name else "" for name in ("referenced", "quality")}
        if self.rewrites:
            return [self.quality + may_lack["quality"]]
        columns = [f"input.{self.names['direct']}", f"input.{self.names['referenced']}{may_lack['referenced']}"]
        columns += [f"input.{self.names['human']}"] if self.human else []
        if not may_lack["quality"]:
            columns.append(f"input.*_{self.quality}")
        return columns + [f"{name}?" for name in rows.quality_columns(self.names, self.quality).values()]

    @hookimpl
    def train(self, samples: Samples, run: Context) -> Trained:
        folder, figures = run.folder / "model", run.folder / "figures.json"
        if not folder.is_dir():  # there already if a kill came between here and the engine's own note
            figures.write_text(json.dumps(self._train(samples, run)), encoding="utf-8")
            (run.folder / "model.unfinished").rename(folder)
        checkpoint.clear(run.folder)
        told, metrics = json.loads(figures.read_text(encoding="utf-8"))
        return Trained(folder, base=self.model, kind="ranker", figures=told, metrics=metrics)

    def _train(self, samples: Samples, run: Context) -> tuple[dict[str, Any], dict[str, Any]]:
        import torch
        from siftune import models

        from . import fitting, network
        from .encoders import limit
        from .languages import learned
        from .reading import Words

        every = self._quadruples(samples)
        flags = self._allowed(every, run)
        seed = (self.seed or 0) % (1 << 32)  # numpy takes none below 0
        train, choose, test = split(every, self.held_out, seed)
        both = np.array([sum(answer is not None for answer in row.answers) > 1 for row in every])
        choose, test = choose[both[choose]], test[both[test]]  # one answer alone is in no pair
        train = train[flags[train].any(1)]  # what teaches nothing would only shorten the schedule
        if not len(train):
            raise UserError("train scar-ranker: every pair to learn from is held out; give more rows, or --held-out 0")
        torch.manual_seed(seed)  # draws the heads
        net, told = network.begin(self.model, self.linear_dim)
        config, source = net["encoder"].config, models.folder(self.model)
        net.to(self.device or "cpu")
        words = Words(source, config.pad_token_id or 0, min(self.max_length, limit(net["encoder"])))
        orders = [np.random.default_rng([seed, at]).permutation(len(train)) for at in range(self.epochs)]
        plan = fitting.Plan(
            orders, self.batch_size, self.learning_rate, self.regulariser, seed,
            self.dtype or "float32", self.device or "cpu",
        )  # fmt: skip
        rows_of = [every[at] for at in train]
        if not len(choose):
            run.warn("too few instructions to hold a pair of answers out: the epoch is chosen by what was trained on")
        held = [every[at] for at in (choose if len(choose) else train)]
        progress = fitting.fit(net, words, rows_of, flags[train], held, plan, run)
        tested = fitting.orders(net, words, [every[at] for at in test], plan.device) if len(test) else {}
        languages = learned([answer for row in rows_of for answer in row.answers if answer is not None])
        unfinished = run.folder / "model.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        network.save(net, {**told, "languages": languages}, source, unfinished)
        figures = {
            "quadruples": len(every), "trained_on": len(train), "held_out": len(choose), "tested_on": len(test),
            "pairs": dict(zip(NAMES, flags[train].sum(0).tolist(), strict=True)), "languages": languages,
            "steps": progress.taken, "epochs": progress.epochs, "best_epoch": progress.best + 1,
        }  # fmt: skip
        shares = {name: wilson(float(right.mean()), len(right)) for name, right in tested.items()}
        return figures, {f"accuracy of {name}": share for name, share in shares.items()}

    def _quadruples(self, samples: Samples) -> list[Quadruple]:
        """What there is to train on, without referenced answers if they are not wanted."""
        if self.rewrites:
            found = rows.from_rewrites(samples, self.names, self.quality)
        else:
            found = rows.from_columns(samples, self.names, self.quality, own=self.human is None)
        if self.without_referenced:
            found = [Quadruple(x.instruction, (x.answers[0], None, x.answers[2]), x.quality) for x in found]
        if not found:
            raise UserError(
                f"train scar-ranker: no rewrite in play was made by {self.direct!r} or {self.referenced!r}; "
                "put before it: reflect referenced reflect direct"
            )
        return found

    def _allowed(self, every: Sequence[Quadruple], run: Context) -> npt.NDArray[np.bool_]:
        """Which pairs are learned from. Raises UserError if none is."""
        known = any(not np.isnan(one) for row in every for one in row.quality)
        if not known and self.gate not in (None, "none"):
            raise UserError(f"train scar-ranker: --gate {self.gate} asks for quality, and no answer has any")
        gate: Gate = self.gate or ("abs" if known else "none")
        if not known and self.gate is None:
            run.say("no quality of answers is known: every pair is learned from")
        flags = allowed(every, gate, self.low, self.high)
        if not flags.any():
            both = int(allowed(every, "none", 0, 0).any(1).sum())
            closed = f"the gate {gate} ({self.low:g} to {self.high:g}) lets none through"
            why = closed if both else "no two answers differ"
            raise UserError(f"train scar-ranker: no pair to learn from in {len(every)} rows: {why}")
        if not any(row.answers[REFERENCED] is not None for row in every):
            run.say("no referenced answers: direct above human is learned alone, without the triplets")
        run.note(gate=gate)
        return flags


def split(every: Sequence[Quadruple], share: float, seed: int) -> tuple[Any, Any, Any]:
    """Rows to train on, to choose the epoch by, and to test: no instruction is in two of them."""
    names = sorted({row.instruction for row in every})
    drawn = np.random.default_rng([seed, 1 << 20]).permutation(len(names))
    part = {names[at]: place for place, at in enumerate(drawn)}
    places = np.array([part[row.instruction] for row in every])
    held = round(share * len(names))
    return (
        np.flatnonzero(places >= 2 * held),
        np.flatnonzero(places < held),
        np.flatnonzero((places >= held) & (places < 2 * held)),
    )
