"""How much a selection may keep: `1000`, `5%`, `200k tokens`, each optionally `per COLUMN`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import numpy as np

from .errors import UserError
from .samples import Array, Samples

_PATTERN = re.compile(
    r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<scale>[kKmM]?)\s*(?P<unit>%|rows|tokens)?\s*(?:\bper\s+(?P<column>\S+))?\s*"
)


@dataclass(frozen=True)
class Budget:
    """A parsed budget. `rows` is what a method may use to stop early: no more positions can be needed."""

    amount: Fraction
    unit: Literal["rows", "percent", "tokens"] = "rows"
    per: str | None = None
    rows: int = 0

    @staticmethod
    def parse(text: str | int | float) -> Budget:
        """Read a budget. Raises UserError that shows the forms."""
        found = _PATTERN.fullmatch(str(text))
        problem = f"{str(text)!r} is no budget; write 1000, 5%, or '200k tokens', and 'per COLUMN' after it if wanted"
        if not found:
            raise UserError(problem)
        amount = Fraction(found["number"]) * {"": 1, "k": 1000, "m": 1_000_000}[found["scale"].lower()]
        match found["unit"]:
            case "%":
                if found["scale"] or not 0 < amount <= 100:
                    raise UserError(f"budget {str(text)!r}: a share is above 0% and at most 100%")
                return Budget(amount / 100, "percent", found["column"])
            case "tokens":
                unit: Literal["rows", "tokens"] = "tokens"
            case _:
                unit = "rows"
        if amount < 1 or amount.denominator != 1:
            raise UserError(f"budget {str(text)!r}: write a whole number of {unit}, at least 1")
        return Budget(amount, unit, found["column"])

    def __str__(self) -> str:
        if self.unit == "percent":
            text = f"{float(self.amount * 100):g}%"
        else:
            text = f"{int(self.amount)}" + (" tokens" if self.unit == "tokens" else "")
        return text + (f" per {self.per}" if self.per else "")

    def of(self, total: int) -> int:
        """Rows out of `total` (for tokens: all of them, the tokens decide). A share is floored, and at least 1."""
        if self.unit == "percent":
            return min(total, max(1, math.floor(self.amount * total)))
        return min(total, int(self.amount)) if self.unit == "rows" else total

    def for_view(self, samples: Samples) -> Budget:
        """The same budget, knowing how many positions can be needed at most."""
        bound = len(samples) if self.per else self.of(len(samples))
        return Budget(self.amount, self.unit, self.per, bound)

    def cut(self, order: Array, samples: Samples, tokens: Callable[[], Array]) -> tuple[Array, bool]:
        """The longest prefix of an order (of positions) that fits, and whether the budget was over the view.

        With `per`, each group's own prefix. `tokens` gives the length of every sample of the view.
        """
        if self.per is None:
            return self._prefix(order, len(samples), tokens)
        groups = [_group_name(value) for value in samples.column(self.per)]
        sizes = Counter(groups)
        places: dict[str, list[int]] = {name: [] for name in sizes}
        for place, position in enumerate(order):
            places[groups[int(position)]].append(place)
        counted = cache(tokens)  # all of them at once, however many groups there are
        kept = np.zeros(len(order), bool)
        over = True
        for name, size in sizes.items():
            inside = np.array(places[name], np.int64)
            prefix, all_of_it = self._prefix(order[inside], size, counted)
            kept[inside[: len(prefix)]] = True
            over = over and all_of_it
        return order[kept], over

    def _prefix(self, order: Array, total: int, tokens: Callable[[], Array]) -> tuple[Array, bool]:
        if self.unit != "tokens":
            over = self.unit == "rows" and self.amount > total
            return order[: self.of(total)], over
        lengths = tokens()
        fits = int(np.searchsorted(np.cumsum(lengths[order]), int(self.amount), side="right"))
        return order[:fits], fits == len(order) == total


def _group_name(value: object) -> str:
    if value is None or value != value:
        return ""
    # every digit: groups may be large numbers
    return repr(float(value)) if isinstance(value, float) else str(value)
