"""Several methods on several metrics at once (Figure 8): every metric scaled from worst to best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.charts.canvas import (
    FAINT_TEXT,
    FONT,
    RULE,
    SMALL,
    STRONG_TEXT,
    clean,
    line,
    marker,
    px,
    shorten,
    svg,
    text,
)
from harness.report.charts.frame import Key, legend, style_of, wrap

RADIUS = 120.0
HUB = 0.12
"""The worst value stands at this share of the radius, so that polygons do not meet in a point."""
NOTE = (
    "Each axis runs from the worst of these methods (inner ring) to the best (outer ring), min-max "
    "of that metric alone: lengths on different axes cannot be compared, and areas mean nothing."
)


@dataclass(frozen=True)
class Axis:
    """A metric; ``decimals`` for the two values written at its ends."""

    label: str
    higher_is_better: bool = True
    decimals: int = 3


@dataclass(frozen=True)
class Shape:
    """A method's values, one an axis; None where it was not measured."""

    label: str
    values: Sequence[float | None]


def min_max(values: Sequence[float | None], higher_is_better: bool) -> list[float | None]:
    """Each value from 0 (the worst) to 1 (the best); all 1 when they do not differ.

    >>> min_max([2.0, 4.0, 3.0], higher_is_better=False)
    [1.0, 0.0, 0.5]
    """
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high == low:
        return [None if value is None else 1.0 for value in values]
    shares = [None if value is None else (value - low) / (high - low) for value in values]
    if higher_is_better:
        return shares
    return [None if share is None else 1.0 - share for share in shares]


def radar_svg(
    axes: Sequence[Axis],
    series: Sequence[Shape],
    *,
    title: str = "",
    note: str = "",
    width: float = 560.0,
) -> str:
    """The chart as SVG text.

    Raises ValueError for fewer than three axes, no series, or a series of another length.
    """
    if len(axes) < 3 or not series:
        raise ValueError("a radar needs at least three axes and one series")
    if any(len(shape.values) != len(axes) for shape in series):
        raise ValueError("every series needs one value (or None) an axis")
    shares = [
        min_max([shape.values[i] for shape in series], axis.higher_is_better)
        for i, axis in enumerate(axes)
    ]
    parts: list[str] = []
    top = 6.0
    if title:
        parts.append(text(8, top + 13, shorten(title, width - 16, 14), size=14, more=STRONG_TEXT))
        top += 26
    keys = [Key(shape.label, i) for i, shape in enumerate(series)]
    drawn, top = legend(keys, 8, top + 2, width - 8)
    centre = (width / 2, top + 52 + RADIUS)
    parts += [*drawn, *_grid(axes, centre)]
    for i in range(len(axes)):
        parts += _axis_words(axes, i, [s.values[i] for s in series], centre, width)
    for number in reversed(range(len(series))):
        parts += _polygon(series[number], number, [share[number] for share in shares], centre)
    bottom = centre[1] + RADIUS + 58
    for words in wrap(f"{NOTE} {note}", width - 16, SMALL):
        parts.append(text(8, bottom, words, size=SMALL, more=FAINT_TEXT))
        bottom += 15
    spoken = f"{title or 'Radar'}: {', '.join(shape.label for shape in series)}"
    return svg(width, bottom, parts, spoken)


def _at(centre: tuple[float, float], axis: int, of: int, radius: float) -> tuple[float, float]:
    angle = 2 * math.pi * axis / of - math.pi / 2
    return centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)


def _radius(share: float) -> float:
    return RADIUS * (HUB + (1 - HUB) * share)


def _grid(axes: Sequence[Axis], centre: tuple[float, float]) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        ring = [_at(centre, i, len(axes), _radius(share)) for i in range(len(axes))]
        points = " ".join(f"{px(x)},{px(y)}" for x, y in ring)
        parts.append(f'<polygon points="{points}" style="fill:none;stroke:{RULE}"/>')
    return parts + [
        line(*centre, *_at(centre, i, len(axes), RADIUS), RULE) for i in range(len(axes))
    ]


def _axis_words(
    axes: Sequence[Axis],
    place: int,
    values: Sequence[float | None],
    centre: tuple[float, float],
    width: float,
) -> list[str]:
    """The metric's name, its direction, and what its inner and outer ends stand for."""
    axis = axes[place]
    x, y = _at(centre, place, len(axes), RADIUS + 14)
    across = x - centre[0]
    anchor = "middle" if abs(across) < 20 else "start" if across > 0 else "end"
    room = {"middle": width - 16, "start": width - x - 6, "end": x - 6}[anchor]
    if y < centre[1] - RADIUS:
        y -= 16
    elif y > centre[1] + RADIUS:
        y += 10
    arrow = "↑" if axis.higher_is_better else "↓"
    words = [text(x, y, shorten(f"{axis.label} {arrow}", room), anchor=anchor)]
    known = [value for value in values if value is not None]
    if known:
        worst, best = (min(known), max(known))[:: 1 if axis.higher_is_better else -1]
        span = f"{worst:.{axis.decimals}f} … {best:.{axis.decimals}f}".replace("-", "−")
        said = shorten(span, room, SMALL)
        words.append(text(x, y + FONT + 3, said, anchor=anchor, size=SMALL, more=FAINT_TEXT))
    return words


def _polygon(
    shape: Shape, number: int, shares: Sequence[float | None], centre: tuple[float, float]
) -> list[str]:
    """The method's line; it is open where a metric was not measured."""
    paint, dash, mark = style_of(number)
    count = len(shares)
    places = [
        None if s is None else _at(centre, i, count, _radius(s)) for i, s in enumerate(shares)
    ]
    path = ""
    for i in range(count):
        here, there = places[i], places[(i + 1) % count]
        if here and there:
            path += f"M{px(here[0])} {px(here[1])}L{px(there[0])} {px(there[1])}"
    whole = all(places)
    if whole:
        path = "M" + "L".join(f"{px(x)} {px(y)}" for x, y in filter(None, places)) + "Z"
    dashed = f";stroke-dasharray:{dash}" if dash else ""
    style = f"fill:none;stroke:{paint};stroke-width:2;stroke-linejoin:round{dashed}"
    dots = "".join(marker(mark, *where, paint, r=3.5) for where in places if where)
    return [f'<g><title>{clean(shape.label)}</title><path d="{path}" style="{style}"/>{dots}</g>']
