"""Image grids: the same prompt in every method side by side, images inlined as PNG data."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from harness.config import Size
from harness.experiment import Experiment
from harness.plan import Cell
from harness.report.text import number
from harness.results import Metric, Scores

PROMPTS_SHOWN = 8
SHOWN_SIDE = 168
"""CSS pixels of an image's longer side: equal for all sizes, so that contents can be compared."""
STORED_SIDE = 384
"""Larger images are scaled down to this longer side, to keep the page small."""


def grids_html(experiment: Experiment, results: Mapping[str, Any], scores: Scores) -> str:
    """One grid a size: a row a prompt, a column a method that drew images of its own."""
    same = {cell["id"]: cell["same_as"] for cell in results["cells"]}
    total = len(experiment.plan.prompts)
    shown = min(PROMPTS_SHOWN, total)
    text = f'<p class="small faint">The first {shown} of {total} prompts, not selected.</p>'
    for size in dict.fromkeys(cell.size for cell in experiment.cells):
        cells = [cell for cell in experiment.cells if cell.size == size and not same[cell.id]]
        copies = [cell for cell in experiment.cells if cell.size == size and same[cell.id]]
        text += f"<h3>{size}</h3>{_copies(copies, same)}{_grid(experiment, cells, shown, scores)}"
    return text


def _copies(cells: list[Cell], same: Mapping[str, str | None]) -> str:
    if not cells:
        return ""
    said = "; ".join(f"{cell.method.label}: same images as {same[cell.id]}" for cell in cells)
    return f'<p class="small faint">{html.escape(said)}.</p>'


def _grid(experiment: Experiment, cells: list[Cell], shown: int, scores: Scores) -> str:
    head = "".join(f"<th>{html.escape(cell.method.label)}</th>" for cell in cells)
    body = ""
    for index, prompt in enumerate(experiment.plan.prompts[:shown]):
        images = "".join(f"<td>{_figure(experiment, cell, index, scores)}</td>" for cell in cells)
        body += f"<tr><th>{html.escape(prompt.text)}</th>{images}</tr>"
    return (
        f'<div class="scroll"><table class="grid"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(experiment: Experiment, cell: Cell, index: int, scores: Scores) -> str:
    item = experiment.plan.items(cell)[index]
    image = experiment.store.load(item.key)
    scale = SHOWN_SIDE / max(cell.size)
    width, height = round(cell.size.width * scale), round(cell.size.height * scale)
    alt = html.escape(f"{cell.method.label}, {cell.size}: {item.prompt.text}", quote=True)
    return (
        f'<figure><img src="{_data_uri(image, cell.size)}" width="{width}" height="{height}" '
        f'loading="lazy" alt="{alt}">{_scores_line(cell, index, scores)}</figure>'
    )


def _scores_line(cell: Cell, index: int, scores: Scores) -> str:
    """The image's own scores under it."""
    values = scores.per_image.get(cell.id, {})
    said = [
        _short(metric, float(values[metric.name][index]))
        for metric in scores.metrics
        if metric.name in values and metric.name != "caption_check_all"
    ]
    return f"<figcaption>{html.escape(' · '.join(said))}</figcaption>" if said else ""


def _short(metric: Metric, value: float) -> str:
    if metric.name == "caption_check_facts":
        return "all facts right" if value == 1 else f"{value:.0%} of the facts"
    return f"{metric.label} {number(value, 2)}"


def _data_uri(image: Image.Image, size: Size) -> str:
    if max(size) > STORED_SIDE:
        image = image.copy()
        image.thumbnail((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
