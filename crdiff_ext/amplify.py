"""Pruned output amplification (the paper's Section 3.4) and when to do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from .errors import CRDiffError
from .settings import K_DEFAULT, check_k

Output = TypeVar("Output")


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


@dataclass
class PassCounts:
    """Forward passes made so far."""

    dense_passes: int = 0
    pruned_passes: int = 0


@dataclass
class Amplifier:
    """Which passes a UNet call consists of, and their combination.

    Attributes:
        k: 0 to 3 (CRDiffError otherwise). 0: dense pass only. 1: pruned pass only, the dense one
            would not count, unless ``always_dense``.
        window: when to act; outside it, dense pass only.
        always_dense: make the dense pass even at k = 1. Hosts that merge LoRAs into the weights
            during the first forward need it: their backup must be of dense weights.
        stats: passes made so far.
    """

    k: float = K_DEFAULT
    window: Window = field(default_factory=Window)
    always_dense: bool = False
    stats: PassCounts = field(default_factory=PassCounts)

    def __post_init__(self) -> None:
        self.k = check_k(self.k)

    def __call__(
        self,
        dense: Callable[[], Output],
        pruned: Callable[[], Output] | None,
        combine_outputs: Callable[[Output, Output, float], Output],
        fraction: float | None = None,
    ) -> Output:
        """One amplified UNet call; the dense pass always comes first.

        Args:
            dense: makes the dense pass.
            pruned: makes the pruned pass; None: there is nothing to prune.
            combine_outputs: ``combine`` for the kind of output that the passes give.
            fraction: where in the schedule, see ``Window``.
        """
        if pruned is None or self.k == 0 or not self.window.active(fraction):
            self.stats.dense_passes += 1
            return dense()
        if self.k == 1 and not self.always_dense:
            self.stats.pruned_passes += 1
            return pruned()
        self.stats.dense_passes += 1
        z_dense = dense()
        self.stats.pruned_passes += 1
        return combine_outputs(z_dense, pruned(), self.k)
