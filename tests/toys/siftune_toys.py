"""A handful of methods small enough to see through, one or more for every hook."""

from __future__ import annotations

import json
import os
import string
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from siftune import Column, Evaluation, Fate, Method, Outcome, Selection, Trained, hookimpl


def log(word: str) -> None:
    """Write down that something was computed, where a test wants to count."""
    if path := os.environ.get("TOYS_LOG"):
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(word + "\n")


class Letters(Method):
    """Counts of the letters a to z."""

    shard: ClassVar[int] = 8

    @hookimpl
    def embed(self, samples: Any) -> Any:
        log(f"embed {len(samples)}")
        texts = [sample.response.lower() for sample in samples]
        return np.array([[text.count(letter) for letter in string.ascii_lowercase] for text in texts], np.float32)


class Halves(Method):
    """Two clusters, by the sum of the vector."""

    embedding: Annotated[str, "column of vectors"] = "embedding"

    def needs(self) -> list[str]:
        return [self.embedding]

    @hookimpl
    def cluster(self, samples: Any) -> Any:
        log("cluster")
        vectors = samples.column(self.embedding)
        labels = (vectors.sum(axis=1) > np.median(vectors.sum(axis=1))).astype(int)
        centres = np.stack([vectors[labels == k].mean(axis=0) if (labels == k).any() else vectors[0] for k in (0, 1)])
        return labels, centres, np.linalg.norm(vectors - centres[labels], axis=1)


class Words(Method):
    """Words of the response."""

    plus: Annotated[float, "added to every count"] = 0.0
    unit: Annotated[Literal["words", "letters"], "what is counted"] = "words"
    shard: ClassVar[int] = 8

    def gives(self) -> list[Column]:
        return [
            Column("toy-words", self.unit, "higher", below=9, at_least={"toy-words.letters": 3}),
            Column("toy-words.letters"),
        ]

    @hookimpl
    def score(self, samples: Any, run: Any) -> Any:
        log(f"score {len(samples)}")
        if (limit := os.environ.get("TOYS_DIE_AFTER")) and sum(1 for _ in open(os.environ["TOYS_LOG"])) > int(limit):
            os.kill(os.getpid(), 9)
        run.advance(rows=len(samples))
        count = [len(s.response.split() if self.unit == "words" else s.response) + self.plus for s in samples]
        return {"toy-words": count, "toy-words.letters": [len(s.response) for s in samples]}


class Broken(Method):
    """Breaks the rule that it is told to break."""

    how: Annotated[str, "the rule"] = "none"
    shard: ClassVar[int] = 100

    def gives(self) -> list[Column]:
        return [Column("toy-broken")]

    @hookimpl
    def score(self, samples: Any) -> Any:
        values: list[Any] = [float(len(s.response)) for s in samples]
        at = next((i for i, s in enumerate(samples) if "700" in s.prompt.split()), None)
        match self.how:
            case "short":
                return values[:-1]
            case "none":
                return None
            case "nan":
                values[0] = float("nan")
            case "null":
                values[0] = None
            case "text":
                values[0] = "seven"
            case "names":
                return {"toy-broken": values, "toy-broken.extra": values}
            case "raise" if at is not None:
                raise RuntimeError("row 700 is too much")
            case "position":
                return Outcome(values, left_out={len(values): "beyond"})
            case "reason":
                return Outcome(values, left_out={0: ""})
            case "both":
                return Outcome(values, left_out={0: "a"}, failed={0: "b"})
        return values


class Partial(Method):
    """Leaves out every tenth sample, and fails on every `fails`-th."""

    fails: Annotated[int, "0 for never"] = 0

    @hookimpl
    def score(self, samples: Any) -> Any:
        log(f"partial {len(samples)}")
        numbers = [int(s.prompt.split()[-1]) for s in samples]
        healed = os.environ.get("TOYS_HEALED")
        failed = {i: "timed out" for i, n in enumerate(numbers) if self.fails and n % self.fails == 1 and not healed}
        left = {i: "divisible by ten" for i, n in enumerate(numbers) if n % 10 == 0 and i not in failed}
        values = [float("nan") if i in failed or i in left else n for i, n in enumerate(numbers)]
        return Outcome(values, left, failed)


class ReadsModel(Method):
    """Says which model, dtype, seed, template and device it was filled with."""

    model: Annotated[str | None, "model"] = None
    dtype: Annotated[str | None, "precision"] = None
    seed: Annotated[int | None, "seed"] = None
    template: Annotated[str | None, "template"] = None
    device: Annotated[str | None, "device"] = None
    beside: Annotated[str | None, "another model"] = None
    requires: ClassVar[tuple[str, ...]] = ("model",)

    def gives(self) -> list[Column]:
        return [Column("toy-reader")]

    def also_reads(self) -> list[str]:
        return [self.beside] if self.beside else []

    @hookimpl
    def score(self, samples: Any) -> Any:
        log("reader")
        told = f"{os.path.basename(str(self.model))} {self.dtype} {self.seed} {self.template} {self.device}"
        return [told for _ in samples]


