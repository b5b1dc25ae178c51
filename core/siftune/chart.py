"""Histograms as inline SVG: the pool above the axis, what was kept below it, each scaled to its own peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from .samples import Array, Column
from .shown import number

MOST_BINS = 48
WIDE = 30  # so many times as large at the upper end as at the lower: a logarithmic axis
WIDTH, LEFT, RIGHT = 420.0, 10.0, 410.0
POOL_TOP, POOL_BASE, KEPT_BASE, KEPT_END = 22.0, 108.0, 126.0, 186.0


@dataclass(frozen=True)
class Histogram:
    """Counts of a column over the pool and over what was kept, in the same bins."""

    edges: Array  # (bins + 1,) in the column's unit
    pool: Array  # (bins,)
    kept: Array
    median: float
    kept_median: float  # NaN where nothing kept has a value
    log: bool = False
    whole: bool = False  # every value is a whole number
    notes: Sequence[str] = ()
    about: Column = field(default_factory=lambda: Column(""))

    def at(self, value: float) -> float:
        """Where a value stands on the axis, in the drawing's own unit."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)


def histogram(pool: Array, kept: Array, about: Column) -> Histogram:
    """Bins that show where most values lie; what lies far outside is counted in the first or the last bar, as
    the notes say. `pool` and `kept` are float64 `(n,)`, NaN for no value; `pool` has at least one value."""
    values, chosen = pool[np.isfinite(pool)], kept[np.isfinite(kept)]
    low, high = float(values.min()), float(values.max())
    whole = bool(np.all(values == np.round(values))) and max(abs(low), abs(high)) < 2**52
    first, q1, median, last = (float(q) for q in np.quantile(values, [0.005, 0.25, 0.5, 0.995]))
    notes: list[str] = []
    log = low > 0 and last / first > WIDE and q1 > 0
    if log:
        notes.append("logarithmic axis")
    start, end = _clipped(low, high, first, last, log)
    if start > low:
        few = f"{int((values < start).sum()):,} values below {number(start)}"
        notes.append(f"{few}, down to {number(low)}, are in the first bar")
    if end < high:
        few = f"{int((values > end).sum()):,} values above {number(end)}"
        notes.append(f"{few}, up to {number(high)}, are in the last bar")
    if low == high:
        notes.append("every value is the same")
    bound = next((b for b in (about.below, about.above) if b is not None and start < b < end), None)
    edges = _edges(start, end, log, whole, _bins(len(values)), bound)

    def counted(those: Array) -> Array:
        return np.histogram(np.clip(those, edges[0], edges[-1]), edges)[0]

    middle = float(np.median(chosen)) if len(chosen) else math.nan
    return Histogram(edges, counted(values), counted(chosen), median, middle, log, whole, notes, about)


def _bins(count: int) -> int:
    return int(min(max(2 * count ** (1 / 3), 12), MOST_BINS))


def _clipped(low: float, high: float, first: float, last: float, log: bool) -> tuple[float, float]:
    """The ends of the axis: those of the values, or where all but a few end if the rest would be squeezed."""
    if log:
        span = math.log(last / first)
        far_low, far_high = math.log(first / low) > span, math.log(high / last) > span
    else:
        span = last - first
        far_low, far_high = first - low > span > 0, high - last > span > 0
    return (first if far_low else low), (last if far_high else high)


def _edges(start: float, end: float, log: bool, whole: bool, bins: int, bound: float | None) -> Array:
    """Ends of the bins. No bin stands on both sides of the bound that a column chooses by."""
    if start == end:
        half = abs(start) or 1.0
        return np.linspace(start - half, start + half, 26)
    if log:
        grown = np.geomspace(start, end, bins + 1)
        # between two whole numbers there is nothing to count
        return np.unique(np.append(np.floor(grown - 0.5), np.floor(end)) + 0.5) if whole else grown
    if whole:
        step = math.ceil((end - start + 1) / MOST_BINS if end - start >= bins else 1)
        count = math.ceil((math.floor(end) - math.ceil(start) + 1) / step)
        return math.ceil(start) - 0.5 + step * np.arange(count + 1)
    width, fixed = (end - start) / bins, start if bound is None else bound
    before, after = math.ceil((fixed - start) / width), math.ceil((end - fixed) / width - 1e-9)
    edges: Array = fixed + width * np.arange(-before, after + 1)
    # values that floating point can hardly tell apart
    return edges if np.all(np.diff(edges) > 0) else np.array([start, end])


def svg(one: Histogram, name: str, ordered: bool = True) -> Markup:
    """The drawing, with a text for those who hear it. `name` tells its parts from those of other drawings; what is
    not `ordered`, such as the numbers of clusters, has no median."""
    title = f"Histogram of {one.about.name}"
    parts = [
        Markup(
            '<svg class="histogram" viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}-title {2}-text">'
            '<title id="{2}-title">{3}</title><desc id="{2}-text">{4}</desc>'
        ).format(
            f"{WIDTH:g}", f"{KEPT_END + 16 if one.kept.sum() else KEPT_BASE + 4:g}", name, title, spoken(one, ordered)
        )
    ]
    parts += _bounds(one)
    parts.append(_bars(one, one.pool, POOL_BASE, POOL_TOP, "pool"))
    parts.append(_ticks(one))
    if ordered:
        parts.append(_median(one, one.median, POOL_TOP, POOL_BASE))
    if one.kept.sum():
        parts.append(_bars(one, one.kept, KEPT_BASE, KEPT_END, "kept"))
        if ordered:
            parts.append(_median(one, one.kept_median, KEPT_END, KEPT_BASE))
    return Markup("").join([*parts, Markup("</svg>")])


