"""When an evaluation may be given up: a paired test of the captions seen so far."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from scipy import stats

LEAST = 8
"""Captions that are always seen, and between two looks: fewer say little about their own spread."""

WILCOXON = 0.1  # p of Optuna's pruner: its default

LEVEL = 0.02
"""Chance, over all looks at a state, of giving it up where it would have been accepted."""


@dataclass
class Looks:
    """The looks at one state: whether to go on with it, asked after each batch.

    Args:
        needed: what the mean of values - reference has to reach for the state to be accepted.
        captions: how many there are.
        level: for all looks together; each gets its part (Bonferroni).
    """

    needed: float
    captions: int
    level: float = LEVEL
    _due: int = LEAST

    def hopeless(self, gaps: np.ndarray, share: float) -> bool:
        """Whether the mean over all captions surely stays below ``needed``.

        ``gaps`` [n]: values - reference of the captions seen so far, means over their seeds;
        ``share``: how much of all images they are. Looks only where as many images as ``LEAST``
        more captions have were seen since the last time, however small the batches. A move up, and
        a move down that the drawn u allows, are kept at confidence 1 - ``level``.
        """
        seen = round(share * self.captions, 6)
        if seen < self._due:
            return False
        self._due = int(seen // LEAST + 1) * LEAST
        looks = max(1, math.ceil(self.captions / LEAST) - 1)
        return surely_below(gaps, self.needed, share, self.level / looks)


def surely_below(gaps: np.ndarray, needed: float, share: float, level: float) -> bool:
    """A one-sided t test that rejects mean >= ``needed``, of ``gaps`` [n] that are a ``share``.

    They are a part of a fixed set, so the standard error has the finite population's factor: it is
    nothing when all were seen. A long tail on the right, of which few samples have seen enough, is
    allowed for by Hall's transformation of t (1992, Journal of the Royal Statistical Society B 54,
    221-228); one on the left only makes giving up rarer, and is left alone.
    """
    mean = float(gaps.mean())
    if mean >= needed or not math.isfinite(needed):
        return False
    spread, left = float(gaps.std(ddof=1)), 1 - share
    if spread == 0 or left <= 0:
        return True
    n = len(gaps) / left
    below = (needed - mean) / spread
    skew = max(0.0, float(((gaps - mean) ** 3).mean() / gaps.std() ** 3))
    t = below - skew * below**2 / 3 + skew**2 * below**3 / 27 - skew / (6 * n)
    return float(stats.t.sf(math.sqrt(n) * t, len(gaps) - 1)) < level


def by_caption(values: np.ndarray, seeds: int) -> np.ndarray:
    """Means [captions seen] over those of each caption's ``seeds`` images that are not NaN.

    Captions, not images, are independent of each other.
    """
    rows = values.reshape(-1, seeds)
    return np.nanmean(rows[~np.isnan(rows).all(1)], axis=1)


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
