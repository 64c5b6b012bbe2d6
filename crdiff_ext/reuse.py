"""Delta reuse: ``z_pruned - z_dense`` of one step, used again in the steps after it.

``k z_pruned + (1 - k) z_dense = z_pruned + (k - 1) (z_pruned - z_dense)``, and the difference moves
slowly along the schedule, so the dense pass can be left out of most steps.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import CRDiffError

_ROUNDING = 1e-4  # relative; steps of a schedule are at least ten times as far apart


@dataclass
class Deltas:
    """The differences in hand, and which steps make them anew.

    A step is a noise level: all calls at one sigma (or timestep) are one step, so neither
    second-order samplers nor guidance in several calls matter, and levels that differ by rounding
    are one (DPM++ 2S ancestral comes back to a level that it computed otherwise). A level above the
    last one begins a new schedule: a hires pass, the next image, Restart sampling. No difference is
    used for more than ``every`` steps, the one it was made in included: a key that is asked for in
    odd steps only (NGMS skips uncond in these) would else never be made anew.

    Attributes:
        every: a difference is made at every ``every``-th step, at least 1.
    """

    every: int
    _level: float | None = None
    _step: int = 0
    _kept: dict[Hashable, tuple[torch.Tensor, int, Any]] = field(default_factory=dict)

    def at(self, level: float | None, key: Hashable) -> torch.Tensor | None:
        """The difference to use for a call; None: a dense pass is due.

        Args:
            level: sigma or timestep of the call; it falls along the schedule.
            key: what the call is for: conditioning slice, place among the calls of a step.

        Raises:
            CRDiffError: no level is known.
        """
        if level is None:
            raise CRDiffError("reusing differences needs the noise level of each call")
        if self._level is None or not math.isclose(level, self._level, rel_tol=_ROUNDING):
            if self._level is None or level > self._level:
                self.clear()
            else:
                self._step += 1
            self._level = level
        delta, made_at, _ = self._kept.get(key, (None, 0, None))
        due = self._step % self.every == 0 or self._step - made_at >= self.every
        return None if due else delta

    def keep(self, key: Hashable, delta: torch.Tensor, owner: Any = None) -> None:
        """Keep a difference; ``owner`` lives as long, for keys that are made of its identity."""
        # What is too old to be used goes: keys may be new ones at each step.
        old = [k for k, (_, made_at, _) in self._kept.items() if self._step - made_at >= self.every]
        for gone in old:
            del self._kept[gone]
        self._kept[key] = delta, self._step, owner

    def clear(self) -> None:
        """Forget all differences; the next call begins a schedule."""
        self._level, self._step = None, 0
        self._kept.clear()
