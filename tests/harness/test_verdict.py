"""The verdict in words: only what the intervals carry."""

from __future__ import annotations

import numpy as np

from harness.stats import Interval
from harness.verdict import judge

METRICS = [
    {"name": "score", "label": "score", "higher_is_better": True},
    {"name": "distance", "label": "distance", "higher_is_better": False},
]


def interval(estimate: float, half: float) -> dict[str, float]:
    return Interval(estimate, estimate - half, estimate + half, 0.95, 64).as_dict()


def cell(size: int, method: str, seconds: float = 1.0, **differences: tuple[float, float]) -> dict:
    return {
        "height": size,
        "width": size,
        "id": f"{size}x{size}/{method}",
        "method": method,
        "same_as": None,
        "seconds_per_image": seconds,
        "decision": {"act": True, "sentence": "acts"},
        "metrics": {
            name: {"value": 1.0, "n": 64, "vs_dense": interval(*difference)}
            for name, difference in differences.items()
        },
    }


def results(*cells: dict) -> dict:
    return {"model": {"native": [128, 128]}, "metrics": METRICS, "cells": list(cells)}


def test_no_gain_is_said_plainly() -> None:
    verdict = judge(
        results(
            cell(64, "dense"),
            cell(64, "crdiff", 2.0, score=(0.01, 0.02), distance=(-0.1, 0.3)),
        )
    )
    assert verdict["headline"] == (
        "No significant gain from CR-Diff on this model, at any unseen size, in any score."
    )
    said = " ".join(verdict["sentences"])
    assert "shows no significant difference to dense in any score (2 comparisons" in said
    assert "0 of the 2 95 % intervals lie on the better side" in said
    assert "2.00 times as long" in said


def test_a_hint_that_luck_explains_is_no_gain() -> None:
    """One interval of ten just excludes zero: gone after correction, but counted."""
    cells = [cell(136 + 8 * i, "crdiff", score=(0.0, 0.1)) for i in range(9)]
    verdict = judge(results(*cells, cell(96, "crdiff", score=(0.11, 0.1))))
    assert verdict["headline"].startswith("No significant gain")
    assert "1 of the 10 95 % intervals lie on the better side" in verdict["sentences"][0]
    assert "about 0.5 outside" in verdict["sentences"][0]


def test_gains_and_losses_follow_the_metrics_direction() -> None:
    gain = judge(results(cell(64, "crdiff", distance=(-0.5, 0.1))))
    assert gain["headline"].startswith("CR-Diff gained significantly at 64x64 (distance)")
    loss = judge(results(cell(64, "crdiff", distance=(0.5, 0.1), score=(0.0, 0.1))))
    assert loss["headline"] == (
        "No significant gain from CR-Diff on this model, and a loss at 64x64 (distance)."
    )
    mixed = judge(results(cell(64, "crdiff", distance=(0.5, 0.1), score=(0.5, 0.1))))
    assert mixed["headline"] == (
        "Mixed: CR-Diff gained at 64x64 (score), and lost at 64x64 (distance)."
    )


def test_the_native_size_is_judged_apart() -> None:
    verdict = judge(
        results(
            cell(128, "crdiff", score=(-0.5, 0.1)),
            cell(64, "crdiff", score=(0.0, 0.1)),
            cell(64, "native-resize", score=(0.5, 0.1)),
        )
    )
    assert verdict["headline"].startswith("No significant gain")
    said = " ".join(verdict["sentences"])
    assert "CR-Diff at the native size is worse than dense at 128x128 (score)" in said
    assert "Native, resized at the unseen sizes is better than dense at 64x64 (score)" in said


def test_inactive_cells_are_not_compared() -> None:
    inactive = cell(64, "crdiff", score=(0.0, 0.0))
    inactive["same_as"] = "64x64/dense"
    inactive["decision"] = {"act": False, "sentence": "no stored ratios: search or set them"}
    verdict = judge(results(inactive))
    assert verdict["headline"].startswith("CR-Diff was not active at any unseen size")
    assert "At 64x64 CR-Diff drew nothing of its own: no stored" in verdict["sentences"][0]


def test_a_real_gain_in_data_is_found() -> None:
    from harness.stats import paired_interval

    rng = np.random.default_rng(0)
    dense = rng.normal(size=64)
    found = paired_interval(dense + rng.normal(0.5, 0.3, 64), dense).as_dict()
    entry = cell(64, "crdiff")
    entry["metrics"] = {"score": {"value": 0.5, "n": 64, "vs_dense": found}}
    assert "gained significantly at 64x64 (score)" in judge(results(entry))["headline"]
