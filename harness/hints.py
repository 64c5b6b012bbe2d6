"""What a checkpoint says about its family beside shapes: how it predicts, its native size.

SD2's 512 and 768 models have the same weights' shapes; only these hints tell them apart.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from crdiff_ext.errors import CRDiffError
from harness.locate import read_json

logger = logging.getLogger(__name__)

PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
"""The names that file formats and people use -> diffusers' name."""


def prediction_name(text: str) -> str:
    """The name that diffusers has for a prediction type. Raises CRDiffError."""
    try:
        return PREDICTIONS[text.strip().lower()]
    except KeyError:
        raise CRDiffError(
            f"prediction type {text!r} is not known: use epsilon or v_prediction"
        ) from None


def folder_hints(pipeline: Path, unet: Path) -> dict[str, Any]:
    """``sample_size`` from the UNet's config, ``prediction_type`` from the scheduler's."""
    hints: dict[str, Any] = {}
    config = unet / "config.json"
    if config.is_file() and isinstance(size := read_json(config).get("sample_size"), int):
        hints["sample_size"] = size
    # A UNet's own folder often lies inside its pipeline.
    for folder in (pipeline, unet.parent):
        scheduler = folder / "scheduler" / "scheduler_config.json"
        if scheduler.is_file():
            kind = read_json(scheduler).get("prediction_type", "epsilon")
            hints["prediction_type"] = kind
            break
    return hints


def single_file_hints(
    path: Path, names: Container[str], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Hints of one file: a yaml beside it, then its modelspec metadata, then marker tensors."""
    hints: dict[str, Any] = {}
    if "v_pred" in names:  # a marker that v-prediction SDXL checkpoints carry
        hints["prediction_type"] = "v_prediction"
    stated = PREDICTIONS.get(metadata.get("modelspec.prediction_type", "").lower())
    if stated:
        hints["prediction_type"] = stated
    side = metadata.get("modelspec.resolution", "").lower().partition("x")[0]
    if side.isdigit():
        hints["sample_size"] = int(side) // 8
    if beside := _yaml_prediction(path.with_suffix(".yaml")):
        hints["prediction_type"] = beside
    return hints


def _yaml_prediction(path: Path) -> str | None:
    """``model.params.parameterization`` of the yaml that WebUIs read; eps where it says none."""
    if not path.is_file():
        return None
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        params = tree["model"]["params"]
        kind = str(params.get("parameterization", "eps"))
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s is not a model's yaml and is not used (%s)", path, type(error).__name__)
        return None
    return PREDICTIONS.get(kind.lower())
