"""train scar-ranker: does it tell a model's answer from a human's by more than its length?

    OMP_NUM_THREADS=2 python benchmarks/scar_style.py --pairs human_vs_llm.jsonl.gz
    python benchmarks/scar_style.py --pairs human_vs_llm.jsonl.gz --limit 25 --epochs 1 --loo-epochs 1   # a quick look

`--pairs` holds groups: `{"set", "instruction", "input", "human": [{"text"}], "llm": [{"text"}]}`. Of each group one
human and one model answer are drawn. Groups that share an instruction, by its words alone, are on one side of the
split, whatever their sets; two fifths of the instructions of each set are held out. The set of revisions
(`car_expert_revised`) is never trained on and stands apart: its "human" answers are model answers that experts have
rewritten. A ranker is trained by siftune, direct above human and nothing else, on at most `--rows` groups of a set;
one more for each set, without that set, on at most `--loo-rows` of each other set, and tested on the pairs of it
that the first one was tested on.

A figure is the share of pairs in which the model's answer scores higher, ties half, with a 95% interval from 2,000
draws of instructions (it does not hold the chance in training: each ranker is trained once). Beside the ranker stand

    words    a bag of words and marks, bigrams too: logistic regression on the differences of the ranker's training
             pairs, its penalty by cross-validation; it reads the whole answer, the ranker the first `--tokens`
    dense    `score style --centre densest` over the answers that are tested, surprisal by `score ifd --model nano`
    like     `score style --like` the model answers of the training pairs
    longer   the answer of more characters; what the shorter one wins is 1 less that

and each three times: on the pairs drawn; on pairs of the held-out groups whose lengths are within 0.8 to 1.25 (the
pair drawn if it is such a one, else another of its group); and on those drawn by whether the model's answer is the
longer or the shorter one, with the rank correlation of score and length. What only measures length has 1 and 0 there.
A set of fewer than 10 pairs is pooled with others like it; the pool counts as a set in the mean if it has 10.
Trainings and scores are kept in `--store`, and what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import siftune
import torch
from siftune.recipe import Step

APART = "car_expert_revised"
HELD_OUT = 0.4  # of the instructions of a set
CHOOSE = 0.05  # of the training rows choose the epoch, as many again are left by the trainer
FEW = 10  # pairs below which a set is pooled
ALIKE = (0.8, 1.25)  # model's characters over human's
APART_ROWS = 500  # pairs, so that scoring does not outlast training
ENOUGH = 50  # words; `score style` draws the measures of fewer to the median
SIGNALS = ("ranker", "words", "dense", "like", "longer")
Floats = npt.NDArray[np.float64]
Answer = tuple[str, str]  # what was asked, what was answered


@dataclass(frozen=True)
class Pair:
    set: str
    cluster: int  # the same for groups that share an instruction
    asked: str
    human: str
    model: str

    @property
    def answers(self) -> tuple[Answer, Answer]:
        return (self.asked, self.model), (self.asked, self.human)

    @property
    def alike(self) -> bool:
        return ALIKE[0] <= len(self.model) / len(self.human) <= ALIKE[1]


@dataclass(frozen=True)
class Group:
    drawn: Pair
    matched: Pair | None  # of near-equal lengths, where the group has one


@dataclass
class Trained:
    folder: str
    rows: list[Pair]
    figures: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--store", type=Path, default=Path("runs/scar-style"))
    parser.add_argument("--limit", type=int, help="only so many groups of a set, for a quick look")
    parser.add_argument("--rows", type=int, default=300, help="groups of a set to train on, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--loo-rows", type=int, default=50, help="the same where a set is left out")
    parser.add_argument("--loo-epochs", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="that the ranker reads of instruction and of answer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    said = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the start"
    print(f"torch {torch.__version__}, {said}", flush=True)
    figures = Benchmark(options).measure()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


# ---- what is compared ----


def read(path: Path, limit: int | None, seed: int) -> list[Group]:
    """Groups of the file, a pair drawn from each; those without two different answers are dropped."""
    rng = random.Random(seed)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rng.shuffle(rows)
    clusters = clustered([(plain(row["instruction"]), plain(row["instruction"] + " " + row["input"])) for row in rows])
    found, dropped, seen = [], 0, dict.fromkeys((row["set"] for row in rows), 0)
    for row, cluster in zip(rows, clusters, strict=True):
        asked = "\n\n".join(text for text in (row["instruction"].strip(), row["input"].strip()) if text)
        human, model = (
            list(dict.fromkeys(text for one in row[kind] if (text := one["text"].strip()))) for kind in ("human", "llm")
        )
        pairs = [Pair(row["set"], cluster, asked, a, b) for a in human for b in model if a != b]
        if not pairs or not asked:
            dropped += 1
            continue
        drawn = rng.choice(pairs)
        alike = [drawn] if drawn.alike else [pair for pair in pairs if pair.alike]
        seen[row["set"]] += 1
        if limit is None or seen[row["set"]] <= limit:
            found.append(Group(drawn, rng.choice(alike) if alike else None))
    print(f"{len(found)} groups, {dropped} dropped: an empty answer, or the same from both")
    return found


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def clustered(keys: Sequence[Iterable[str]]) -> list[int]:
    """A number for each row, the same for rows that are joined by keys they share."""
    parent = list(range(len(keys)))

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    first: dict[str, int] = {}
    for at, some in enumerate(keys):
        for key in some:
            parent[root(at)] = root(first.setdefault(key, at))
    return [root(at) for at in range(len(keys))]


def split(groups: Sequence[Group], seed: int) -> tuple[list[Group], list[Group]]:
    """Training and held-out groups. A cluster is held out with the set that it is first met in."""
    home: dict[int, str] = {}
    for group in groups:
        home.setdefault(group.drawn.cluster, group.drawn.set)
    held: set[int] = set()
    for name in sorted(set(home.values())):
        inside = sorted(cluster for cluster, where in home.items() if where == name)
        held |= set(random.Random(f"{seed} {name}").sample(inside, round(HELD_OUT * len(inside))))
    return [g for g in groups if g.drawn.cluster not in held], [g for g in groups if g.drawn.cluster in held]


def at_most(count: int, pairs: Iterable[Pair]) -> list[Pair]:
    """The first so many of each set; the order was drawn in reading."""
    by_set: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_set[pair.set].append(pair)
    return [pair for some in by_set.values() for pair in some[:count]]


# ---- the measuring ----


class Benchmark:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.store / "benchmark"
        self.folder.mkdir(parents=True, exist_ok=True)

    def measure(self) -> dict[str, Any]:
        options, began = self.options, time.perf_counter()
        groups = read(options.pairs, options.limit, options.seed)
        rest = [g for g in groups if g.drawn.set != APART]
        train, held = split(rest, options.seed)
        met = {g.drawn.cluster for g in train}
        apart = at_most(APART_ROWS, (g.drawn for g in groups if g.drawn.set == APART and g.drawn.cluster not in met))
        main = self.train("all sets", at_most(options.rows, (g.drawn for g in train)), options.epochs)
        drawn, matched = [g.drawn for g in held], [g.matched for g in held if g.matched]
        told: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "training": main.figures}

        scores = self.signals("held out", main, [*drawn, *matched])
        told["held out"] = table("held-out instructions", drawn, scores, options.seed)
        told["matched"] = table("held-out instructions, lengths within 0.8 to 1.25", matched, scores, options.seed)
        told["by length"] = by_length(drawn, scores, options.seed)
        scores = self.signals("apart", main, apart)
        title = "apart, never trained on: a model's answer above what experts made of it"
        told["apart"] = table(title, apart, scores, options.seed)

        tested: list[Pair] = []
        every: dict[str, dict[Answer, float]] = {name: {} for name in SIGNALS}
        trainings = told["left out trainings"] = {}
        for name in sorted({pair.set for pair in drawn}):
            test = [pair for pair in drawn if pair.set == name]
            if len(test) < FEW:
                print(f"\n{name} is not left out in turn: {len(test)} of its groups are held out")
                continue
            met = {g.drawn.cluster for g in rest if g.drawn.set == name}
            others = (g.drawn for g in train if g.drawn.set != name and g.drawn.cluster not in met)
            trained = self.train(f"without {name}", at_most(options.loo_rows, others), options.loo_epochs)
            scores = self.signals(f"left out {name}", trained, test)
            print("  " + ", ".join(f"{s} {right(test, scores[s]).mean():.3f}" for s in SIGNALS), flush=True)
            for signal, values in scores.items():
                # an answer of two sets has a score from each: the set is part of what is looked up
                every[signal] |= {(f"{name}\n{asked}", answer): one for (asked, answer), one in values.items()}
            tested += [Pair(p.set, p.cluster, f"{name}\n{p.asked}", p.human, p.model) for p in test]
            trainings[name] = trained.figures
        left = told["left out"] = table("each set left out of the training in turn", tested, every, options.seed)
        for signal in SIGNALS if tested else ():
            lowest = min((row for row in left if row not in (MEAN, LESS)), key=lambda row: left[row][signal][0])
            print(f"  lowest of {signal}: {lowest} {left[lowest][signal][0]:.3f}")
        told["seconds"] = round(time.perf_counter() - began)
        print(f"\n{told['seconds']} s in all")
        return told

    def train(self, name: str, rows: list[Pair], epochs: int) -> Trained:
        options = self.options
        data = self.write(name, [
            {"instruction": p.asked, "input": "", "output": p.human, "direct": p.model} for p in rows
        ])  # fmt: skip
        step = Step(
            "train", "scar-ranker", model="minilm", epochs=epochs, batch_size=options.batch_size,
            learning_rate=options.learning_rate, max_length=options.tokens, held_out=CHOOSE,
        )  # fmt: skip
        wall, work = time.perf_counter(), time.process_time()
        run = self.run(name, data, [step])
        done = run.state.done[-1].figures
        figures = {
            "rows": len(rows), "of sets": {s: sum(p.set == s for p in rows) for s in sorted({p.set for p in rows})},
            "trained on": done["trained_on"], "steps": done["steps"], "best epoch": done["best_epoch"],
            "epochs": [round(one["accuracy"], 3) for one in done["epochs"]], "found in the store": not run.computed,
            "wall seconds": round(time.perf_counter() - wall), "processor seconds": round(time.process_time() - work),
        }  # fmt: skip
        spent = f"{figures['wall seconds']} s ({figures['processor seconds']} s of processor)"
        print(
            f"\ntrained on {name}: {done['trained_on']} pairs, {done['steps']} steps, "
            f"{spent if run.computed else 'found in the store'}; accuracy that chose the epoch: {figures['epochs']}",
            flush=True,
        )
        return Trained(str(run.models["ranker"]), rows, figures)

    def signals(self, name: str, trained: Trained, pairs: Sequence[Pair]) -> dict[str, dict[Answer, float]]:
        """Every signal's score of every answer, higher for what it takes to be a model's."""
        answers = list(dict.fromkeys(answer for pair in pairs for answer in pair.answers))
        data = self.write(name, [{"instruction": x, "input": "", "output": y} for x, y in answers])
        like = self.write(f"{name}, like", [
            {"instruction": p.asked, "input": "", "output": p.model} for p in trained.rows
        ])  # fmt: skip
        steps = [
            Step("score", "scar", model=trained.folder, max_length=self.options.tokens),
            Step("score", "ifd", model="nano"),
            Step("score", "style", centre="densest", as_="dense"),
            Step("score", "style", like=like.resolve(), as_="like"),
        ]
        columns = self.run(name, data, steps).table
        found = {"ranker": columns["scar"], "dense": columns["dense"], "like": columns["like"]}
        numbers = {signal: column.to_numpy(zero_copy_only=False) for signal, column in found.items()}
        short = (columns["dense.words"].to_numpy() < ENOUGH).mean()
        print(
            f"\n{name}: {short:.0%} of {len(answers)} answers have fewer than the {ENOUGH} words that score style wants"
        )
        numbers["words"] = bag_of_words(trained.rows, [answer for _, answer in answers], self.options.seed)
        numbers["longer"] = np.array([len(answer) for _, answer in answers], float)
        for signal, values in numbers.items():
            if len(values) != len(answers) or np.isnan(values.astype(float)).any():
                raise SystemExit(f"{signal} has no score for some of the answers of {name}")
        return {signal: dict(zip(answers, numbers[signal].tolist(), strict=True)) for signal in SIGNALS}

    def run(self, name: str, data: Path, steps: Sequence[Step]) -> siftune.Run:
        return siftune.run(
            data, steps, out=self.folder / name.replace(" ", "-"), store=self.options.store / "store", overwrite=True,
            keep_duplicates=True, seed=self.options.seed, dtype="float32", device="cpu", min_coverage=0.0,
        )  # fmt: skip

    def write(self, name: str, rows: Iterable[dict[str, str]]) -> Path:
        file = self.folder / f"{name.replace(' ', '-')}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return file


def bag_of_words(train: Sequence[Pair], answers: Sequence[str], seed: int) -> Floats:
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    counted = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = counted.fit_transform([pair.model for pair in train] + [pair.human for pair in train])
    apart = model[: len(train)] - model[len(train) :]
    # each difference once, half of them turned round: both ways of one pair may not be on two sides of a fold
    signs = np.where(np.random.default_rng(seed).random(len(train)) < 0.5, 1, -1)
    line = LogisticRegression(fit_intercept=False, solver="liblinear")
    search = GridSearchCV(line, {"C": [1, 10, 100, 1000]}, cv=5)
    search.fit(vstack([row * sign for row, sign in zip(apart, signs, strict=True)]).tocsr(), signs)
    return np.asarray(counted.transform(answers) @ search.best_estimator_.coef_[0])


# ---- figures ----

MEAN, LESS = "mean over the sets", "ranker less this"
Intervals = dict[str, dict[str, list[float]]]
Tables = dict[str, dict[Answer, float]]


def right(pairs: Sequence[Pair], scores: dict[Answer, float]) -> Floats:
    """For each pair 1 where the model's answer is above, 0 where it is below, and a half for a tie."""
    model, human = (np.array([scores[pair.answers[side]] for pair in pairs]) for side in (0, 1))
    return (model > human) + 0.5 * (model == human)


