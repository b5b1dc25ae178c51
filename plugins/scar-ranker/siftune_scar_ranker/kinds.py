"""Human, referenced and direct answers to one instruction, told apart and set side by side: the analysis that SCAR
(https://arxiv.org/abs/2406.10882) begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from siftune import Sample
from siftune.samples import Array

MADE_BY = {None: "human", "reflect referenced": "referenced", "reflect direct": "direct"}
KINDS = tuple(MADE_BY.values())

Asked = tuple[tuple[str, str], ...]  # role and content of each message
Figures = dict[str, dict[str, float]]  # of each measure: mean and sd


def kind(sample: Sample) -> str | None:
    """Which of the three an answer is; None for a rewrite of another sort. What came with the input counts as
    human."""
    return MADE_BY.get(sample.made_by)


def asked(sample: Sample) -> Asked:
    """All that was said before the answer."""
    return tuple((message["role"], message["content"]) for message in sample.messages[:-1])


def paired(samples: Sequence[Sample], usable: Array) -> dict[str, list[int]]:
    """Positions by kind, for the instructions that have a usable answer of every kind; and nothing if there are none.

    The instruction is what was `asked`. `usable` bool `(n,)`.
    """
    by_instruction: dict[Asked, dict[str, list[int]]] = {}
    for at, sample in enumerate(samples):
        which = kind(sample)
        if which is not None and usable[at]:
            by_instruction.setdefault(asked(sample), {}).setdefault(which, []).append(at)
    whole = [found for found in by_instruction.values() if len(found) == len(KINDS)]
    return {which: [at for found in whole for at in found[which]] for which in KINDS} if whole else {}


def spread(columns: Mapping[str, Array], rows: Array | Sequence[int]) -> Figures:
    """Mean and standard deviation of each measure over some rows; what has no value there is left out."""
    told = {}
    for name, values in columns.items():
        known = values[rows][np.isfinite(values[rows])]
        if len(known):
            told[name] = {"mean": round(float(known.mean()), 6), "sd": round(float(known.std()), 6)}
    return told


def table(title: str, groups: Mapping[str, Figures]) -> str:
    """Groups side by side, `mean ± standard deviation` of each measure, as text below a title."""
    names: Iterable[str] = dict.fromkeys(name for figures in groups.values() for name in figures)
    width = max(map(len, names), default=0)
    lines = [title, " " * width + "".join(f"  {group:>18}" for group in groups)]
    for name in names:
        cells = (figures.get(name) for figures in groups.values())
        said = (f"{one['mean']:.4g} ± {one['sd']:.3g}" if one else "-" for one in cells)
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>18}" for cell in said))
    return "\n".join(lines)
