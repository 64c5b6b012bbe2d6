"""When an evaluation may be given up: a paired test of the captions seen so far."""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
from scipy import stats

LEAST = 8
"""Captions that are always seen: fewer say little about their own spread."""

WILCOXON = 0.1  # p of Optuna's pruner: its default

LEVEL = 0.02
"""Chance, at each look, of giving up a state that would have been accepted."""


def hopeless(
    values: np.ndarray, reference: np.ndarray, needed: float, total: int, level: float = LEVEL
) -> bool:
    """Whether the mean over all ``total`` captions surely stays below ``needed``.

    ``values`` [n] and ``reference`` [n] are of the same captions, ``needed`` is relative to the
    reference's mean: a one-sided paired t test of mean(values - reference) >= needed. The captions
    are a part of a fixed set, so the standard error has the finite population's factor: it is
    nothing when all were seen. A move up, and a move down that the drawn u allows, are kept at
    confidence 1 - ``level``.
    """
    n = len(values)
    if n < min(LEAST, total):
        return False
    gaps = np.asarray(values, float) - np.asarray(reference, float)
    mean = float(gaps.mean())
    if mean >= needed or not math.isfinite(needed):
        return False
    left = math.sqrt(max(0.0, 1 - n / total))
    error = float(gaps.std(ddof=1)) / math.sqrt(n) * left
    return error == 0 or float(stats.t.sf((needed - mean) / error, n - 1)) < level


def estimate(values: np.ndarray, reference: np.ndarray, reference_score: float) -> float:
    """The score of a state that was given up: the reference's, plus the mean paired difference."""
    return reference_score + float(np.mean(np.asarray(values) - np.asarray(reference)))


def wilcoxon_prunes(values: np.ndarray, best: np.ndarray) -> bool:
    """Whether Optuna's Wilcoxon pruner gives up ``values`` (NaN: not seen) against the ``best``.

    It is asked in a study of its own in memory: each report to the real one is a write to disk, and
    only the items seen so far are of interest there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=WILCOXON, n_startup_steps=LEAST)
    study = optuna.create_study(direction="maximize")
    study.add_trial(
        optuna.trial.create_trial(
            value=float(best.mean()), intermediate_values=dict(enumerate(best.tolist()))
        )
    )
    seen = {int(item): float(values[item]) for item in np.flatnonzero(~np.isnan(values))}
    running = optuna.trial.TrialState.RUNNING
    return bool(
        pruner.prune(study, optuna.trial.create_trial(state=running, intermediate_values=seen))
    )
