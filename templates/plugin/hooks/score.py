"""score $name: a number for every sample."""

from __future__ import annotations

from typing import Annotated

from siftune import Column, Method, Samples, hookimpl


class $kind(Method):
    """How often a mark stands in the response."""

    mark: Annotated[str, "what is counted"] = "?"

    def gives(self) -> list[Column]:
        return [Column("$name", unit="times", better="higher")]

    @hookimpl
    def score(self, samples: Samples) -> list[int]:
        return [sample.response.count(self.mark) for sample in samples]