def resampled(pairs: Sequence[Pair], seed: int, figure: Callable[[Floats], Floats]) -> list[float]:
    """A figure with its 95% interval. `figure` takes the weights of pairs `(draws, n)`: how often the instruction of
    each was drawn."""
    _, cluster = np.unique([pair.cluster for pair in pairs], return_inverse=True)
    count = int(cluster.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), 2000)
    low, high = np.percentile(figure(times[:, cluster].astype(float)), [2.5, 97.5])
    return [round(float(x), 4) for x in (figure(np.ones((1, len(pairs))))[0], low, high)]


def share(pairs: Sequence[Pair], values: Floats, seed: int) -> list[float]:
    return resampled(pairs, seed, lambda weights: (weights @ values) / weights.sum(1))


def table(title: str, pairs: Sequence[Pair], scores: Tables, seed: int) -> Intervals:
    """Print and give the figures by set and their mean."""
    counts = {name: sum(pair.set == name for pair in pairs) for name in sorted({pair.set for pair in pairs})}
    few = [name for name, count in counts.items() if count < FEW]
    rows = {name: [name] for name in counts if name not in few} | ({"pooled": few} if few else {})
    masks = {row: np.array([pair.set in names for pair in pairs], float) for row, names in rows.items()}
    counted = [row for row, mask in masks.items() if mask.sum() >= FEW]
    found: Intervals = {row: {} for row in (*rows, MEAN, LESS)}
    hits = {signal: right(pairs, scores[signal]) for signal in SIGNALS}

    def mean(values: Floats) -> Callable[[Floats], Floats]:
        inside = [masks[row] for row in counted]
        # no draw is without a set of ten but one in twenty thousand
        return lambda w: np.mean([(w @ (values * mask)) / np.maximum(w @ mask, 1) for mask in inside], axis=0)

    for signal, values in hits.items():
        for row, mask in masks.items():
            inside = np.flatnonzero(mask)
            found[row][signal] = share([pairs[at] for at in inside], values[inside], seed)
        if counted:
            found[MEAN][signal] = resampled(pairs, seed, mean(values))
            if signal != "ranker":
                found[LESS][signal] = resampled(pairs, seed, mean(hits["ranker"] - values))
    print(f"\n{title}: {len(pairs)} pairs")
    sizes = {row: f"{int(mask.sum())}" for row, mask in masks.items()} | {MEAN: f"{len(counted)} sets", LESS: ""}
    shown(found, sizes)
    if few:
        how = "counts as one set" if "pooled" in counted else "is not in the mean"
        print(f"  pooled are {', '.join(f'{name} ({counts[name]})' for name in few)}: fewer than {FEW} each; {how}")
    return found


