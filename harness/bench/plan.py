"""How fast exact thresholds are found against ``torch.kthvalue``, and in how much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.pruning import group_threshold, keep_mask

RATIOS = (0.01, 0.4, 0.99)
LAYER = (1280, 1280)
"""The weights come in layers of this shape, the commonest of SDXL; the last one may be smaller."""

Result = TypeVar("Result")


def measure_speed(weights: int, repeats: int) -> list[dict[str, Any]]:
    """Time both ways to a threshold for fp16 weights, in one thread, on two kinds of weights.

    Per case: ``kthvalue_seconds`` of ``torch.kthvalue`` alone, on magnitudes that are concatenated
    already (its preparation is not counted against it), ``seconds`` of ours from the layers, their
    quotient ``speedup``, and whether the masks are equal. Seconds are of CPU time, which other
    programs on the machine disturb least, the best of ``repeats``, taken in turns.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            {"weights": kind, **_one(flat, ratio, repeats)}
            for kind, flat in _kinds(weights).items()
            for ratio in RATIOS
        ]
    finally:
        torch.set_num_threads(threads)


def measure_memory(layers: int | None = None) -> dict[str, Any]:
    """Peak memory of planning an SDXL-shaped UNet, by ``plan_memory`` in a fresh process.

    ``layers``: of the first so many layers only.

    Raises CRDiffError when that process fails (it needs 3.6 GB of memory).
    """
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-m", "harness.bench.plan_memory", *([str(layers)] if layers else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}"]
        raise CRDiffError(
            f"memory could not be measured ({said[0]}): free 4 GB of memory and try again"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _kinds(weights: int) -> dict[str, torch.Tensor]:
    """Gaussian weights as in a trained layer, and the same rounded to a few values."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(weights, generator=generator).mul_(0.03)
    tied = (normal * 50).round_().div_(50)  # 0, 0.02, 0.04, ...
    return {"normal": normal.half(), "tied": tied.half()}


def _one(flat: torch.Tensor, ratio: float, repeats: int) -> dict[str, Any]:
    layers = [
        part.view(LAYER) if part.numel() == LAYER[0] * LAYER[1] else part
        for part in torch.split(flat, LAYER[0] * LAYER[1])
    ]
    magnitudes, n = flat.abs(), int(flat.numel() * ratio)
    theirs = ours = float("inf")
    for _ in range(repeats):
        seconds, expected = _timed(lambda: torch.kthvalue(magnitudes, n).values)
        theirs = min(theirs, seconds)
        for _ in range(3):  # far shorter, so more easily disturbed
            seconds, threshold = _timed(lambda: group_threshold(layers, ratio))
            ours = min(ours, seconds)
    assert threshold is not None
    equal = torch.equal(magnitudes > expected, keep_mask(flat, threshold))
    return {
        "ratio": ratio,
        "kthvalue_seconds": theirs,
        "seconds": ours,
        "speedup": theirs / ours,
        "masks_equal": equal,
    }


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result
