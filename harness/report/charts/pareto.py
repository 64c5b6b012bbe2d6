"""Cost against quality: points with intervals, and the front that nothing beats on both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.charts.canvas import (
    FAINT,
    INK,
    Box,
    clean,
    colour,
    line,
    marker,
    px,
    shorten,
    svg,
    text,
    whisker,
)
from harness.report.charts.frame import Frame, Labels, data_range, frame
from harness.report.charts.labels import HEIGHT, Placed, place

NAME_WIDTH = 190.0
FRONT_NOTE = (
    "Filled: on the front, no other point is both as cheap and as good (by the estimates, not the "
    "intervals). Hollow: beaten by another point."
)


@dataclass(frozen=True)
class Point:
    """A method: what it costs, what it reaches, and that value's 95 % interval if there is one."""

    label: str
    cost: float
    value: float
    low: float | None = None
    high: float | None = None


def front(points: Sequence[Point], higher_is_better: bool = True) -> list[bool]:
    """For each point whether it is on the front.

    It is when no other point is as cheap and as good, and better in one of the two.
    """
    sign = 1.0 if higher_is_better else -1.0

    def beats(a: Point, b: Point) -> bool:
        gain, saving = sign * (a.value - b.value), b.cost - a.cost
        return gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)

    return [not any(beats(other, point) for other in points) for point in points]


def pareto_svg(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    note: str = "",
    higher_is_better: bool = True,
    size: tuple[float, float] = (640.0, 320.0),
) -> str:
    """The plot as SVG text. ``size``: width of the picture, height of the plot in it.

    The direction of "better" is added to ``y_label``. Raises ValueError without points or for
    values that are not finite.
    """
    values = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    arrow = "higher is better ↑" if higher_is_better else "lower is better ↓"
    labels = Labels(x_label, f"{y_label} ({arrow})", title, f"{_bars(points)}{FRONT_NOTE} {note}")
    base = frame(labels, _costs(points), data_range(values), size)
    on_front = front(points, higher_is_better)
    runs = _runs(points, on_front, base)
    parts = [*base.parts, _stairs(runs)]
    for point, good in zip(points, on_front, strict=True):
        parts.append(_mark(point, good, base))
    parts += [_label(label) for label in _names(points, runs, base)]
    spoken = f"{title or y_label}: " + "; ".join(map(told, points))
    return svg(size[0], base.height, parts, spoken)


def told(point: Point) -> str:
    """The point in words, for its tooltip and for screen readers."""
    text_ = f"{point.label}: cost {point.cost:.3g}, value {point.value:.4g}"
    if point.low is not None and point.high is not None:
        text_ += f" [{point.low:.4g}, {point.high:.4g}]"
    return text_.replace("-", "−")


def _bars(points: Sequence[Point]) -> str:
    return "Bars: 95 % intervals. " if any(point.low is not None for point in points) else ""


def _costs(points: Sequence[Point]) -> tuple[float, float]:
    """The x axis: from zero where the costs spread over much of it, else around them."""
    costs = [point.cost for point in points]
    low, high = data_range(costs, 0.06)
    return (0.0, high) if 0 <= min(costs) < 0.5 * max(costs) else (low, high)


def _mark(point: Point, good: bool, base: Frame) -> str:
    x, y = base.x(point.cost), base.y(point.value)
    paint = colour(0) if good else FAINT
    bar = ""
    if point.low is not None and point.high is not None:
        bar = whisker(x, base.y(point.low), base.y(point.high), paint)
    return f"<g><title>{clean(told(point))}</title>{bar}{marker('circle', x, y, paint, good)}</g>"


def _corners(points: Sequence[Point], on_front: Sequence[bool]) -> list[tuple[float, float]]:
    """The front's points by cost; equal ones once."""
    return sorted({(p.cost, p.value) for p, good in zip(points, on_front, strict=True) if good})


def _runs(points: Sequence[Point], on_front: Sequence[bool], base: Frame) -> list[Box]:
    """The front as a step line, the best value reached at each cost: its runs, without height."""
    corners = [(base.x(cost), base.y(value)) for cost, value in _corners(points, on_front)]
    runs = []
    for (x, y), (next_x, next_y) in itertools.pairwise(corners):
        runs += [Box(x, y, next_x, y), Box(next_x, min(y, next_y), next_x, max(y, next_y))]
    return runs


def _stairs(runs: Sequence[Box]) -> str:
    path = "".join(
        f"M{px(run.left)} {px(run.top)}L{px(run.right)} {px(run.bottom)}" for run in runs
    )
    style = f"fill:none;stroke:{colour(0)};stroke-width:1.2;stroke-dasharray:4 3;opacity:.75"
    return f'<path d="{path}" style="{style}"/>' if path else ""


def _names(points: Sequence[Point], runs: Sequence[Box], base: Frame) -> list[Placed]:
    anchors = []
    obstacles = [Box(run.left, run.top - 1, run.right + 1, run.bottom + 1) for run in runs]
    for point in points:
        x, y = base.x(point.cost), base.y(point.value)
        anchors.append((x, y, shorten(point.label, NAME_WIDTH)))
        obstacles.append(Box(x - 6, y - 6, x + 6, y + 6))
        if point.low is not None and point.high is not None:
            obstacles.append(Box(x - 4, base.y(point.high), x + 4, base.y(point.low)))
    box = base.box
    inside = Box(box.left + 4, box.top - HEIGHT / 2, box.right + 14, box.bottom - 3)
    return place(anchors, obstacles, inside)


def _label(label: Placed) -> str:
    box = label.box
    parts = ""
    if label.leader:
        end_x = min(max(label.x, box.left), box.right)
        end_y = min(max(label.y, box.top + 2), box.bottom - 2)
        parts = line(label.x, label.y, end_x, end_y, FAINT, 0.8)
    halo = (
        f'style="fill:{INK};stroke:var(--paper,#fbfbf9);stroke-width:3;paint-order:stroke;'
        'stroke-linejoin:round"'
    )
    # The box's width is an estimate, rather too wide: the text keeps to the side of its point.
    if box.left >= label.x:
        x, anchor = box.left, "start"
    elif box.right <= label.x:
        x, anchor = box.right, "end"
    else:
        x, anchor = (box.left + box.right) / 2, "middle"
    return parts + text(x, box.bottom - HEIGHT * 0.25, label.words, anchor=anchor, more=halo)