def by_length(pairs: Sequence[Pair], scores: Tables, seed: int) -> Intervals:
    """What becomes of the pairs where the model's answer is the longer one, and the shorter one, all sets together."""
    found: Intervals = {}
    sizes = {}
    for name, sign in (("the model's is longer", 1), ("the model's is shorter", -1)):
        some = [pair for pair in pairs if sign * (len(pair.model) - len(pair.human)) > 0]
        sizes[name] = str(len(some))
        if some:
            found[name] = {signal: share(some, right(some, scores[signal]), seed) for signal in SIGNALS}
    print("\nheld-out instructions, all sets together, by which answer is longer")
    shown(found, sizes)
    answers = list(dict.fromkeys(answer for pair in pairs for answer in pair.answers))
    ranks = {signal: ranked([scores[signal][answer] for answer in answers]) for signal in SIGNALS}
    with_length = {signal: round(float(np.corrcoef(ranks[signal], ranks["longer"])[0, 1]), 3) for signal in SIGNALS}
    said = "  ".join(f"{signal} {value:+.2f}" for signal, value in with_length.items())
    print(f"  rank correlation of score and characters, {len(answers)} answers: {said}")
    return found | {"rank correlation with length": {signal: [value] for signal, value in with_length.items()}}


def ranked(values: Sequence[float]) -> Floats:
    """Places in the order, equal values sharing theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def shown(found: Intervals, sizes: dict[str, str]) -> None:
    print(f"  {'':28}{'pairs':>7}" + "".join(f"  {signal:<18}" for signal in SIGNALS))
    for row, figures in found.items():
        cells = (f"{v:5.3f} [{low:.2f}, {high:.2f}]" for v, low, high in figures.values())
        if row == LESS:
            cells = ("", *(f"{v:+5.3f} [{low:+.2f}, {high:+.2f}]" for v, low, high in figures.values()))
        if figures:
            print(f"  {row:28}{sizes[row]:>7}" + "".join(f"  {cell:<18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
