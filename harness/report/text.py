"""Plain-text lines and tables, and the number formats that the HTML page shares."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from harness.experiment import Experiment

MINUS = "−"
MISSING = "–"


def number(value: float | None, decimals: int = 3) -> str:
    """``0.625``; a dash for what was not measured."""
    if value is None:
        return MISSING
    return f"{value:.{decimals}f}".replace("-", MINUS)


def signed(value: float, decimals: int = 3) -> str:
    """``+0.012`` or ``−0.012``; exact zero has no sign."""
    if value == 0:
        return f"{0:.{decimals}f}"
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def interval(difference: Mapping[str, float], decimals: int = 3) -> str:
    """``+0.012 [−0.010, +0.034]``."""
    low, high = (signed(difference[end], decimals) for end in ("low", "high"))
    return f"{signed(difference['estimate'], decimals)} [{low}, {high}]"


def decision_lines(experiment: Experiment) -> list[str]:
    """One line a size: what CR-Diff does there and why."""
    lines = []
    for size in dict.fromkeys(cell.size for cell in experiment.cells):
        acting = [cell for cell in experiment.cells if cell.size == size]
        sentence = acting[0].decision.sentence
        forced = any(cell.forced for cell in acting)
        note = "; forced: Auto would leave this size alone"
        lines.append(f"- {sentence}{note if forced else ''}")
    return lines


def is_idle(cell: Mapping[str, Any]) -> bool:
    """Whether another method's images are dense ones although no dense cell is beside it."""
    drawing = cell.get("drawing") or {}  # older scores.json have none: not known, not marked
    dense = drawing.get("kind") == "dense" and cell["method"] != "dense"
    return dense and not cell["same_as"] and not drawing.get("told_size")


def cell_name(cell: Mapping[str, Any]) -> str:
    """A cell's method as every table names it: ``image_name``, or whose copy it is."""
    if cell["same_as"]:
        return f"{cell['label']} = {cell['same_as'].partition('/')[2]}"
    return image_name(cell)


def image_name(cell: Mapping[str, Any]) -> str:
    """A cell's method as below its images: marked where they are dense's, or it was told to act."""
    label = str(cell["label"])
    if is_idle(cell):
        return f"{label} (inactive)"
    return f"{label} (forced)" if cell.get("forced") else label


def cell_table(results: Mapping[str, Any]) -> str:
    """All cells with their scores: the value, then the difference to dense with half its interval.

    Intervals are symmetric (harness/stats.py), so "±" loses nothing.
    """
    metrics = results["metrics"]
    names = [metric["label"] for metric in metrics]
    blocks = [_head(["", "images", *names, "s/image"])]
    for size, cells in by_size(results).items():
        native = [cells[0]["height"], cells[0]["width"]] == results["model"]["native"]
        blocks.append([[f"{size}{' (native)' if native else ''}"]])
        for cell in cells:
            values = [_cell_text(cell, metric) for metric in metrics]
            seconds = number(cell["seconds_per_image"], 2)
            blocks.append([[f"  {cell_name(cell)}", str(cell["images"]), *values, seconds]])
    return align([row for block in blocks for row in block], rule_after=len(blocks[0]))


def by_size(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The cells of each size, in order."""
    sizes: dict[str, list[Mapping[str, Any]]] = {}
    for cell in results["cells"]:
        sizes.setdefault(f"{cell['height']}x{cell['width']}", []).append(cell)
    return sizes


def _head(names: Sequence[str]) -> list[list[str]]:
    """Column heads of several words, a few words a line, the last line full."""
    wrapped = [textwrap.wrap(name, 16) or [""] for name in names]
    height = max(map(len, wrapped))
    padded = [[""] * (height - len(lines)) + lines for lines in wrapped]
    return [list(row) for row in zip(*padded, strict=True)]


def _cell_text(cell: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    entry, decimals = cell["metrics"].get(metric["name"]), metric["decimals"]
    if entry is None:
        return MISSING
    difference = entry["vs_dense"]
    text = number(entry["value"], decimals)
    if difference is None or cell["same_as"]:
        return text
    half = number((difference["high"] - difference["low"]) / 2, decimals)
    return f"{text}  {signed(difference['estimate'], decimals)} ±{half}"


def align(rows: Sequence[Sequence[str]], rule_after: int = 1) -> str:
    """Columns as wide as their widest entry (rows of one entry aside), a rule under heads."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[column]) for row in full) for column in range(len(full[0]))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=False)) for row in rows]
    lines.insert(rule_after, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
