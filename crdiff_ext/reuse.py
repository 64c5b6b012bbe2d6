"""Delta reuse: ``z_pruned - z_dense`` of one step, used again in the steps after it.

``k z_pruned + (1 - k) z_dense = z_pruned + (k - 1) (z_pruned - z_dense)``, and the difference moves
slowly along the schedule, so the dense pass can be left out of most steps.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import CRDiffError


@dataclass
class Deltas:
    """The differences in hand, and which steps make them anew.

    A step is a noise level: all calls at one sigma (or timestep) are one step, so neither
    second-order samplers nor guidance in several calls matter. A level above the last one begins a
    new schedule: a hires pass, the next image, Restart sampling.

    Attributes:
        every: a difference is made at every ``every``-th step, at least 1.
    """

    every: int
    _level: float | None = None
    _step: int = 0
    _kept: dict[Hashable, tuple[torch.Tensor, Any]] = field(default_factory=dict)

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
        if self._level is None or level > self._level:
            self.clear()
        elif level < self._level:
            self._step += 1
        self._level = level
        found = self._kept.get(key)
        return None if self._step % self.every == 0 or found is None else found[0]

    def keep(self, key: Hashable, delta: torch.Tensor, owner: Any = None) -> None:
        """Keep a difference; ``owner`` lives as long, for keys that are made of its identity."""
        self._kept[key] = delta, owner

    def clear(self) -> None:
        """Forget all differences; the next call begins a schedule."""
        self._level, self._step = None, 0
        self._kept.clear()
