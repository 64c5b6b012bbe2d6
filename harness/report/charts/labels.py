"""Names beside points: each where it overlaps nothing, farther away with a leader if need be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.charts.canvas import FONT, Box, text_width

HEIGHT = FONT * 1.2
DISTANCES = (9.0, 15.0, 24.0, 36.0, 52.0, 72.0, 96.0, 124.0)
DIRECTIONS = 16
SWEEPS = 3
LEADER_FROM = 20.0
"""A label this far from its point is tied to it with a line."""


@dataclass(frozen=True)
class Placed:
    """A label: its box and whether a leader ties it to its point at ``x, y``."""

    words: str
    x: float
    y: float
    box: Box
    leader: bool


def place(
    anchors: Sequence[tuple[float, float, str]], obstacles: Sequence[Box], inside: Box
) -> list[Placed]:
    """A box for each ``(x, y, words)``, within ``inside``, in the order given.

    Greedy, then every label is placed again among the others a few times.
    """
    candidates = [_candidates(x, y, words, inside) for x, y, words in anchors]
    chosen: list[Placed | None] = [None] * len(anchors)
    for _ in range(SWEEPS):
        for index, options in enumerate(candidates):
            others = [label.box for i, label in enumerate(chosen) if label and i != index]
            chosen[index] = min(options, key=lambda option: _cost(option, others, obstacles))
    return [label for label in chosen if label is not None]


def _cost(option: Placed, others: Sequence[Box], obstacles: Sequence[Box]) -> float:
    """Overlap with other labels weighs most, then with marks; else near is better."""
    covered = sum(option.box.overlap(box) for box in others)
    hidden = sum(option.box.overlap(box) for box in obstacles)
    return 50 * covered + 10 * hidden + _distance(option)


def _distance(option: Placed) -> float:
    """From the point to the nearest edge of the box; the right side is the habit."""
    box = option.box
    dx = max(box.left - option.x, option.x - box.right, 0.0)
    dy = max(box.top - option.y, option.y - box.bottom, 0.0)
    return math.hypot(dx, dy) + (0.0 if box.left >= option.x else 1.5) + 0.1 * abs(dy)


def _candidates(x: float, y: float, words: str, inside: Box) -> list[Placed]:
    width = text_width(words)
    made = []
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            across, down = math.cos(angle), math.sin(angle)
            # The box's nearest point lies at the distance: it is moved by its own size as well.
            middle_x = x + across * distance + (width / 2) * _sign(across)
            middle_y = y + down * distance + (HEIGHT / 2) * _sign(down)
            box = _pushed_in(middle_x, middle_y, width, inside)
            placed = Placed(words, x, y, box, False)
            leader = _distance(placed) > LEADER_FROM
            made.append(Placed(words, x, y, box, leader))
    return made


def _sign(value: float) -> float:
    """-1, 0 or 1, with a dead zone: straight above means centred."""
    return 0.0 if abs(value) < 0.2 else math.copysign(1.0, value)


def _pushed_in(x: float, y: float, width: float, inside: Box) -> Box:
    left = min(max(x - width / 2, inside.left), max(inside.left, inside.right - width))
    top = min(max(y - HEIGHT / 2, inside.top), inside.bottom - HEIGHT)
    return Box(left, top, left + width, top + HEIGHT)
