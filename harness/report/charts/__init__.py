"""Charts as SVG text: pure functions without dependencies, for a page or for a file of their own.

Colours are CSS variables of the page with fallbacks, so a chart follows a page's light or dark
theme and is readable alone. Series differ in marker and dash as well as in a colour-blind-safe hue.
"""

from harness.report.charts.lines import Line, Place, lines_svg
from harness.report.charts.pareto import Point, front, pareto_svg
from harness.report.charts.radar import Axis, Shape, min_max, radar_svg

__all__ = [
    "Axis",
    "Line",
    "Place",
    "Point",
    "Shape",
    "front",
    "lines_svg",
    "min_max",
    "pareto_svg",
    "radar_svg",
]
