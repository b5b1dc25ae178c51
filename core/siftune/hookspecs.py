"""The seven hooks: what each is called with, and what it gives back.

A method implements one of them and marks it with `@hookimpl`. An implementation takes the arguments it
needs, by name and without defaults; arguments may be added here, none is ever removed or renamed.
"""

# pluggy reads the argument names below; what a hook returns is checked in `attach`.
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .budget import Budget
    from .context import Context
    from .methods import Evaluation, Fate, Trained
    from .samples import Sample, Samples

hookspec = pluggy.HookspecMarker("siftune")
hookimpl = pluggy.HookimplMarker("siftune")

HOOKS = ("embed", "cluster", "score", "reflect", "select", "train", "evaluate")


@hookspec(firstresult=True)
def embed(samples: Samples, run: Context) -> Any:
    """Give one vector per sample: `float32 (n, d)`. Called with a shard.

    class Letters(Method):
        "Counts of the letters a to z."

        @hookimpl
        def embed(self, samples):
            texts = [sample.response.lower() for sample in samples]
            return np.array([[text.count(c) for c in string.ascii_lowercase] for text in texts], "float32")
    """


@hookspec(firstresult=True)
def cluster(samples: Samples, run: Context) -> Any:
    """Give labels `int (n,)`, centres `float (k, d)` and distances `float (n,)`. Called with the view.

    class Halves(Method):
        "Two clusters: above and below the median of the first dimension."

        def needs(self):
            return ["embedding"]

        @hookimpl
        def cluster(self, samples):
            vectors = samples.column("embedding")
            labels = (vectors[:, 0] > np.median(vectors[:, 0])).astype(int)
            centres = np.stack([vectors[labels == k].mean(axis=0) for k in (0, 1)])
            return labels, centres, np.linalg.norm(vectors - centres[labels], axis=1)
    """


@hookspec(firstresult=True)
def score(samples: Samples, run: Context) -> Any:
    """Give one value per sample, or a dictionary of columns of them. Called with a shard (`scope = "rows"`)
    or with the view (`scope = "view"`).

        class Questions(Method):
            "How many question marks the response has."

            @hookimpl
            def score(self, samples):
                return [sample.response.count("?") for sample in samples]

    Rows without a value are named: `Outcome(values, left_out={3: "no response"}, failed={7: "timed out"})`.
    """


@hookspec(firstresult=True)
def reflect(samples: Samples, run: Context) -> Iterator[Sample | Fate]:
    """Yield better versions of samples, in any order; each is a new sample beside its parent. Called with the view.

    class Shout(Method):
        "The same response in capitals."

        @hookimpl
        def reflect(self, samples):
            for position, sample in enumerate(samples):
                if not sample.response:
                    yield Fate(position, left_out="nothing to rewrite")
                else:
                    yield sample.rewrite(response=sample.response.upper())
    """


@hookspec(firstresult=True)
def select(samples: Samples, budget: Budget, run: Context) -> Any:
    """Give the positions to keep, best first, or a `Selection` of them. Called with the view and the budget;
    the engine cuts the order at the budget.

        class Shortest(Method):
            "Short responses first."

            @hookimpl
            def select(self, samples):
                return sorted(range(len(samples)), key=lambda i: len(samples[i].response))
    """


@hookspec(firstresult=True)
def train(samples: Samples, run: Context) -> Trained:
    """Train on the samples and give the model: its folder, base and kind. Called with the view.

    What is measured on samples held out of the training goes into `metrics`, as in an Evaluation.

    class Copy(Method):
        "Passes the model on untrained."

        model: Annotated[str | None, "model to start from"] = None

        @hookimpl
        def train(self, samples, run):
            shutil.copytree(models.folder(self.model), run.folder / "model")
            return Trained(run.folder / "model", base=self.model, kind="causal-lm")
    """


@hookspec(firstresult=True)
def evaluate(run: Context) -> Evaluation:
    """Measure the run's model: figures by name, and one row per test item.

    class Parameters(Method):
        "How many parameters the model has."

        model: Annotated[str | None, "model to measure"] = None

        @hookimpl
        def evaluate(self):
            reader = models.reader(self.model)
            return Evaluation({"parameters": reader.model.num_parameters()}, items=[])
    """
