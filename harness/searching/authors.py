"""The authors' ``config.json``: read as a start, written as their inference script reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.locate import read_json
from harness.store import write_atomically

_RATIOS = "best_global_params_ratio"
_GROUPS = {"down": "down_ratio", "up": "up_ratio", "mid": "mid_ratio"}


def read_config(path: Path) -> tuple[Ratios, Size | None]:
    """Block ratios, and the size if the file says it. Raises CRDiffError.

    Files with absolute thresholds ("magnitude") or with the DiT's shared ratio are refused: these
    numbers are not block ratios.
    """
    data = read_json(path)
    if data.get("pruning_method", "ratio") != "ratio":
        raise CRDiffError(
            f"{path} holds {data['pruning_method']} thresholds, not ratios: only files with "
            'pruning_method "ratio" (or none) can be used'
        )
    given = data.get(_RATIOS)
    if not isinstance(given, dict) or set(_GROUPS.values()) - set(given):
        raise CRDiffError(
            f"{path} is not a config.json of the authors' search: {_RATIOS} with down_ratio, "
            "up_ratio and mid_ratio is needed"
        )
    ratios = Ratios(**{group: given[name] for group, name in _GROUPS.items()})
    model = data.get("model_config")
    sides = [model.get("height"), model.get("width")] if isinstance(model, dict) else []
    whole = [side for side in sides if isinstance(side, int) and side > 0]
    return ratios, Size(*whole) if len(whole) == 2 else None


def write_config(path: Path, name: str, size: Size, ratios: Ratios, score: float) -> None:
    """The file that the authors' inference script reads. It has no place for k: theirs is 1.5."""
    data: dict[str, Any] = {
        "model_config": {"name": name, "width": size.width, "height": size.height},
        "best_avg_score": score,
        _RATIOS: {_GROUPS[group]: getattr(ratios, group) for group in _GROUPS},
    }
    write_atomically(path, (json.dumps(data, indent=4, allow_nan=False) + "\n").encode())
