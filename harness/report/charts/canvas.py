"""What all charts share: scales, ticks, text, markers, the frame with axes, the legend."""

from __future__ import annotations

import html
import itertools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MINUS = "−"
FONT = 12.0
SMALL = 11.0
INK = "var(--ink,#1c1e22)"
FAINT = "var(--faint,#5c6168)"
RULE = "var(--line,#dcdcd6)"
PAPER = "var(--paper,#fbfbf9)"
# Hues after Okabe and Ito, darkened until each has 3:1 against the paper.
COLOURS = ("#0068a8", "#c24a00", "#007a5a", "#a34a86", "#7d6200", "#4a5563")
DASHES = ("", "6 3", "2 2.5", "8 3 2 3", "10 4", "4 2 1 2")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross")
_NARROW, _WIDE = frozenset("iIlj.,:;'|!()[]{}tfr ·"), frozenset("mwMW@%—")


def colour(index: int) -> str:
    """The colour of a series: the page's ``--chart-N``, else the light theme's."""
    place = index % len(COLOURS)
    return f"var(--chart-{place},{COLOURS[place]})"


def clean(text: object) -> str:
    """Text for SVG: escaped, without the control characters that XML forbids."""
    kept = (char for char in str(text) if char >= " " and unicodedata.category(char) != "Cs")
    return html.escape("".join(" " if char in "\ufffe\uffff" else char for char in kept))


def text_width(text: str, size: float = FONT) -> float:
    """About the width of a text in CSS pixels, rather too wide than too narrow."""
    total = 0.0
    for char in text:
        if unicodedata.combining(char):
            continue
        if char in _NARROW:
            total += 0.36
        elif char in _WIDE:
            total += 0.92
        elif unicodedata.east_asian_width(char) in "WF":
            total += 1.05
        else:
            total += 0.7 if char.isupper() else 0.58
    return total * size


def shorten(text: str, width: float, size: float = FONT) -> str:
    """The text, or as much of it as fits into ``width`` with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten; the ends enclose the range.

    Raises ValueError for ends that are not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"no axis from {low} to {high}: values have to be finite")
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Ticks with equally many decimals, as few as tell them apart; a real minus sign."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    largest = max(map(abs, ticks), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-4:
        digits = max(1, math.ceil(math.log10(largest / step)) + 1)
        return [f"{tick:.{digits}g}".replace("-", MINUS) for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [_grouped(f"{tick + 0.0:.{decimals}f}").replace("-", MINUS) for tick in ticks]


def _grouped(digits: str) -> str:
    """Thousands apart from 10 000 on, as SI writes them (narrow no-break space)."""
    whole, dot, rest = digits.partition(".")
    return f"{int(whole):,}".replace(",", "\u202f") + dot + rest if len(whole) > 4 else digits


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear: ``low`` falls on ``start``, ``high`` on ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area in common."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def px(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def text(
    x: float, y: float, words: str, *, anchor: str = "start", size: float = FONT, more: str = ""
) -> str:
    """One line of text; ``more``: further attributes."""
    return (
        f'<text x="{px(x)}" y="{px(y)}" text-anchor="{anchor}" font-size="{size:g}" '
        f"{more or _fill(INK)}>{clean(words)}</text>"
    )


def _fill(paint: str) -> str:
    return f'style="fill:{paint}"'


FAINT_TEXT = _fill(FAINT)
STRONG_TEXT = f'font-weight="600" {_fill(INK)}'


def line(x1: float, y1: float, x2: float, y2: float, paint: str, width: float = 1.0) -> str:
    """One straight line."""
    return (
        f'<line x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}" '
        f'style="stroke:{paint};stroke-width:{width:g}"/>'
    )


def marker(shape: str, x: float, y: float, paint: str, filled: bool = True, r: float = 4.5) -> str:
    """A marker of about equal area in any shape; hollow ones show the paper."""
    style = f'style="fill:{paint if filled else PAPER};stroke:{paint};stroke-width:1.6"'
    if shape == "circle":
        return f'<circle cx="{px(x)}" cy="{px(y)}" r="{r:g}" {style}/>'
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
        "down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    }.get(shape)
    if corners is None:
        style = f'style="fill:none;stroke:{paint};stroke-width:2"'
        return (
            f'<path d="M{px(x - r * 0.9)} {px(y)}h{px(r * 1.8)}M{px(x)} {px(y - r * 0.9)}'
            f'v{px(r * 1.8)}" {style}/>'
        )
    points = " ".join(f"{px(x + dx * r)},{px(y + dy * r)}" for dx, dy in corners)
    return f'<polygon points="{points}" {style}/>'


def whisker(x: float, low: float, high: float, paint: str, cap: float = 3.0) -> str:
    """An interval: a vertical bar with caps, in pixels."""
    return (
        f'<path d="M{px(x)} {px(low)}V{px(high)}M{px(x - cap)} {px(low)}h{px(2 * cap)}'
        f'M{px(x - cap)} {px(high)}h{px(2 * cap)}" style="fill:none;stroke:{paint};'
        'stroke-width:1.2"/>'
    )


def svg(width: float, height: float, parts: Iterable[str], spoken: str) -> str:
    """The whole picture. ``spoken``: what a screen reader says of it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {px(width)} '
        f'{px(height)}" width="{px(width)}" height="{px(height)}" role="img" '
        f'aria-label="{clean(spoken)}" '
        f'style="color:{INK};background:{PAPER};font-variant-numeric:tabular-nums" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">"
        f"{''.join(parts)}</svg>"
    )
