"""Numbers that follow from scores of single images: shares of prompts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.stats import Array


def improved(method: Array, dense: Array, higher_is_better: bool = True) -> Array:
    """1.0 for each prompt on which the method scored strictly better than dense, else 0.0: [n].

    Its mean is the share of prompts improved (the paper: "over 85 %" with ImageReward). A tie is
    no improvement. Raises ValueError when the two can't be paired.
    """
    method, dense = np.asarray(method, float), np.asarray(dense, float)
    if method.shape != dense.shape or method.ndim != 1 or not len(method):
        raise ValueError(f"scores {method.shape} and {dense.shape} can't be paired")
    better = method > dense if higher_is_better else method < dense
    return better.astype(np.float64)


def best_share(scores: Mapping[str, Array], higher_is_better: bool = True) -> dict[str, float]:
    """Per cent of prompts on which each method's score is the best of those compared.

    Best-IR % of the paper's Table 5, when the scores are ImageReward's. ``scores``: name -> [n].
    A prompt on which several are best is split evenly between them, so the result sums to 100.
    Raises ValueError when the methods don't have the same prompts.
    """
    if not scores:
        return {}
    values = [np.asarray(own, float) for own in scores.values()]
    if len({own.shape for own in values}) != 1 or values[0].ndim != 1 or not len(values[0]):
        raise ValueError("every method needs a score for every prompt")
    table = np.stack(values)
    if not np.isfinite(table).all():
        raise ValueError("a score is not a finite number")
    best = table == (table.max(0) if higher_is_better else table.min(0))
    shares = 100 * (best / best.sum(0)).mean(1)
    return dict(zip(scores, shares.tolist(), strict=True))
