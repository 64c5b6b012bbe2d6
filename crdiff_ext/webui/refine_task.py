"""What a search for one prompt needs of its generation: whether to act, where to start, drawing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CRDiffError
from ..presets import Preset
from ..refine import Refinement, Round
from ..schedule import State
from ..settings import K_DEFAULT, Ratios, Settings
from . import arguments, session
from .hosts import Adapter
from .job import ModelFacts, decide_for, why_not_hires
from .library import Library
from .refine_arguments import Request
from .rounds import BadStart, Drawn, Failed, Rounds, Stopped

logger = logging.getLogger("crdiff")

DENSE = State(Ratios(0.0, 0.0, 0.0))
UNSURE = Ratios(0.3, 0.3, 0.3)
"""Ratios that ask whether CR-Diff would act at all."""


@dataclass
class Task:
    """One call of the script: the host's processing object, what is asked for, and what rules."""

    p: Any
    asked: Request
    values: Mapping[str, Any]
    settings: Settings
    adapter: Adapter
    library: Library
    facts: ModelFacts | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height, width."""
        return int(self.p.height), int(self.p.width)


def prepare(task: Task, rounds: Rounds) -> tuple[Refinement, Drawn | None]:
    """The search, and its dense images if they had to be drawn to have the model loaded.

    Raises CRDiffError where CR-Diff would not act.
    """
    first = None
    if "sd_model_checkpoint" not in (task.p.override_settings or {}):
        task.adapter.settle()
        task.facts = task.adapter.loaded_model()
    if task.facts is None:
        first = rounds.draw(DENSE, 0, "dense")
        task.facts = rounds.model or task.adapter.loaded_model()
    if task.facts is None:
        raise CRDiffError("no model is loaded: make one image first")
    asked = task.asked
    start = where_to_start(task, task.facts, task.library.presets())
    seeds = range(int(task.p.seed), int(task.p.seed) + asked.seeds)
    one = task.facts.family.is_dit
    return Refinement(start, seeds, asked.budget, asked.search_k, uniform=one), first


def where_to_start(task: Task, facts: ModelFacts, presets: Sequence[Preset]) -> State:
    """The ratios set by hand, else the stored ones, else what is on the sliders; and k.

    Raises CRDiffError, with the reason, where CR-Diff would leave the image alone, and for ratios
    that the model can't have.
    """
    settings = task.settings
    if settings.mode == "off":
        raise CRDiffError("CR-Diff is switched off: switch it on to refine its ratios")
    if settings.passes == "hires":
        raise CRDiffError("the first pass is left out (passes: hires): set passes to both or first")
    if settings.k == 0 and not task.asked.search_k:
        raise CRDiffError("k is 0, which is the dense model: raise it, or search k too")
    would = replace(settings, ratios=UNSURE, k=settings.k or K_DEFAULT)
    decision = decide_for(would, presets, facts, task.size)
    if not decision.act:
        native = '; to refine it all the same, set "when to act" to always'
        hint = native if decision.code == "native" else ""
        raise CRDiffError(f"nothing to refine: {decision.sentence}{hint}")
    sentence = why_not_hires(settings, facts.family) if session.same_model_hires(task.p) else ""
    if sentence:
        raise CRDiffError(sentence)
    if settings.ratios is not None:
        facts.family.check(settings.ratios)
        return State(settings.ratios, settings.k)
    stored = decide_for(replace(settings, k=settings.k or K_DEFAULT), presets, facts, task.size)
    if stored.ratios is not None:
        return State(stored.ratios, settings.k)
    sliders = arguments.settings_from({**task.values, "ratios": arguments.SET}).ratios or UNSURE
    facts.family.check(sliders)
    return State(sliders, settings.k)


def draw(task: Task, rounds: Rounds, asked: Round) -> Drawn | None:
    """The round's images; None, with a notice, if they failed. Raises Stopped.

    An error in dense's images is the host's own, and goes on to it.
    """
    try:
        return rounds.draw(asked.state, asked.number, asked.kind)
    except (Stopped, BadStart):
        raise
    except Failed as error:
        sentence = str(error)
    except Exception as error:  # whatever a host or another extension raises in a generation
        if asked.kind == "dense":
            raise
        logger.exception("round %d failed", asked.number)
        sentence = str(getattr(error, "detail", error)) or type(error).__name__
    task.p.comment(f"CR-Diff: round {asked.number} ({asked.state}) does not count: {sentence}")
    return None
