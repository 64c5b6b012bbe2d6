"""How long one pruning pass takes: from the run's own record, else measured and written down."""

from __future__ import annotations

import time

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.pruning import make_plan
from harness.criteria.times import choice_key, note_time, times_of
from harness.experiment import Experiment
from harness.plan import Cell

MAGNITUDE = "magnitude"


def pass_seconds(experiment: Experiment, cell: Cell) -> float | None:
    """Seconds of a cell's pruning pass on the run's device, once for a model and its ratios.

    Finding the thresholds for the magnitude; calibration and masks for another criterion, whose
    time was written down when its images were drawn. None where it was not, or nothing is pruned.
    """
    folder, drawing = experiment.store.folder, cell.drawing
    key = choice_key(experiment.sampling, drawing, cell.size)
    known = times_of(folder).get(key)
    if known is not None:
        return float(known["seconds"])
    if drawing.criterion is not None or drawing.ratios is None:
        return None
    weights = prunable_parameters(experiment.loaded.denoiser)
    started = time.perf_counter()
    make_plan(weights, drawing.ratios)
    seconds = time.perf_counter() - started
    note_time(folder, key, MAGNITUDE, seconds, 0.0)
    return seconds
