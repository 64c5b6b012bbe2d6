"""The authors' ``config.json``: read as a start, written as their inference script reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import ALL, Ratios
from harness.config import Size
from harness.locate import read_json
from harness.store import write_atomically

_RATIOS = "best_global_params_ratio"
_SHARED = "best_global_params_sd3"
"""The name, whatever the transformer; in it ``shared_ratio``."""
_GROUPS = {"down": "down_ratio", "up": "up_ratio", "mid": "mid_ratio"}


def read_config(path: Path) -> tuple[Ratios, Size | None]:
    """Block ratios, and the size if the file says it. Raises CRDiffError.

    A transformer's shared ratio is read as three equal ones. Files with absolute thresholds
    ("magnitude") are refused: these numbers are no ratios.
    """
    data = read_json(path)
    if data.get("pruning_method", "ratio") != "ratio":
        raise CRDiffError(
            f"{path} holds {data['pruning_method']} thresholds, not ratios: only files with "
            'pruning_method "ratio" (or none) can be used'
        )
    given = data.get(_RATIOS)
    shared = data.get(_SHARED)
    if given is None and isinstance(shared, dict) and "shared_ratio" in shared:
        given = dict.fromkeys(_GROUPS.values(), shared["shared_ratio"])
    if not isinstance(given, dict) or set(_GROUPS.values()) - set(given):
        raise CRDiffError(
            f"{path} is not a config.json of the authors' search: {_RATIOS} with down_ratio, "
            f"up_ratio and mid_ratio, or {_SHARED} with shared_ratio, is needed"
        )
    ratios = Ratios(**{group: given[name] for group, name in _GROUPS.items()})
    model = data.get("model_config")
    sides = [model.get("height"), model.get("width")] if isinstance(model, dict) else []
    whole = [side for side in sides if isinstance(side, int) and side > 0]
    return ratios, Size(*whole) if len(whole) == 2 else None


def write_config(
    path: Path, name: str, size: Size, ratios: Ratios, score: float, is_dit: bool = False
) -> None:
    """The file that the authors' inference script reads. It has no place for k: theirs is 1.5."""
    found: dict[str, Any] = {_RATIOS: {_GROUPS[group]: getattr(ratios, group) for group in _GROUPS}}
    if is_dit:
        found = {_SHARED: {"shared_ratio": ratios.of(ALL)}}
    data: dict[str, Any] = {
        "model_config": {"name": name, "width": size.width, "height": size.height},
        "best_avg_score": score,
        **found,
    }
    write_atomically(path, (json.dumps(data, indent=4, allow_nan=False) + "\n").encode())


def is_written_by_us(path: Path, name: str, size: Size) -> bool:
    """Whether ``write_config`` wrote the file for this model and size, and nobody added to it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or of another kind
        return False
    model = {"name": name, "width": size.width, "height": size.height}
    ours = ({"model_config", "best_avg_score", found} for found in (_RATIOS, _SHARED))
    return isinstance(data, dict) and set(data) in ours and data["model_config"] == model
