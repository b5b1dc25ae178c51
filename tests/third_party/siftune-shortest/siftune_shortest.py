"""select shortest: as somebody else would write it, with nothing but what siftune says in public."""

from __future__ import annotations

from typing import Annotated

from siftune import Method, Samples, Selection, hookimpl


class Shortest(Method):
    """Short responses first."""

    at_least: Annotated[int, "characters that a response has to have"] = 1

    @hookimpl
    def select(self, samples: Samples) -> Selection:
        lengths = [len(sample.response) for sample in samples]
        short = {at: f"under {self.at_least} characters" for at, n in enumerate(lengths) if n < self.at_least}
        order = sorted((at for at in range(len(lengths)) if at not in short), key=lambda at: lengths[at])
        return Selection(order, left_out=short)
