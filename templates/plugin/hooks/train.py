"""train $name: a model that learned from the samples."""

from __future__ import annotations

import shutil
from typing import Annotated

from siftune import Context, Method, Samples, Trained, hookimpl, models


class $kind(Method):
    """Passes the model on untrained: the control of every trainer."""

    requires = ("model",)

    model: Annotated[str | None, "causal LM to start from"] = None

    @hookimpl
    def train(self, samples: Samples, run: Context) -> Trained:
        assert self.model is not None
        folder = run.folder / "model"
        shutil.copytree(models.folder(self.model), folder, dirs_exist_ok=True)
        return Trained(folder, base=self.model)
