"""One generation: what was asked for, what was decided for each pass, and what really ran.

A job lives on the host's processing object (``p.crdiff_job``) and nowhere else. The host adapters
ask it what to do at each denoiser call; nothing here imports a host.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..amplify import Amplifier, PassCounts, Window
from ..blocks import PrunableWeight
from ..decide import Decision, decide
from ..errors import CRDiffError
from ..families import Family
from ..patch import combine_outputs
from ..plan_cache import PlanCache
from ..presets import Preset
from ..pruning import PrunePlan, make_plan
from ..settings import Settings

logger = logging.getLogger("crdiff")

PLANS = PlanCache()


@dataclass(frozen=True)
class ModelFacts:
    """A loaded model as an adapter sees it.

    Attributes:
        family: told by its shapes.
        checkpoint: its name for people.
        refused: a sentence that says why this model can't be pruned at all; else None.
        hash: the start of its file's SHA-256, as the host shows it; empty when it is not known.
    """

    family: Family
    checkpoint: str
    refused: str | None = None
    hash: str = ""


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
    """

    def __init__(
        self,
        decision: Decision,
        window: Window,
        source: WeightSource,
        fail: Callable[[str], None],
    ) -> None:
        assert decision.ratios is not None
        self.failed = False
        self._fail = fail
        self.decision = decision
        self._ratios = decision.ratios
        self._source = source
        self._amplifier = Amplifier(decision.k, window, always_dense=True)
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

        Outputs as for ``patch.combine_outputs``; ``fraction`` of the schedule as for ``Window``.
        """
        outputs: list[Any] = []

        def dense() -> Any:
            outputs.append(call())
            return outputs[0]

        pruned = None if self.failed or self.is_noop else lambda: self._pruned(call)
        try:
            return self._amplifier(dense, pruned, combine_outputs, fraction)
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

    def _pruned(self, call: Callable[[], Any]) -> Any:
        with self._source.pruned(self.plan()):
            return call()


@dataclass
class Record:
    """One stretch of a generation on one model at one size."""

    part: str  # "first" or "hires"
    refiner: bool
    checkpoint: str
    height: int
    width: int
    decision: Decision
    actor: Actor | None = None

    @property
    def pruned_passes(self) -> int:
        """Forwards made in this stretch with weights really pruned."""
        if self.actor is None or self.actor.is_noop or self.actor.failed:
            return 0
        return self.actor.stats.pruned_passes


@dataclass
class Job:
    """One generation's state.

    Attributes:
        settings: as asked for.
        presets: all stored ratios.
        say: shows a sentence to the user (the image's comments); given by the script.
        fail: what an error in the middle of sampling does besides: raise, or nothing.
        log: keeps each decision and notice for a problem report.
        records: each stretch so far, in order.
    """

    settings: Settings
    presets: Sequence[Preset]
    say: Callable[[str], None] = lambda sentence: None
    fail: Callable[[str], None] = lambda sentence: None
    log: Callable[[str], None] = lambda sentence: None
    records: list[Record] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)
    _by_place: dict[Hashable, tuple[weakref.ref[Any], Record]] = field(default_factory=dict)

    def record(
        self,
        part: str,
        model: Any,
        facts: Callable[[], ModelFacts],
        size: tuple[int, int],
        refiner: bool = False,
        source: Callable[[], WeightSource] | None = None,
    ) -> Record:
        """What to do at a denoiser call; the same Record for the same place in the generation.

        Args:
            part: "first" or "hires".
            model: the host's model object, to know it again.
            facts: tells what it is; asked once a place.
            size: height, width of the pass in pixels.
            refiner: whether the refiner switch has happened.
            source: makes the weight source if it comes to acting; None: only decide.
        """
        place = (part, id(model), size, refiner)
        known = self._by_place.get(place)
        if known is not None and known[0]() is model:
            return known[1]
        found = facts()
        decision = decide_for(self.settings, self.presets, found, size, part, refiner)
        logger.info("%s", decision.sentence)
        self.log(decision.sentence)
        if decision.code == "refused":
            self.notice(decision.sentence)
        made = Record(part, refiner, found.checkpoint, *size, decision)
        if decision.act and source is not None:
            window = Window(self.settings.start, self.settings.end)
            made.actor = Actor(decision, window, source(), self._failed)
        self._by_place[place] = (weakref.ref(model), made)
        self.records.append(made)
        return made

    def notice(self, sentence: str) -> None:
        """Tell the user, once a generation, in the log and in the image's comments."""
        if sentence not in self._said:
            self._said.add(sentence)
            logger.warning("%s", sentence)
            self.log(sentence)
            self.say(f"CR-Diff: {sentence}")

    def _failed(self, sentence: str) -> None:
        self.notice(f"{sentence}; this image is finished without CR-Diff")
        self.fail(sentence)

    def acted(self) -> list[Record]:
        """The stretches in which pruned passes really ran."""
        return [record for record in self.records if record.pruned_passes]

    def free(self) -> None:
        """Let go of all masked copies; harmless to repeat."""
        for record in self.records:
            if record.actor is not None:
                record.actor.free()


def decide_for(
    settings: Settings,
    presets: Sequence[Preset],
    facts: ModelFacts,
    size: tuple[int, int],
    part: str = "first",
    refiner: bool = False,
) -> Decision:
    """What to do in ``part`` of a generation, of ``size`` (height, width): ``decide`` and the host.

    Codes besides those of ``Decision``: "refused" (the host's model can't be pruned) and
    "refiner-off".
    """
    chosen = settings.for_pass(part)
    decision = decide(facts.family, *size, chosen, presets, facts.hash)
    would = decision.act or decision.code in ("unknown-family", "no-stored")
    if facts.refused is not None and would:
        return inactive(decision, facts.refused, "refused")
    if refiner and not chosen.refiner and decision.act:
        return inactive(decision, "not after the refiner switch, as set", "refiner-off")
    return decision


def inactive(decision: Decision, sentence: str, code: str) -> Decision:
    """The same decision, not acting."""
    return Decision(False, None, decision.k, None, False, sentence, code)


def latent_size(latent: torch.Tensor, factor: int = 8) -> tuple[int, int]:
    """(height, width) in pixels of a latent [n, c, h, w]; ``factor`` pixels a latent pixel."""
    return latent.shape[-2] * factor, latent.shape[-1] * factor
