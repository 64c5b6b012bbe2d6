"""The fidelity measurement as plots: cost against closeness to exact, and against reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.report.charts import Point, pareto_svg

COST = "median seconds an image, dense = 1"


def plots(result: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG, for each ratio: ``closeness-0.3.svg`` and ``pareto-0.3.svg``."""
    made = {}
    height, width = result["size"]
    for ratio in sorted({row["ratio"] for row in result["rows"] if row["ratio"]}):
        about = f"embedded model, {height}x{width}, ratio {ratio:g}, {result['captions']} captions"
        made[f"pareto-{ratio:g}.svg"] = pareto_svg(
            [_reward(row) for row in result["rows"] if row["ratio"] in (None, ratio)],
            x_label=COST,
            y_label="embedded reward, difference to dense",
            title=f"Cost against reward: {about}",
        )
        close = [row for row in result["rows"] if row["ratio"] == ratio and "vs_exact" in row]
        points = [point for row in close if (point := _closeness(row)) is not None]
        if points:
            made[f"closeness-{ratio:g}.svg"] = pareto_svg(
                points,
                x_label=COST,
                y_label="PSNR to exact amplification, dB (median image)",
                title=f"Cost against closeness: {about}",
                note=f"Dense images are {close[0]['vs_exact']['psnr_median_of_dense'] or 0:.1f} dB "
                "from exact ones.",
            )
    return made


def _reward(row: Mapping[str, Any]) -> Point:
    if row["vs_dense"] is None:
        return Point(row["mode"], row["time_ratio"], 0.0)
    found = row["vs_dense"]["reward"]
    return Point(row["mode"], row["time_ratio"], found["estimate"], found["low"], found["high"])


def _closeness(row: Mapping[str, Any]) -> Point | None:
    """None where more than half of the images are equal: no finite PSNR."""
    psnr = row["vs_exact"]["psnr_median"]
    return None if psnr is None else Point(row["mode"], row["time_ratio"], psnr)
