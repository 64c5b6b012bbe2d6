"""How long it took to choose weights, kept beside a run's images: criteria.json.

Choosing is no image's own time, and a finished run does not choose again, so it is written down.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from harness.config import Size
from harness.locate import read_json
from harness.methods import Drawing
from harness.plan import Sampling
from harness.store import key_of, write_atomically

FILE = "criteria.json"


def choice_key(sampling: Sampling, drawing: Drawing, size: Size) -> str:
    """A hash of all that the chosen weights depend on: not k, and for magnitudes no size."""
    fields = drawing.key_fields()
    for name in ("k", "amplification"):
        fields.pop(name, None)
    calibrated = drawing.criterion is not None and drawing.criterion.prompts
    place = {"height": size.height, "width": size.width} if calibrated else {}
    return key_of({**sampling.key_fields(), "choice": fields, **place})


def times_of(folder: Path) -> dict[str, dict[str, Any]]:
    """``{choice_key: {"criterion", "seconds", "calibration_seconds"}}``; empty when unreadable."""
    try:
        return dict(read_json(folder / FILE))
    except CRDiffError:
        return {}


def note_time(folder: Path, key: str, criterion: str, seconds: float, calibration: float) -> None:
    """Write one down; the latest of a key counts."""
    entry = {
        "criterion": criterion,
        "seconds": round(seconds, 4),
        "calibration_seconds": round(calibration, 4),
    }
    times = {**times_of(folder), key: entry}
    write_atomically(folder / FILE, (json.dumps(times, indent=1) + "\n").encode())
