"""The frame of a chart with two axes: title, legend, ticks with faint rules, axis labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.charts.canvas import (
    DASHES,
    FAINT,
    FAINT_TEXT,
    FONT,
    MARKERS,
    RULE,
    SMALL,
    STRONG_TEXT,
    Box,
    Scale,
    colour,
    line,
    marker,
    nice_ticks,
    px,
    shorten,
    text,
    text_width,
    tick_texts,
)

ROW = 18.0
"""Pixels from one line of text to the next."""


@dataclass(frozen=True)
class Labels:
    """The words around a chart. ``note`` stands below it; the others may be empty as well."""

    x: str
    y: str
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """A drawn frame: its parts, the scales inside it, its box, and the picture's height."""

    parts: list[str]
    x: Scale
    y: Scale
    box: Box
    height: float


@dataclass(frozen=True)
class Key:
    """One entry of a legend; ``place`` picks colour, dash and marker."""

    label: str
    place: int
    marked: bool = True


def style_of(place: int) -> tuple[str, str, str]:
    """(colour, dash, marker) of the series at ``place``."""
    return colour(place), DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)]


def legend(keys: Sequence[Key], left: float, top: float, right: float) -> tuple[list[str], float]:
    """Entries in rows as wide as there is room, and the y below them."""
    parts: list[str] = []
    x, y = left, top
    for key in keys:
        label = shorten(key.label, right - left - 40)
        width = 34 + text_width(label) + 14
        if x > left and x + width > right:
            x, y = left, y + ROW
        paint, dash, shape = style_of(key.place)
        dashed = f";stroke-dasharray:{dash}" if dash else ""
        parts.append(
            f'<path d="M{px(x)} {px(y + 8)}h26" style="fill:none;stroke:{paint};stroke-width:2'
            f'{dashed}"/>'
        )
        if key.marked:
            parts.append(marker(shape, x + 13, y + 8, paint, r=4))
        parts.append(text(x + 34, y + 12, label))
        x += width
    return parts, (y + ROW + 6 if keys else top)


def frame(
    labels: Labels,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    size: tuple[float, float],
    keys: Sequence[Key] = (),
) -> Frame:
    """Everything around the data. ``size``: width of the picture, height of the plot in it."""
    width, plot_height = size
    parts: list[str] = []
    top = 6.0
    if labels.title:
        parts.append(
            text(8, top + 13, shorten(labels.title, width - 16, 14), size=14, more=STRONG_TEXT)
        )
        top += 26
    drawn, top = legend(keys, 8, top + 2, width - 8)
    parts += drawn
    parts.append(text(8, top + 14, shorten(labels.y, width - 16), more=FAINT_TEXT))
    top += 28
    y_ticks = nice_ticks(*y_range, count=max(2, round(plot_height / 55)))
    y_texts = tick_texts(y_ticks)
    left = 14 + max(text_width(words, SMALL) for words in y_texts)
    box = Box(left, top, width - 18, top + plot_height)
    y = Scale(y_ticks[0], y_ticks[-1], box.bottom, box.top)
    for tick, words in zip(y_ticks, y_texts, strict=True):
        zero = abs(tick) < 1e-12 and y_ticks[0] < 0
        paint, strength = (FAINT, 1.2) if zero else (RULE, 1.0)
        parts.append(line(box.left, y(tick), box.right, y(tick), paint, strength))
        parts.append(
            text(box.left - 7, y(tick) + 4, words, anchor="end", size=SMALL, more=FAINT_TEXT)
        )
    x_ticks, x_texts = _x_ticks(x_range, box.right - box.left)
    x = Scale(x_ticks[0], x_ticks[-1], box.left, box.right)
    parts.append(line(box.left, box.bottom, box.right, box.bottom, FAINT))
    for tick, words in zip(x_ticks, x_texts, strict=True):
        parts.append(line(x(tick), box.bottom, x(tick), box.bottom + 4, FAINT))
        parts.append(
            text(x(tick), box.bottom + 17, words, anchor="middle", size=SMALL, more=FAINT_TEXT)
        )
    parts.append(
        text(
            (box.left + box.right) / 2,
            box.bottom + 36,
            shorten(labels.x, width - 16),
            anchor="middle",
            more=FAINT_TEXT,
        )
    )
    bottom = box.bottom + 44
    for words in wrap(labels.note, width - 16, SMALL):
        bottom += 15
        parts.append(text(8, bottom, words, size=SMALL, more=FAINT_TEXT))
    return Frame(parts, x, y, box, bottom + 8)


def _x_ticks(ends: tuple[float, float], width: float) -> tuple[list[float], list[str]]:
    """As many ticks as have room for their texts."""
    for count in range(max(2, round(width / 70)), 1, -1):
        ticks = nice_ticks(*ends, count=count)
        texts = tick_texts(ticks)
        room = width / max(1, len(ticks) - 1)
        if max(text_width(words, SMALL) for words in texts) + 8 <= room:
            break
    return ticks, texts


def wrap(words: str, width: float, size: float = FONT) -> list[str]:
    """A sentence in lines that fit; no line where there are no words."""
    lines: list[str] = []
    for word in words.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, width, size))
    return lines


def data_range(values: Sequence[float], pad: float = 0.04) -> tuple[float, float]:
    """From the least to the largest with a little room.

    Raises ValueError without values, or when one is not finite.
    """
    if not values:
        raise ValueError("a chart needs at least one value")
    if not all(map(math.isfinite, values)):
        raise ValueError("the values of a chart have to be finite")
    low, high = min(values), max(values)
    room = (high - low) * pad
    return low - room, high + room
