"""What calibrating criteria takes, in passes of the UNet, before any of it is done."""

from __future__ import annotations

from collections.abc import Iterable

from harness.config import Size
from harness.criteria.calibrate import TIMESTEPS
from harness.criteria.obs import PACKAGES
from harness.criteria.settings import Criterion
from harness.methods import Drawing
from harness.plan import Batch

BACKWARD = 2.0
"""A backward pass, in forward passes."""

Calibration = tuple[Size, Drawing]


def calibrations(batches: Iterable[Batch]) -> list[Calibration]:
    """The calibrations that drawing these batches in this order makes.

    One is kept until another criterion's weights are needed (``Painter.chosen``): the same
    criterion at the same ratios and size, as with and without amplification, is calibrated once if
    the two follow each other.
    """
    found: list[Calibration] = []
    last = None
    for batch in batches:
        drawing = batch.drawing
        if drawing.criterion is None or batch.sources:
            continue
        key = (drawing.criterion, drawing.ratios, batch.size, drawing.told_size)
        if key != last and drawing.criterion.prompts:
            found.append((batch.size, drawing))
        last = key
    return found


def calibration_passes(criterion: Criterion, steps: int, guided: bool) -> float:
    """Passes of the UNet as an image's own step makes one, both halves of guidance together.

    Every prompt is drawn: by OBS-Diff once for each of its packages of layers. Taylor's loss is a
    forward and a backward pass at each noise level, without guidance. What follows the passes
    (Hessians and their inverses, sorting) is not in it.
    """
    prompts = len(criterion.prompts)
    if criterion.name == "obs-diff":
        return float(prompts * steps * PACKAGES)
    losses = TIMESTEPS * (1 + BACKWARD) * (0.5 if guided else 1.0)
    return prompts * (steps + (losses if criterion.name == "taylor" else 0.0))
