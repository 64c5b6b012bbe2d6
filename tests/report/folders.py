"""Made run folders: small pictures, results.json and images.csv in the form that a run writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from PIL import Image

from harness.results import SCHEMA_FILE
from harness.stats import paired_interval

CAPTIONS = (
    "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">",
    "a \"quoted\" cat & a 'single' one; </article></template>",
    "قطة حمراء على يمين كلب أزرق",
    "two 🦊 foxes and a 👩‍🚀 on the \u202emoon\u202c",
    "",
    "a very long caption " * 20,
    "$main ${script} %s {0} \\n",
    "a red circle",
)
METRICS = (
    ("reward", "made <reward>", True, True),
    ("check", "made check", True, True),
    ("loss", "made loss", False, True),
    ("distance", "made distance", False, False),
)
METHODS = {
    "dense": ("Dense", None, None, None),
    "pruned": ("Pruned only", (0.3, 0.2, 0.4), 1.0, "magnitude"),
    "crdiff": ("CR-Diff", (0.3, 0.2, 0.4), 1.5, "magnitude"),
    "uniform-0.2-k1": ("Uniform 0.2", (0.2, 0.2, 0.2), 1.0, "magnitude"),
    "uniform-0.4-k1": ("Uniform 0.4", (0.4, 0.4, 0.4), 1.0, "magnitude"),
    "wanda": ("Wanda", (0.3, 0.2, 0.4), 1.0, "wanda"),
}
SIZES = ((64, 64), (160, 96))


def write_run(
    folder: Path,
    prompts: int = len(CAPTIONS),
    sizes: Sequence[tuple[int, int]] = SIZES,
    methods: Sequence[str] = tuple(METHODS),
    scored: bool = True,
    tile: int | None = None,
) -> dict[str, Any]:
    """Write a folder, and return its results. ``tile``: images of this size for all, for speed."""
    rng = np.random.default_rng(5)
    metrics = METRICS if scored else ()
    lines, cells = [], []
    for size in sizes:
        dense: dict[str, np.ndarray] = {}
        for number, name in enumerate(methods):
            cell = _cell(size, name, prompts)
            scores = {
                metric: rng.normal(0.1 * number, 1, prompts) for metric, _, _, single in metrics
            }
            dense = dense or scores
            for metric, *_ in metrics:
                difference = None
                if name != "dense":
                    difference = paired_interval(scores[metric], dense[metric]).as_dict()
                mean = float(scores[metric].mean())
                cell["metrics"][metric] = {"value": mean, "n": prompts, "vs_dense": difference}
            cells.append(cell)
            singles = [metric for metric, _, _, single in metrics if single]
            for i in range(prompts):
                file = f"images/{size[0]}/{name}-{i}.png"
                _draw(folder / file, size if tile is None else (tile, tile), number, i, rng)
                values = [f"{scores[metric][i]:.6g}" for metric in singles]
                caption = CAPTIONS[i % len(CAPTIONS)]
                lines.append(
                    [cell["id"], name, *size, str(i), caption, i, file, "0" * 64, 0.5, *values]
                )
    results = _results(cells, metrics, prompts)
    jsonschema.validate(results, json.loads(SCHEMA_FILE.read_text()))
    (folder / "results.json").write_text(json.dumps(results))
    head = ["cell", "method", "height", "width", "prompt_name", "caption", "seed", "file"]
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, "pixels_sha256", "seconds", *(m[0] for m in metrics if m[3])])
        writer.writerows(lines)
    return results


def _draw(
    path: Path, size: tuple[int, int], method: int, prompt: int, rng: np.random.Generator
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), (40 * method, 25 * (prompt % 10), 120), np.uint8)
    pixels[: size[0] // 2] += rng.integers(0, 30, (size[0] // 2, size[1], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _cell(size: tuple[int, int], name: str, prompts: int) -> dict[str, Any]:
    label, ratios, k, criterion = METHODS[name]
    groups = dict(zip(("down", "mid", "up"), ratios, strict=True)) if ratios else None
    return {
        "id": f"{size[0]}x{size[1]}/{name}",
        "height": size[0],
        "width": size[1],
        "method": name,
        "label": label,
        "same_as": None,
        "forced": False,
        "decision": {
            "act": True,
            "code": "stored",
            "sentence": "stored ratios",
            "exact": True,
            "ratios": {"down": 0.3, "mid": 0.2, "up": 0.4},
            "k": 1.5,
            "source": "made",
        },
        "drawing": {
            "kind": "amplified" if ratios else "dense",
            "ratios": groups,
            "k": k,
            "source_size": None,
            "criterion": {"name": criterion} if criterion else None,
        },
        "status": "complete",
        "images": prompts,
        "images_sha256": "0" * 64,
        "seconds_per_image": 0.5 if k in (None, 1.0) else 1.0,
        "metrics": {},
    }


def _results(cells: list[dict[str, Any]], metrics: Sequence[Any], prompts: int) -> dict[str, Any]:
    return {
        "schema": "crdiff-results",
        "schema_version": 1,
        "kind": "run",
        "status": "complete",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "crdiff_version": "0",
        "drawing_version": 1,
        "environment": {
            "python": "3",
            "system": "made",
            "processor": "made",
            "cores": 1,
            "gpu": None,
            "device": "cpu",
            "threads": 1,
            "packages": {},
            "git": None,
        },
        "model": {
            "name": "made",
            "sha256": "0" * 64,
            "family": "embedded",
            "label": "made <model>",
            "native": [64, 64],
        },
        "prompts": {"source": "made", "sha256": "0" * 64, "used": prompts, "total": prompts},
        "settings": {
            "seed": 0,
            "steps": 1,
            "guidance": 1.0,
            "negative_prompt": "",
            "scheduler": "made",
            "dtype": "fp32",
            "device": "cpu",
            "batch": 1,
            "ratios": "stored",
            "k": 1.5,
            "origins": dict.fromkeys(("steps", "guidance", "scheduler", "batch", "k"), "given"),
        },
        "metrics": [
            {
                "name": name,
                "label": label,
                "what": "made",
                "higher_is_better": rises,
                "per_image": single,
                "decimals": 3,
            }
            for name, label, rises, single in metrics
        ],
        "cells": cells,
        "verdict": {"headline": "A made headline.", "sentences": ["<b>not bold</b>"]},
        "notes": ["made"],
    }
