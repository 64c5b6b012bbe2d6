"""A decision at work on one UNet: the passes of each call, and where pruned weights come from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..amplify import EXACT, Amplifier, PassCounts, Place, small_weight_factor
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

    def settled(self, known: Callable[[], bool]) -> bool:
        """Whether the host will change no weight in the next forward, as when it merges a LoRA.

        Only then may a pruned pass come first: a merge must never find anything but dense weights.

        Args:
            known: whether a plan was made for the weights as they are now, by ``key``.
        """

    def weights(self) -> Iterable[PrunableWeight]:
        """The effective weights, LoRA included; valid after a dense pass, or when settled."""

    def pruned(self, plan: PrunePlan, factor: float) -> AbstractContextManager[None]:
        """Inside, a forward sees small weights times ``factor``; undone whatever happens."""

    def free(self) -> None:
        """Let go of masked copies."""


class Actor:
    """A decision to act, on one UNet: which passes each call consists of, and their mix.

    The plan is made when no LoRA is left to be merged, which in some hosts is after a dense pass
    only, and again whenever the source's key has changed since.

    Args:
        decision: one that acts.
        amplifier: made for its ``k``.
        source: the UNet's weights.
        fail: told the sentence of a CRDiffError (damaged weights, say); unless it raises, the
            actor makes dense passes only from then on.
        began: called after the first pruned pass.

    Attributes:
        pruned_passes: forwards that were finished with weights really pruned (or folded).
        failed: whether a CRDiffError ended the acting.
    """

    def __init__(
        self,
        decision: Decision,
        amplifier: Amplifier,
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
        self._amplifier = amplifier
        self._factor = small_weight_factor(amplifier.amplification, amplifier.k)
        self._key: Hashable = None
        self._plan: PrunePlan | None = None

    @property
    def stats(self) -> PassCounts:
        """Dense and pruned passes made so far."""
        return self._amplifier.stats

    @property
    def amplification(self) -> str:
        """As in ``Settings``."""
        return self._amplifier.amplification

    @property
    def is_noop(self) -> bool:
        """Whether the plan is known by now and prunes nothing (ratios too small)."""
        return self._plan is not None and self._plan.is_noop

    def __call__(self, call: Callable[[], Any], place: Place) -> Any:
        """The passes of ``call``, which must bring fresh arguments each time, and their mix.

        Outputs as for ``outputs.prediction_of``. Whether ``place`` is settled is found out here.
        """
        outputs: list[Any] = []
        noise = Noise()

        def dense() -> Any:
            output = call()
            # Mixture of Diffusers answers with a buffer of its own, which its next call clears.
            outputs.append(output.clone() if isinstance(output, torch.Tensor) else output)
            return outputs[0]

        def again() -> Any:
            with self._source.pruned(self.plan(), self._factor):
                noise.again()
                output = call()
            self.pruned_passes += not self.is_noop
            return output

        pruned = None if self.failed or self.is_noop else again
        before = self.pruned_passes
        try:
            settled = pruned is None or self._settled()
            combined = self._amplifier(dense, pruned, replace(place, settled=settled))
            if before == 0 < self.pruned_passes:
                self._began()
            return combined
        except CRDiffError as error:
            self.failed = True
            self.free()
            self._fail(str(error))
            if outputs:
                return outputs[0]
            noise.again()
            self.stats.dense_passes += 1
            return dense()
        except BaseException:
            self.free()  # nobody tells a script that a generation failed
            raise

    def plan(self) -> PrunePlan:
        """The thresholds of the weights as they are now, which must be settled."""
        key = self._plan_key()
        if self._plan is None or key != self._key:
            self._plan = PLANS.get(key, lambda: make_plan(self._source.weights(), self._ratios))
            self._key = key
        return self._plan

    def free(self) -> None:
        """Let go of masked copies of weights, and of differences kept for reuse."""
        self._source.free()
        self._amplifier.free()

    def _settled(self) -> bool:
        if self.amplification == EXACT and self._amplifier.k != 1:
            return False  # a dense pass comes first in any case
        return self._source.settled(self._is_planned)

    def _is_planned(self) -> bool:
        key = self._plan_key()
        return (self._plan is not None and key == self._key) or key in PLANS

    def _plan_key(self) -> Hashable:
        return self._source.key(), self._ratios