class ReadsInput(Method):
    """Copies a numeric column of the input."""

    column: Annotated[str, "which"] = "weight"

    def needs(self) -> list[str]:
        return [f"input.{self.column}"]

    @hookimpl
    def score(self, samples: Any) -> Any:
        log(f"input {len(samples)}")
        return samples.column(f"input.{self.column}")


class Above(Method):
    """One more than another column."""

    by: Annotated[str, "column"]

    def needs(self) -> list[str]:
        return [self.by]

    @hookimpl
    def score(self, samples: Any) -> Any:
        log(f"above {len(samples)}")
        values = samples.column(self.by)
        return Outcome(
            np.nan_to_num(values) + 1, left_out={int(i): "no value" for i in np.flatnonzero(np.isnan(values))}
        )


class Doubtful(Method):
    """One for every row, and a doubt."""

    shard: ClassVar[int] = 100

    @hookimpl
    def score(self, samples: Any, run: Any) -> Any:
        run.warn("one is no score")
        run.note(ones=len(samples))
        return [1.0 for _ in samples]


class WhoWrote(Method):
    """Which step wrote a sample."""

    scope: ClassVar[Literal["rows", "view"]] = "view"

    def gives(self) -> list[Column]:
        return [Column("toy-wrote")]

    @hookimpl
    def score(self, samples: Any, run: Any) -> Any:
        run.warn("it goes by hearsay")
        run.note(asked=len(samples))
        return [str(sample.made_by) for sample in samples]


class RankInView(Method):
    """The rank of the response's length among all."""

    scope: ClassVar[Literal["rows", "view"]] = "view"

    @hookimpl
    def score(self, samples: Any) -> Any:
        log(f"rank {len(samples)}")
        return np.argsort(np.argsort([len(s.response) for s in samples], kind="stable")).astype(float)


class Undeclared(Method):
    """Reads a column that it does not declare."""

    @hookimpl
    def score(self, samples: Any) -> Any:
        return samples.column("toy-words")


class Shout(Method):
    """The same response in capitals; leaves out samples that hold "quiet", fails on "fail", skips "lost"."""

    min_coverage: ClassVar[float] = 0.8

    @hookimpl
    def reflect(self, samples: Any, run: Any) -> Any:
        log("reflect")
        for position in reversed(range(len(samples))):
            sample = samples[position]
            if "quiet" in sample.response:
                yield Fate(position, left_out="asked to be quiet")
            elif "fail" in sample.response:
                yield Fate(position, failed="the teacher hung up")
            elif "lost" not in sample.response:
                yield sample.rewrite(response=sample.response.upper())


class First(Method):
    """The first of the view, or what it is told."""

    positions: Annotated[list[int], "instead of all in order"] = field(default_factory=list)
    weighted: Annotated[bool, "weigh the first double"] = False

    @hookimpl
    def select(self, samples: Any, budget: Any) -> Any:
        log(f"select {len(samples)} {budget.rows}")
        order = self.positions or list(range(len(samples)))
        if self.weighted:
            return Selection(
                order,
                weights=[2.0, *[1.0] * (len(order) - 1)],
                reasons=["first", *["later"] * (len(order) - 1)],
            )
        return order


class BestOfFamily(Method):
    """The longest of each family."""

    by: Annotated[str, "column"] = "toy-words"

    def needs(self) -> list[str]:
        return [self.by]

    @hookimpl
    def select(self, samples: Any) -> Any:
        values, families = samples.column(self.by), samples.column("family")
        best: dict[float, int] = {}
        for i, family in enumerate(families):
            if family not in best or values[i] > values[best[family]]:
                best[family] = i
        return sorted(best.values())


class Trainer(Method):
    """A folder that says what it was trained on."""

    model: Annotated[str | None, "model to start from"] = None
    continue_: Annotated[bool, "go on from the model that travels"] = False
    measure: Annotated[bool, "measure what was held out"] = False
    seed: Annotated[int | None, "seed"] = None

    def needs(self) -> list[str]:
        return ["weight?"]

    @hookimpl
    def train(self, samples: Any, run: Any) -> Any:
        log("train")
        folder = run.folder / "model"
        folder.mkdir(exist_ok=True)
        weights = samples.column("weight").tolist() if "weight" in samples.columns else []
        told = {"ids": samples.ids, "weights": weights, "from": str(self.model)}
        (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
        metrics = {"held out": {"value": 0.75, "low": 0.5, "high": 1.0, "n": len(samples)}} if self.measure else {}
        return Trained(folder, base=str(self.model), figures={"seen": len(samples)}, metrics=metrics)


class Size(Method):
    """How many samples the toy model was trained on."""

    model: Annotated[str | None, "model to measure"] = None
    requires: ClassVar[tuple[str, ...]] = ("model",)

    @hookimpl
    def evaluate(self, run: Any) -> Any:
        log("evaluate")
        told = json.loads((Path(str(self.model)) / "config.json").read_text(encoding="utf-8"))
        seen = len(told.get("ids", []))
        run.note(model=str(self.model))
        return Evaluation(
            {"seen": seen, "share": {"value": 0.5, "low": 0.25, "high": 0.75, "n": seen}},
            [{"id": i} for i in told.get("ids", [])],
        )
