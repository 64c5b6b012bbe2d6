"""A grid of real embedded rewards, built once and shipped: what samplers are compared on.

``grid.npz`` holds the reward of every caption at every combination of a few ratios a block group,
drawn with exact amplification. Between the grid's ratios each caption's rewards are interpolated (a
polynomial through all levels of a group), so that a search of thousands of states costs no image.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import State
from crdiff_ext.settings import GROUPS, Ratios
from harness.searching.objective import Drawn, all_values
from harness.store import write_atomically

GRID = Path(__file__).with_name("grid.npz")
Levels = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
LEVELS: Levels = ((0.0, 0.5, 0.8), (0.0, 0.8), (0.0, 0.5, 0.8))
"""Of down, mid and up. The embedded model's mid group hardly matters (see docs): two are enough."""


@dataclass(frozen=True)
class Grid:
    """Rewards float [down, mid, up, captions] at ``levels`` of each group; [0, 0, 0] is dense."""

    levels: Levels
    rewards: np.ndarray
    provenance: dict[str, Any]

    @cached_property
    def dense(self) -> np.ndarray:
        """Rewards of the dense model [captions]."""
        return self.rewards[0, 0, 0]

    def values(self, ratios: Ratios) -> np.ndarray:
        """Rewards [captions] at any ratios; outside of the grid those of its nearest edge."""
        values = self.rewards
        for ratio, levels in zip(ratios.as_dict().values(), self.levels, strict=True):
            values = np.tensordot(_weights(ratio, levels), values, 1)
        return np.asarray(values)

    def save(self, path: Path) -> None:
        """Write the grid, whole or not at all."""
        buffer = io.BytesIO()
        levels: dict[str, Any] = dict(zip(GROUPS, map(np.asarray, self.levels), strict=True))
        np.savez_compressed(
            buffer,
            **levels,
            rewards=self.rewards.astype(np.float32),
            provenance=np.asarray(json.dumps(self.provenance, sort_keys=True)),
        )
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path = GRID) -> Grid:
        """The grid that ships, or another. Raises CRDiffError."""
        try:
            with np.load(path, allow_pickle=False) as data:
                provenance = json.loads(str(data["provenance"]))
                down, mid, up = (tuple(map(float, data[group])) for group in GROUPS)
                return cls((down, mid, up), data["rewards"].astype(float), provenance)
        except (OSError, ValueError, KeyError) as error:
            raise CRDiffError(
                f"the grid {path} can't be read ({error}): build it with crdiff bench search "
                "--build FILE"
            ) from error


def _weights(ratio: float, levels: tuple[float, ...]) -> np.ndarray:
    """Lagrange's weights [levels] of the polynomial through all levels, at ``ratio``."""
    at = float(np.clip(ratio, levels[0], levels[-1]))
    return np.array(
        [
            math.prod((at - other) / (level - other) for other in levels if other != level)
            for level in levels
        ]
    )


def build(
    objective: Drawn,
    path: Path,
    provenance: dict[str, Any],
    levels: Levels = LEVELS,
    k: float = 1.5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Grid:
    """Draw and score every point; a build that was killed goes on from ``path``."""
    sides = [len(of_group) for of_group in levels]
    rewards = np.full((*sides, len(objective.items)), np.nan)
    if path.exists():
        before = Grid.load(path)
        if before.provenance != provenance or before.rewards.shape != rewards.shape:
            raise CRDiffError(f"{path} is another grid: give another file")
        rewards = before.rewards
    points = list(itertools.product(*map(range, sides)))
    for done, point in enumerate(points, 1):
        if np.isnan(rewards[point]).any():
            state = State(Ratios(*(of[i] for of, i in zip(levels, point, strict=True))), k)
            rewards[point] = all_values(objective, state)
            Grid(levels, rewards, provenance).save(path)
        progress(done, len(points))
    return Grid(levels, rewards, provenance)
