"""Scores along something: sparsity curves (Figure 2a), search curves (Figure 7b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.report.charts.canvas import clean, marker, px, svg, whisker
from harness.report.charts.frame import Frame, Key, Labels, data_range, frame, style_of

MOST_MARKERS = 24
"""A series of more places is a line without markers, its intervals a band."""
DODGE = 5.0
"""Pixels between whiskers of neighbouring series at the same x."""


@dataclass(frozen=True)
class Place:
    """One value of a series, with its 95 % interval if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A series; ``steps``: the value holds until the next place, as a best score so far does."""

    label: str
    places: Sequence[Place] = field(default_factory=tuple)
    steps: bool = False


def lines_svg(
    series: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    note: str = "",
    size: tuple[float, float] = (480.0, 240.0),
) -> str:
    """The series as SVG text. ``size``: width of the picture, height of the plot in it.

    Raises ValueError when there is not one value, or one that is not finite.
    """
    shown = [line for line in series if line.places]
    places = [place for line in shown for place in line.places]
    values = [v for p in places for v in (p.y, p.low, p.high) if v is not None]
    bars = any(place.low is not None for place in places)
    keys = [Key(line.label, i, _marked(line)) for i, line in enumerate(shown)]
    labels = Labels(x_label, y_label, title, f"{'Bars: 95 % intervals. ' if bars else ''}{note}")
    x_range = data_range([place.x for place in places], 0.0)
    base = frame(labels, x_range, data_range(values), size, keys if len(keys) > 1 else ())
    parts = list(base.parts)
    # The first series is the subject: it is drawn last, on top.
    for number in reversed(range(len(shown))):
        shift = (number - (len(shown) - 1) / 2) * DODGE if bars and len(shown) > 1 else 0.0
        parts += _series(shown[number], number, shift, base)
    spoken = f"{title or y_label} over {x_label}: {', '.join(line.label for line in shown)}"
    return svg(size[0], base.height, parts, spoken)


def _marked(line: Line) -> bool:
    """Whether its places are marked: a best score so far has none of its own."""
    return len(line.places) <= MOST_MARKERS and not line.steps


def _series(line: Line, number: int, shift: float, base: Frame) -> list[str]:
    paint, dash, shape = style_of(number)
    if not _marked(line):
        shift = 0.0
    places = sorted(line.places, key=lambda place: place.x)
    xs = [base.x(place.x) + shift for place in places]
    ys = [base.y(place.y) for place in places]
    path = f"M{px(xs[0])} {px(ys[0])}"
    for x, y in zip(xs[1:], ys[1:], strict=True):
        path += f"H{px(x)}V{px(y)}" if line.steps else f"L{px(x)} {px(y)}"
    dashed = f";stroke-dasharray:{dash}" if dash else ""
    style = f"fill:none;stroke:{paint};stroke-width:2;stroke-linejoin:round{dashed}"
    parts = [f'<path d="{path}" style="{style}"/>']
    if not _marked(line):
        return [_band(places, xs, paint, base), *parts]
    for place, x, y in zip(places, xs, ys, strict=True):
        bar = ""
        if place.low is not None and place.high is not None:
            bar = whisker(x, base.y(place.low), base.y(place.high), paint)
        title = clean(_told(line, place))
        parts.append(f"<g><title>{title}</title>{bar}{marker(shape, x, y, paint, r=3.5)}</g>")
    return parts


def _band(places: Sequence[Place], xs: Sequence[float], paint: str, base: Frame) -> str:
    ends = [
        (x, base.y(place.low), base.y(place.high))
        for place, x in zip(places, xs, strict=True)
        if place.low is not None and place.high is not None
    ]
    if len(ends) < 2:
        return ""
    up = [f"{px(x)} {px(high)}" for x, _, high in ends]
    down = [f"{px(x)} {px(low)}" for x, low, _ in reversed(ends)]
    return f'<path d="M{"L".join(up + down)}Z" style="fill:{paint};opacity:.14"/>'


def _told(line: Line, place: Place) -> str:
    words = f"{line.label}: {place.y:.4g} at {place.x:.4g}"
    if place.low is not None and place.high is not None:
        words += f" [{place.low:.4g}, {place.high:.4g}]"
    return words.replace("-", "−")
