"""A decision at work on one UNet: both passes of each call, and where pruned weights come from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from ..amplify import Amplifier, PassCounts, Place, Window
from ..blocks import PrunableWeight
from ..decide import Decision
from ..errors import CRDiffError
from ..noise import Noise
from ..plan_cache import PlanCache
from ..pruning import PrunePlan, make_plan

PLANS = PlanCache()


class WeightSource(Protocol):
    """Where a pruned pass gets its weights: one UNet of a host."""

    def key(self) -> Hashable:
        """Everything that its thresholds depend on, device apart; cheap, asked at each call."""

    def weights(self) -> Iterable[PrunableWeight]:
        """The effective weights, LoRA included; valid after a dense pass."""

    def pruned(self, plan: PrunePlan) -> AbstractContextManager[None]:
        """Inside, a forward sees pruned weights; undone whatever happens."""

    def free(self) -> None:
        """Let go of masked copies."""


class Actor:
    """A decision to act, on one UNet: each call is a dense pass, a pruned pass, and their mix.

    The plan is made after the first dense pass, because hosts merge LoRAs during it, and again
    whenever the source's key has changed since.

    Args:
        decision: one that acts.
        window: part of the schedule to act in.
        source: the UNet's weights.
        fail: told the sentence of a CRDiffError (damaged weights, say); unless it raises, the
            actor makes dense passes only from then on.
        began: called after the first pruned pass.

    Attributes:
        pruned_passes: forwards that were finished with weights really pruned.
        failed: whether a CRDiffError ended the acting.
    """

    def __init__(
        self,
        decision: Decision,
        window: Window,
        source: WeightSource,
        fail: Callable[[str], None],
        began: Callable[[], None] = lambda: None,
    ) -> None:
        assert decision.ratios is not None
        self.pruned_passes = 0
        self.failed = False
        self._fail, self._began = fail, began
        self.decision = decision
        self._ratios = decision.ratios
        self._source = source
        self._amplifier = Amplifier(decision.k, window)
        self._key: Hashable = None
        self._plan: PrunePlan | None = None

    @property
    def stats(self) -> PassCounts:
        """Dense and pruned passes made so far."""
        return self._amplifier.stats

    @property
    def is_noop(self) -> bool:
        """Whether the plan is known by now and prunes nothing (ratios too small)."""
        return self._plan is not None and self._plan.is_noop

    def __call__(self, call: Callable[[], Any], fraction: float | None) -> Any:
        """Both passes of ``call``, which must bring fresh arguments each time, and their mix.

        Outputs as for ``outputs.prediction_of``; ``fraction`` of the schedule as for ``Window``.
        """
        outputs: list[Any] = []
        noise = Noise()

        def dense() -> Any:
            output = call()
            # Mixture of Diffusers answers with a buffer of its own, which its next call clears.
            outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)
            return outputs[0]

        def again() -> Any:
            with self._source.pruned(self.plan()):
                noise.again()
                output = call()
            self.pruned_passes += not self.is_noop
            return output

        pruned = None if self.failed or self.is_noop else again
        before = self.pruned_passes
        try:
            combined = self._amplifier(dense, pruned, Place(fraction, settled=False))
            if before == 0 < self.pruned_passes:
                self._began()
            return combined
        except CRDiffError as error:
            self.failed = True
            self.free()
            self._fail(str(error))
            return outputs[0] if outputs else call()
        except BaseException:
            self.free()  # nobody tells a script that a generation failed
            raise

    def plan(self) -> PrunePlan:
        """The thresholds of the weights as they are now; call it after a dense pass."""
        key = (self._source.key(), self._ratios)
        if self._plan is None or key != self._key:
            self._plan = PLANS.get(key, lambda: make_plan(self._source.weights(), self._ratios))
            self._key = key
        return self._plan

    def free(self) -> None:
        """Let go of masked copies of weights."""
        self._source.free()
