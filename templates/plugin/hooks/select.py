"""select $name: the positions to keep, best first; the engine cuts them at the budget."""

from __future__ import annotations

from typing import Annotated

from siftune import Method, Samples, Selection, hookimpl


class $kind(Method):
    """The shortest responses that are not too short."""

    at_least: Annotated[int, "characters that a response has to have"] = 1

    @hookimpl
    def select(self, samples: Samples) -> Selection:
        lengths = [len(sample.response) for sample in samples]
        short = {at: f"under {self.at_least} characters" for at, n in enumerate(lengths) if n < self.at_least}
        order = sorted((at for at in range(len(lengths)) if at not in short), key=lambda at: lengths[at])
        return Selection(order, left_out=short)
