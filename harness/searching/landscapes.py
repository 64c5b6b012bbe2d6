"""Objectives that cost no image: synthetic captions with a known optimum, and the stored grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from crdiff_ext.schedule import State
from crdiff_ext.settings import Ratios
from harness.searching.grid import Grid

BASE_SPREAD = 0.485
"""Standard deviation over captions of the embedded model's rewards, dense, 64x64, 5 steps (192)."""

PAIRED_SPREAD = {0.0: 0.0, 0.25: 0.08, 0.5: 0.29, 0.8: 0.43}
"""That of the paired differences to dense, by the up group's ratio: measured there as well."""

GAIN = 0.2  # of the synthetic optimum over points half a ratio away from it
_WAVES = 16


@dataclass
class Landscape:
    """An objective of ``n`` captions in batches of ``batch``, given as one function of ratios.

    ``images`` counts what would have been drawn; a state's values are computed once.
    """

    function: Callable[[Ratios], np.ndarray]
    n: int
    batch: int = 8
    images: int = 0
    batches: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        steps = range(0, self.n, self.batch)
        self.batches = tuple(tuple(range(i, min(i + self.batch, self.n))) for i in steps)
        self._known: dict[Ratios, np.ndarray] = {}

    def values(self, state: State, batch: int) -> np.ndarray:
        """Rewards of a batch of captions."""
        if state.ratios not in self._known:
            self._known[state.ratios] = self.function(state.ratios)
        members = list(self.batches[batch])
        self.images += len(members)
        return self._known[state.ratios][members]


def synthetic(n: int, seed: int, gain: float = GAIN) -> tuple[Landscape, Ratios]:
    """``n`` captions and the ratios that are best for all captions there could be.

    Reward = the caption's level + a bowl around the optimum + the caption's own smooth deviation,
    whose spread grows with the ratios as it was measured on the embedded model.
    """
    draws = np.random.default_rng([seed, 6])
    top = draws.uniform(0.1, 0.7, 3)
    level = draws.normal(0, BASE_SPREAD, n)
    turns = draws.normal(0, 4.0, (_WAVES, 3))
    phases = draws.uniform(0, 2 * np.pi, _WAVES)
    own = draws.normal(0, np.sqrt(2 / _WAVES), (_WAVES, n))

    def function(ratios: Ratios) -> np.ndarray:
        at = np.array(list(ratios.as_dict().values()))
        bowl = gain * (1 - float(((at - top) ** 2).sum()) / 0.25)
        spread = np.interp(at.max(), list(PAIRED_SPREAD), list(PAIRED_SPREAD.values()))
        return level + bowl + spread * (np.cos(turns @ at + phases) @ own)

    return Landscape(function, n), Ratios(*top)


def stored(grid: Grid, n: int, seed: int) -> tuple[Landscape, np.ndarray]:
    """``n`` captions of the grid, drawn by ``seed``, and the numbers of the others (held out)."""
    order = np.random.default_rng([seed, 7]).permutation(grid.rewards.shape[-1])
    chosen = order[:n]
    return Landscape(lambda ratios: grid.values(ratios)[chosen], n), order[n:]
