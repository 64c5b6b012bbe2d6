"""Pruned output amplification (the paper's Section 3.4) and when to do it.

Three ways to come by ``z = k z_pruned + (1 - k) z_dense``:

- ``exact``: a dense and a pruned pass in each call; twice the UNet time.
- ``folded``: one pass with the weights ``W' = W`` where kept and ``(1 - k) W`` where pruned. Equal
  to first order in the pruned weights: ``k f(W_kept) + (1 - k) f(W) = f(W') + O(|W_small|^2)``,
  because both sides move along the same direction, by ``(1 - k) W_small``.
- ``reuse-N``: pruned passes, and a dense one at every N-th step, whose difference is used again in
  between (``reuse.py``); 1 + 1/N times the UNet time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import CRDiffError
from .outputs import prediction_of, with_prediction
from .reuse import Deltas
from .settings import AMPLIFICATIONS, K_DEFAULT, check_k

EXACT, FOLDED = "exact", "folded"


def combine(z_dense: torch.Tensor, z_pruned: torch.Tensor, k: float) -> torch.Tensor:
    """``z = k z_pruned + (1 - k) z_dense``, in the tensors' own dtype, any shape.

    As ``lerp``, because the formula as written is not exact in floating point: lerp gives back
    equal inputs unchanged for any k, z_pruned at k = 1 and z_dense at k = 0.
    """
    return torch.lerp(z_dense, z_pruned, k)


@dataclass(frozen=True)
class Window:
    """The part of the sampling schedule in which to act: ``start <= fraction < end``.

    A fraction is steps done / steps in all, so the first step is at 0 and the last below 1.
    Raises CRDiffError unless ``0 <= start < end <= 1``.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise CRDiffError(
                f"window {self.start:g} to {self.end:g}: start must be below end, both from 0 to 1"
            )

    @property
    def is_whole(self) -> bool:
        """Whether every step is in the window."""
        return (self.start, self.end) == (0.0, 1.0)

    def active(self, fraction: float | None) -> bool:
        """Whether to act at ``fraction``; None is allowed for the whole schedule only.

        Raises CRDiffError for None with a narrower window: steps can't be guessed from calls,
        because second-order samplers call twice and guidance may split a batch.
        """
        if self.is_whole:
            return True
        if fraction is None:
            raise CRDiffError(
                f"the window {self.start:g} to {self.end:g} needs the fraction of the schedule: "
                "set `fraction` before each step"
            )
        return self.start <= fraction < self.end


def reuse_interval(amplification: str) -> int:
    """N of "reuse-N"; 1 for the other ways, which need a dense pass at each step or at none."""
    return int(amplification.rpartition("-")[2]) if amplification.startswith("reuse-") else 1


def small_weight_factor(amplification: str, k: float) -> float:
    """What the pass that sees changed weights multiplies the small ones by."""
    return 1 - k if amplification == FOLDED else 0.0


def expected_cost(amplification: str, k: float) -> float:
    """UNet passes a step while acting: 2 exact, 1 folded, 1 + 1/N with reuse; 1 at k = 0 and 1."""
    if amplification == FOLDED or k in (0, 1):
        return 1.0
    return 1 + 1 / reuse_interval(amplification)


@dataclass
class PassCounts:
    """Forward passes made so far; a folded pass counts as a pruned one."""

    dense_passes: int = 0
    pruned_passes: int = 0


@dataclass(frozen=True)
class Place:
    """Where in a generation a UNet call is.

    Attributes:
        fraction: of the schedule, see ``Window``.
        level: sigma or timestep, only compared with others; ``reuse-N`` needs it.
        key: tells the calls of one step apart: conditioning slice, position.
        owner: kept alive with a difference, where ``key`` has the identity of an object.
        settled: False when weights may still change in the next forward, as in hosts that merge
            LoRAs in it. Then a dense pass comes first, if only to be thrown away.
    """

    fraction: float | None = None
    level: float | None = None
    key: Hashable = None
    owner: Any = None
    settled: bool = True


@dataclass
class Amplifier:
    """Which passes a UNet call consists of, and their combination.

    Attributes:
        k: 0 to 3 (CRDiffError otherwise). 0: dense pass only. 1: pruned pass only, the dense one
            would not count.
        window: when to act; outside it, dense pass only.
        amplification: "exact", "folded" or "reuse-N", see this module's docstring. For "folded",
            ``pruned`` must make the pass with folded weights (``small_weight_factor``).
        stats: passes made so far.
    """

    k: float = K_DEFAULT
    window: Window = field(default_factory=Window)
    amplification: str = EXACT
    stats: PassCounts = field(default_factory=PassCounts)

    def __post_init__(self) -> None:
        self.k = check_k(self.k)
        if self.amplification not in AMPLIFICATIONS:
            raise CRDiffError(
                f"amplification is {self.amplification!r}: use one of {', '.join(AMPLIFICATIONS)}"
            )
        self._deltas = Deltas(reuse_interval(self.amplification))

    def __call__(
        self,
        dense: Callable[[], Any],
        pruned: Callable[[], Any] | None,
        place: Place = Place(),
    ) -> Any:
        """One amplified UNet call; a dense pass, if there is one, always comes first.

        Outputs as for ``outputs.prediction_of``; what they hold besides the prediction is the
        dense pass's where there is one.

        Args:
            dense: makes the dense pass.
            pruned: makes the pruned (or folded) pass; None: there is nothing to prune.
            place: where in the generation.
        """
        if pruned is None or self.k == 0 or not self.window.active(place.fraction):
            return self._dense(dense)
        if self.k == 1 or self.amplification == FOLDED:
            if not place.settled:
                self._dense(dense)
            return self._pruned(pruned)
        delta = None
        if self._deltas.every > 1:
            delta = self._deltas.at(place.level, place.key)
        if delta is not None and place.settled:
            output = self._pruned(pruned)
            z_pruned = prediction_of(output)
            if z_pruned.shape == delta.shape:
                return with_prediction(output, z_pruned.add(delta, alpha=self.k - 1))
            raise CRDiffError(
                f"a difference of shape {list(delta.shape)} was kept for a prediction of shape "
                f"{list(z_pruned.shape)}: use exact amplification with this sampler"
            )
        output = self._dense(dense)
        z_dense = prediction_of(output)
        z_pruned = prediction_of(self._pruned(pruned))
        if self._deltas.every > 1:
            self._deltas.keep(place.key, z_pruned - z_dense, place.owner)
        return with_prediction(output, combine(z_dense, z_pruned, self.k))

    def free(self) -> None:
        """Let go of differences kept for reuse."""
        self._deltas.clear()

    def _dense(self, dense: Callable[[], Any]) -> Any:
        self.stats.dense_passes += 1
        return dense()

    def _pruned(self, pruned: Callable[[], Any]) -> Any:
        self.stats.pruned_passes += 1
        return pruned()
