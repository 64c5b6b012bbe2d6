"""How long one pruning pass takes: measured once for a model's drawing, and recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.pruning import make_plan
from harness.experiment import Experiment
from harness.locate import read_json
from harness.plan import Cell
from harness.store import key_of, write_atomically
from harness.tables.quantities import NotRun

FILE = "pruning-passes.json"


def recorded_seconds(folder: Path) -> Callable[[Experiment, Cell], float]:
    """Seconds of a cell's pruning pass, from ``folder``'s record, else measured and recorded.

    The time is that of a model on its device: thresholds for the magnitude; for another criterion
    its calibration and its masks.
    """

    def seconds(experiment: Experiment, cell: Cell) -> float:
        path = folder / FILE
        record = read_json(path) if path.exists() else {}
        sampling = experiment.sampling
        key = key_of(
            {"model": sampling.model_hash, "device": sampling.device, **_what(cell, experiment)}
        )
        if key not in record:
            record[key] = round(_measure(experiment, cell), 4)
            write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        return float(record[key])

    return seconds


def _what(cell: Cell, experiment: Experiment) -> dict[str, Any]:
    fields = {key: value for key, value in cell.drawing.key_fields().items() if key != "k"}
    if getattr(cell.drawing, "criterion", None) is None:
        return {"drawing": fields}
    return {"drawing": fields, "size": list(cell.size), "steps": experiment.sampling.steps}


def _measure(experiment: Experiment, cell: Cell) -> float:
    assert cell.drawing.ratios is not None
    pipe = experiment.loaded.pipe
    if getattr(cell.drawing, "criterion", None) is None:
        weights = prunable_parameters(pipe.unet)
        started = time.perf_counter()
        make_plan(weights, cell.drawing.ratios)
        return time.perf_counter() - started
    from harness.generate import Painter

    choose: Any = getattr(Painter(pipe, experiment.sampling), "chosen", None)
    if choose is None:
        raise NotRun("not run: this criterion's time is not told")
    return float(choose(cell.drawing, cell.size).seconds)
