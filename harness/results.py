"""results.json (versioned, ``results.schema.json``) and images.csv of a run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from crdiff_ext import __version__
from crdiff_ext.decide import Decision
from crdiff_ext.settings import K_DEFAULT
from harness.config import DRAWING_VERSION
from harness.criteria.times import choice_key, times_of
from harness.environment import describe
from harness.experiment import Experiment
from harness.plan import Cell
from harness.store import Row, write_atomically

SCHEMA = "crdiff-results"
SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
SAFETY_NOTE = "The safety checker was not run, and no watermark was added."


@dataclass(frozen=True)
class Metric:
    """A score as it is labelled everywhere. ``per_image`` False: one number for a set of images."""

    name: str
    label: str
    what: str
    higher_is_better: bool
    per_image: bool = True
    decimals: int = 3


@dataclass
class Scores:
    """What the images of a run scored: values per cell id, and differences to dense."""

    metrics: tuple[Metric, ...] = ()
    per_image: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """cell id -> metric -> [n] in the order of the prompts, seed by seed."""
    cells: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """cell id -> metric -> {"value", "n", "vs_dense": interval or None}."""


def utc_now() -> str:
    """The time in ISO 8601, whole seconds, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def build_results(
    experiment: Experiment,
    kind: str,
    status: str,
    started: str,
    scores: Scores | None = None,
    verdict: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole of results.json. ``status``: "running", "complete" or "interrupted"."""
    scores = scores or Scores()
    config, sampling, prompts = experiment.config, experiment.sampling, experiment.prompts
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "status": status,
        "started": started,
        "finished": None if status == "running" else utc_now(),
        "crdiff_version": __version__,
        "drawing_version": DRAWING_VERSION,
        "environment": describe(sampling.device),
        "model": {
            "name": experiment.loaded.model_id,
            "sha256": sampling.model_hash,
            "family": experiment.family.name,
            "label": experiment.family.label,
            "native": list(experiment.family.native or ()) or None,
        },
        "prompts": {
            "source": prompts.source,
            "sha256": prompts.sha256,
            "used": len(prompts.prompts),
            "total": prompts.total,
            "note": prompts.note or None,
        },
        "settings": {
            "seed": config.seed,
            "seeds": list(config.seeds),
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "negative_prompt": sampling.negative,
            "scheduler": sampling.scheduler,
            "dtype": sampling.dtype,
            "device": sampling.device,
            "batch": sampling.batch,
            "ratios": config.ratios,
            "k": K_DEFAULT if config.k is None else config.k,
            "origins": experiment.origins,
        },
        "metrics": [
            {
                "name": metric.name,
                "label": metric.label,
                "what": metric.what,
                "higher_is_better": metric.higher_is_better,
                "per_image": metric.per_image,
                "decimals": metric.decimals,
            }
            for metric in scores.metrics
        ],
        "cells": [_cell(experiment, cell, scores) for cell in experiment.cells],
        "verdict": dict(verdict) if verdict else None,
        "notes": [SAFETY_NOTE, *experiment.notes],
    }


def _cell(experiment: Experiment, cell: Cell, scores: Scores) -> dict[str, Any]:
    items = experiment.plan.items(cell)
    rows = [row for item in items if (row := experiment.store.row(item.key))]
    drawing = cell.drawing
    return {
        "id": cell.id,
        "height": cell.size.height,
        "width": cell.size.width,
        "method": cell.method.name,
        "label": cell.method.label,
        "same_as": experiment.plan.same_as(cell),
        "forced": cell.forced,
        "decision": _decision(cell.decision),
        "drawing": {
            "kind": drawing.kind,
            "ratios": drawing.ratios.as_dict() if drawing.ratios else None,
            "k": drawing.k,
            "amplification": drawing.amplification if drawing.kind == "amplified" else None,
            "source_size": list(drawing.source_size) if drawing.source_size else None,
            "told_size": list(drawing.told_size) if drawing.told_size else None,
            "criterion": _criterion(experiment, cell),
        },
        "status": "complete" if len(rows) == len(items) else "partial",
        "images": len(rows),
        "images_sha256": _digest(rows),
        "seconds_per_image": round(math.fsum(r["seconds"] for r in rows) / len(rows), 4)
        if rows
        else None,
        "metrics": scores.cells.get(cell.id, {}),
    }


def _decision(decision: Decision) -> dict[str, Any]:
    preset = decision.preset
    return {
        "act": decision.act,
        "code": str(decision.code),
        "sentence": decision.sentence,
        "exact": decision.exact,
        "ratios": decision.ratios.as_dict() if decision.ratios else None,
        "k": decision.k,
        "source": preset.source if preset else None,
    }


def _criterion(experiment: Experiment, cell: Cell) -> dict[str, Any] | None:
    """What decided which weights went, and how long that took; None where none did."""
    drawing = cell.drawing
    if drawing.kind != "amplified":
        return None
    by = drawing.criterion
    time = times_of(experiment.store.folder).get(
        choice_key(experiment.sampling, drawing, cell.size), {}
    )
    return {
        **(by.as_dict() if by else {"name": "magnitude"}),
        "source": by.source or None if by else None,
        "seconds": time.get("seconds"),
        "calibration_seconds": time.get("calibration_seconds"),
    }


def _digest(rows: Sequence[Row]) -> str | None:
    """SHA-256 over the images' pixel hashes in the order of the prompts, one on each line."""
    if not rows:
        return None
    return hashlib.sha256("\n".join(row["pixels_sha256"] for row in rows).encode()).hexdigest()


def write_results(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write results.json whole or not at all."""
    path = folder / "results.json"
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
    return path


def write_images_csv(experiment: Experiment, scores: Scores | None = None) -> Path:
    """Write images.csv: one line for each image of each cell, with its scores where there are."""
    scores = scores or Scores()
    names = [metric.name for metric in scores.metrics if metric.per_image]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["cell", "method", "height", "width", "prompt_name", "caption", "seed", "file"]
    writer.writerow([*head, "pixels_sha256", "seconds", *names])
    for cell in experiment.cells:
        values = scores.per_image.get(cell.id, {})
        for item in experiment.plan.items(cell):
            row = experiment.store.row(item.key)
            if row is None:
                continue
            writer.writerow(
                [
                    cell.id,
                    cell.method.name,
                    *cell.size,
                    item.prompt.name,
                    item.prompt.text,
                    item.seed,
                    row["file"],
                    row["pixels_sha256"],
                    row["seconds"],
                    *(f"{values[name][item.index]:.6g}" for name in names if name in values),
                ]
            )
    path = experiment.store.folder / "images.csv"
    write_atomically(path, buffer.getvalue().encode())
    return path
