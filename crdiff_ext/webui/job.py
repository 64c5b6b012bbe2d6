"""One generation: what was asked for, what was decided for each pass, and what really ran.

A job lives on the host's processing object (``p.crdiff_job``) and nowhere else. The host adapters
ask it what to do at each denoiser call; nothing here imports a host.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..amplify import Amplifier, Window
from ..decide import Decision, decide
from ..errors import CRDiffError
from ..families import Family
from ..presets import Preset
from ..settings import Settings
from .actor import Actor, WeightSource

logger = logging.getLogger("crdiff")


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


@dataclass
class Record:
    """One stretch of a generation on one model at one size."""

    part: str  # "first" or "hires"
    refiner: bool
    checkpoint: str
    height: int
    width: int
    decision: Decision
    native: tuple[int, int] | None = None  # height, width that the model was trained for
    actor: Actor | None = None

    @property
    def pruned_passes(self) -> int:
        """Forwards finished in this stretch with weights really pruned."""
        return 0 if self.actor is None else self.actor.pruned_passes

    @property
    def failed(self) -> bool:
        """Whether an error ended the acting before the stretch did, or kept it from beginning."""
        return self.decision.code == "unequal" or (self.actor is not None and self.actor.failed)


@dataclass(eq=False)
class Job:
    """One generation's state.

    Attributes:
        settings: as asked for.
        presets: all stored ratios.
        say: shows a sentence to the user (the image's comments); given by the script.
        fail: what an error in the middle of sampling does besides: raise, or nothing.
        log: keeps each decision and notice for a problem report.
        began: called after the first pruned pass of each stretch.
        hires: a hires pass of the same model follows the first.
        records: each stretch so far, in order.
    """

    settings: Settings
    presets: Sequence[Preset]
    say: Callable[[str], None] = lambda sentence: None
    fail: Callable[[str], None] = lambda sentence: None
    log: Callable[[str], None] = lambda sentence: None
    began: Callable[[], None] = lambda: None
    hires: bool = False
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
        if part == "first" and self.hires and decision.act:
            sentence = why_not_hires(self.settings, found.family)
            decision = inactive(decision, sentence, "unequal") if sentence else decision
        logger.info("%s", decision.sentence)
        self.log(decision.sentence)
        if decision.code == "refused":
            self.notice(decision.sentence)
        elif decision.code == "unequal":
            self._failed(decision.sentence)
        made = Record(part, refiner, found.checkpoint, *size, decision, found.family.native)
        if decision.act and source is not None:
            window = Window(self.settings.start, self.settings.end)
            amplifier = Amplifier(decision.k, window, self.settings.amplification)
            made.actor = Actor(decision, amplifier, source(), self._failed, self.began)
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
    would = decision.act or decision.code in ("unknown-family", "no-stored", "unequal")
    if facts.refused is not None and would:
        return inactive(decision, facts.refused, "refused")
    if refiner and not chosen.refiner and decision.act:
        return inactive(decision, "not after the refiner switch, as set", "refiner-off")
    return decision


def why_not_hires(settings: Settings, family: Family) -> str:
    """What is wrong with the hires pass' own ratios for a model of ``family``; empty if nothing."""
    chosen = settings.for_pass("hires")
    if chosen.mode != "off" and chosen.ratios is not None:
        try:
            family.check(chosen.ratios)
        except CRDiffError as error:
            return f"hires pass: {error}"
    return ""


def inactive(decision: Decision, sentence: str, code: str) -> Decision:
    """The same decision, not acting."""
    return Decision(False, None, decision.k, None, False, sentence, code)


def latent_size(latent: torch.Tensor, factor: int = 8) -> tuple[int, int]:
    """(height, width) in pixels of a latent [n, c, h, w]; ``factor`` pixels a latent pixel."""
    return latent.shape[-2] * factor, latent.shape[-1] * factor