def spoken(one: Histogram, ordered: bool = True) -> str:
    """What the drawing shows, in words."""
    told = []
    for name, counts, median in (("Pool", one.pool, one.median), ("Kept", one.kept, one.kept_median)):
        if counts.sum():
            middle = f"median {number(median)}, " if ordered else ""
            told.append(f"{name}: {int(counts.sum()):,} values, {middle}most between {_peak(one, counts)}.")
    return " ".join(told)


def _peak(one: Histogram, counts: Array) -> str:
    at = int(np.argmax(counts))
    return f"{number(float(one.edges[at]))} and {number(float(one.edges[at + 1]))}"


def _bars(one: Histogram, counts: Array, base: float, end: float, kind: str) -> Markup:
    """All bars as one path; the smallest that is not empty can still be seen."""
    peak = max(int(counts.max()), 1)
    drawn = []
    for at, count in enumerate(counts.tolist()):
        if count:
            left, right = one.at(float(one.edges[at])), one.at(float(one.edges[at + 1]))
            gap = 0.5 if right - left > 3 else 0
            height = math.copysign(max(abs(base - end) * count / peak, 0.7), end - base)
            drawn.append(f"M{left + gap:.1f} {base:g}v{height:.1f}H{right - gap:.1f}V{base:g}z")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(drawn))


def _median(one: Histogram, value: float, end: float, base: float) -> Markup:
    """A line at the median that reaches beyond the bars, to its label."""
    at, out = one.at(value), math.copysign(1, end - base)
    side = "start" if at < WIDTH / 2 else "end"
    return Markup(
        '<path class="median" d="M{} {}V{}"/>'
        '<text class="mark" x="{}" y="{}" text-anchor="{}">median {}</text>'
    ).format(
        f"{at:.1f}", f"{base:g}", f"{end + 14 * out:g}", f"{at + (4 if side == 'start' else -4):.1f}",
        f"{end + 8 * out + 5:g}", side, number(value)
    )  # fmt: skip


def _bounds(one: Histogram) -> list[Markup]:
    """Where the column may choose no more, shaded."""
    end = KEPT_END if one.kept.sum() else POOL_BASE
    shaded = []
    for bound, edge in ((one.about.below, RIGHT), (one.about.above, LEFT)):
        if bound is not None and one.edges[0] < bound < one.edges[-1]:
            at = one.at(bound)
            left, right = sorted((at, edge))
            shaded.append(
                Markup('<rect class="outside" x="{}" y="{}" width="{}" height="{}"/>').format(
                    f"{left:.1f}", f"{POOL_TOP:g}", f"{right - left:.1f}", f"{end - POOL_TOP:g}"
                )
            )
    return shaded


def _ticks(one: Histogram) -> Markup:
    parts = [Markup('<path class="axis" d="M{} {}H{}"/>').format(f"{LEFT:g}", f"{POOL_BASE:g}", f"{RIGHT:g}")]
    for value in ticks(float(one.edges[0]), float(one.edges[-1]), one.log, one.whole):
        at = one.at(value)
        side = "start" if at < LEFT + 12 else "end" if at > RIGHT - 12 else "middle"
        mark = Markup('<path class="axis" d="M{0} {1}v3"/><text x="{0}" y="{2}" text-anchor="{3}">{4}</text>')
        parts.append(mark.format(f"{at:.1f}", f"{POOL_BASE:g}", f"{POOL_BASE + 14:g}", side, number(value)))
    return Markup("").join(parts)


def ticks(low: float, high: float, log: bool, whole: bool = False) -> list[float]:
    """Round values between two ends, four to seven of them."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]
            if len(found) <= 7:
                return found
        return found[:: math.ceil(len(found) / 7)]
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    if whole and rough < 1:
        return [float(k) for k in range(math.ceil(low), math.floor(high) + 1)]
    step = next((m * unit for m in (1, 2, 2.5, 5) if m * unit >= rough), 10 * unit)
    first = math.ceil(low / step)
    digits = 12 - math.floor(math.log10(step))  # what 0.1 + 0.2 leaves behind is rounded off
    return [round(k * step, digits) for k in range(first, math.floor(high / step) + 1)]


def interval(value: float, low: float, high: float, ends: tuple[float, float]) -> Markup:
    """A figure and its interval as a dot on a line, on a scale that is shared between `ends`."""
    span = (ends[1] - ends[0]) or 1.0

    def at(x: float) -> str:
        return f"{6 + 148 * (x - ends[0]) / span:.1f}"

    return Markup(
        '<svg class="interval" viewBox="0 0 160 16" aria-hidden="true"><path d="M0 8H160"/>'
        '<path class="between" d="M{} 8H{}"/><circle cx="{}" cy="8" r="4"/></svg>'
    ).format(at(low), at(high), at(value))
