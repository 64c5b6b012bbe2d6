"""The charts of a run: cost against quality at each size, sparsity curves, criteria compared."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.charts import (
    Axis,
    Line,
    Place,
    Point,
    Shape,
    lines_svg,
    pareto_svg,
    radar_svg,
)
from harness.report.source import Results
from harness.report.text import by_size, image_name

Cell = Mapping[str, Any]
MOST_SHAPES = 6
"""Methods on one radar; more cannot be told apart."""


def figures_html(results: Results) -> str:
    """All charts that this run has the numbers for; empty when there are none."""
    return _costs(results) + _curves(results) + _radars(results)


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if not cell["same_as"]]


def _dense(cells: Sequence[Cell]) -> Cell | None:
    return next((cell for cell in cells if cell["method"] == "dense"), None)


def _costs(results: Results) -> str:
    made = ""
    for size, cells in by_size(results).items():
        charts = ""
        for index, metric in enumerate(results["metrics"]):
            points = cost_points(cells, metric["name"])
            if len(points) < 2:
                continue
            chart = pareto_svg(
                points,
                x_label="Seconds an image, as a multiple of dense (wall time, measured)",
                y_label=f"{metric['label']}: difference to dense",
                title=f"{size}: {metric['label']}",
                higher_is_better=metric["higher_is_better"],
                size=(560.0, 250.0),
            )
            charts += f'<figure class="cost" data-metric="{index}">{chart}</figure>'
        made += charts
    if not made:
        return ""
    options = "".join(
        f'<option value="{i}">{html.escape(metric["label"])}</option>'
        for i, metric in enumerate(results["metrics"])
        if f'data-metric="{i}"' in made
    )
    return (
        '<h2>Cost and quality</h2><form class="tools" hidden><label>Metric '
        f'<select id="cost-metric">{options}</select></label></form>'
        f'<div class="charts costs">{made}</div>'
    )


def cost_points(cells: Sequence[Cell], metric: str) -> list[Point]:
    """Dense at (1, 0), and every method with a paired difference to it; without dense none."""
    dense = _dense(cells)
    if dense is None or not dense["seconds_per_image"]:
        return []
    points = [Point(dense["label"], 1.0, 0.0)]
    for cell in _distinct(cells):
        entry = cell["metrics"].get(metric)
        if cell is dense or not entry or not entry["vs_dense"] or not cell["seconds_per_image"]:
            continue
        difference = entry["vs_dense"]
        cost = cell["seconds_per_image"] / dense["seconds_per_image"]
        ends = (difference["low"], difference["high"])
        points.append(Point(image_name(cell), cost, difference["estimate"], *ends))
    return points


def _curves(results: Results) -> str:
    made = ""
    for metric in results["metrics"]:
        series = [
            Line(size, places)
            for size, cells in by_size(results).items()
            if len(places := sparsity_places(cells, metric["name"])) > 2
        ]
        if series:
            arrow = "higher is better ↑" if metric["higher_is_better"] else "lower is better ↓"
            made += "<figure>" + lines_svg(
                series,
                x_label="Share of the weights of each group set to zero, k = 1",
                y_label=f"Difference to dense ({arrow})",
                title=metric["label"],
            )
            made += "</figure>"
    note = "Pruning alone, without amplification, as in the paper's Figure 2a."
    return _section("Sparsity", note, made)


def sparsity_places(cells: Sequence[Cell], metric: str) -> list[Place]:
    """Dense at ratio 0 and every cell that only prunes, by magnitude, all groups alike."""
    if _dense(cells) is None:
        return []
    found = {0.0: Place(0.0, 0.0)}
    for cell in cells:
        drawing, entry = cell["drawing"], cell["metrics"].get(metric)
        ratios = set((drawing["ratios"] or {}).values())
        if len(ratios) != 1 or drawing["k"] != 1 or criterion(cell) != "magnitude":
            continue
        if entry and (difference := entry["vs_dense"]):
            ratio = ratios.pop()
            ends = (difference["low"], difference["high"])
            found[ratio] = Place(ratio, difference["estimate"], *ends)
    return [found[ratio] for ratio in sorted(found)]


def criterion(cell: Cell) -> str | None:
    """What decided which weights of the cell were pruned; None where none were."""
    if cell["drawing"]["kind"] != "amplified":
        return None
    told = cell["drawing"].get("criterion")
    return str(told["name"]) if told else "magnitude"


def _radars(results: Results) -> str:
    made = ""
    for size, cells in by_size(results).items():
        pruned = [cell for cell in _distinct(cells) if criterion(cell)]
        if len({criterion(cell) for cell in pruned}) < 2:
            continue
        alone = [cell for cell in pruned if cell["drawing"]["k"] == 1]
        amplified = [cell for cell in pruned if cell["drawing"]["k"] != 1]
        whole = len(pruned) <= MOST_SHAPES
        parts = [("", pruned)] if whole else [(", k = 1", alone), (", amplified", amplified)]
        made += "".join(_radar(f"{size}{what}", part, results) for what, part in parts)
    note = "Criteria for pruning at the same block ratios, as in the paper's Figure 8."
    return _section("Criteria compared", note, made)


def _radar(title: str, cells: Sequence[Cell], results: Results) -> str:
    shown = cells[:MOST_SHAPES]
    values = {
        metric["name"]: [(c["metrics"].get(metric["name"]) or {}).get("value") for c in shown]
        for metric in results["metrics"]
    }
    metrics = [m for m in results["metrics"] if any(v is not None for v in values[m["name"]])]
    if len(metrics) < 3 or len(shown) < 2:
        return ""
    left_out = ", ".join(cell["label"] for cell in cells[MOST_SHAPES:])
    axes = [Axis(m["label"], m["higher_is_better"], m["decimals"]) for m in metrics]
    shapes = [
        Shape(cell["label"], [values[m["name"]][i] for m in metrics])
        for i, cell in enumerate(shown)
    ]
    note = f"Not drawn, for want of room: {left_out}." if left_out else ""
    return f"<figure>{radar_svg(axes, shapes, title=title, note=note, width=500.0)}</figure>"


def _section(title: str, note: str, figures: str) -> str:
    if not figures:
        return ""
    return (
        f'<h2>{html.escape(title)}</h2><p class="small faint">{html.escape(note)}</p>'
        f'<div class="charts">{figures}</div>'
    )
