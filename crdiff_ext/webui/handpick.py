"""Refinement judged by a person: each call draws one round, and shows it beside the favourite.

Between two calls the search waits in a bounded store of this process, under the session's name.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from modules import processing

from ..errors import CRDiffError
from ..refine import Refinement, Round
from . import infotext, report
from .job import ModelFacts
from .refine_arguments import ANY, HAND, SECOND
from .refine_results import RESULTS, Result, Row
from .refine_task import Task, draw, prepare
from .rounds import Drawn, Rounds, Stopped, described, gathered

KEPT = 4
"""Searches that wait at the same time: each holds the images of two rounds."""
FAILURES = 3
"""Rounds in a row that may fail before a call gives up."""

# What of the processing object decides what a round draws, and how people call it.
_FIELDS = {
    "prompt": "the prompt",
    "negative_prompt": "the negative prompt",
    "styles": "the styles",
    "width": "the width",
    "height": "the height",
    "steps": "the steps",
    "sampler_name": "the sampler",
    "scheduler": "the schedule type",
    "cfg_scale": "the CFG scale",
    "batch_size": "the batch size",
    "denoising_strength": "the denoising strength",
    "enable_hr": "hires fix",
    "hr_scale": "the hires scale",
    "hr_resize_x": "the hires width",
    "hr_resize_y": "the hires height",
    "hr_upscaler": "the hires upscaler",
    "hr_second_pass_steps": "the hires steps",
    "hr_checkpoint_name": "the hires checkpoint",
    "hr_sampler_name": "the hires sampler",
    "hr_prompt": "the hires prompt",
    "hr_negative_prompt": "the hires negative prompt",
    "refiner_checkpoint": "the refiner",
    "refiner_switch_at": "the refiner's switch",
    "distilled_cfg_scale": "the distilled CFG scale",
    "subseed_strength": "the variation strength",
    "tiling": "tiling",
    "resize_mode": "the resize mode",
    "mask_blur": "the mask's blur",
    "inpainting_fill": "the masked content",
    "inpaint_full_res": "the inpaint area",
    "inpainting_mask_invert": "the mask mode",
    "override_settings": "the overridden settings",
}


@dataclass
class Picking:
    """A search that waits for a person's choice."""

    search: Refinement
    seeds: tuple[int, int]  # the fixed seed and subseed
    made_for: dict[str, str]
    favourite: tuple[Round, Drawn] | None = None
    challenger: tuple[Round, Drawn] | None = None
    facts: ModelFacts | None = None


@dataclass
class Sessions:
    """The searches that wait, by name; the oldest goes first."""

    waiting: OrderedDict[str, Picking] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, name: str, picking: Picking) -> None:
        """Keep it, as the newest."""
        with self.lock:
            self.waiting[name] = picking
            self.waiting.move_to_end(name)
            while len(self.waiting) > KEPT:
                self.waiting.popitem(last=False)

    def get(self, name: str) -> Picking | None:
        """That of a name, if it still waits."""
        with self.lock:
            return self.waiting.get(name)


SESSIONS = Sessions()


def step(task: Task) -> Any:
    """One call: begin, go on after a choice, or show again. Raises CRDiffError.

    What does not fit the search that waits is told beside its pair, and through the API is an
    error; either way the search goes on waiting.
    """
    asked, p = task.asked, task.p
    picking = SESSIONS.get(asked.session)
    if picking is None and asked.choice:
        raise CRDiffError(
            "there is no search of that name that waits for a choice: begin one (choice empty)"
        )
    seeds = (p.seed, p.subseed)
    if picking is not None:
        objection = _objection(picking, task)
        if objection and getattr(p, "is_api", False):
            raise CRDiffError(objection)
        if objection:
            return _show(task, picking, objection, changed=True)
        p.seed, p.subseed = picking.seeds
        task.facts = picking.facts
    else:
        processing.fix_seed(p)
    rounds = Rounds(p, asked.seeds, asked.budget // asked.seeds)
    rounds.expect(2 if picking is None else 1)
    try:
        if picking is None:
            picking = _begin(task, rounds, seeds)
        elif asked.choice:
            _choose(picking, asked.choice == SECOND)
        _go_on(task, picking, rounds)
    except Stopped as stop:
        if picking is None:
            raise CRDiffError("interrupted before there was anything to choose from") from None
        return _show(task, picking, f"{stop}: press the button again to go on")
    return _show(task, picking, "")


def _begin(task: Task, rounds: Rounds, seeds: tuple[Any, Any]) -> Picking:
    p = task.p
    search, first = prepare(task, rounds)
    picking = Picking(search, (p.seed, p.subseed), _made_for(task, seeds), facts=task.facts)
    asked = search.ask()
    drawn = first or draw(task, rounds, asked)
    if drawn is None:
        raise CRDiffError("the dense images could not be drawn: see the host's log")
    picking.facts = task.facts = rounds.model or task.facts
    search.prefer(False)  # the first round is the favourite either way
    picking.favourite = asked, drawn
    SESSIONS.put(task.asked.session, picking)
    return picking


def _choose(picking: Picking, second: bool) -> None:
    if picking.challenger is None:
        done = "the budget is spent" if picking.search.done else "there is only one image to see"
        raise CRDiffError(f"there is nothing to choose between: {done}")
    picking.search.prefer(second)
    if second:
        picking.favourite = picking.challenger
    picking.challenger = None


def _go_on(task: Task, picking: Picking, rounds: Rounds) -> None:
    """Draw the next challenger if there is to be one. Raises Stopped, CRDiffError."""
    failed = 0
    while picking.challenger is None and not picking.search.done:
        asked = picking.search.ask()
        drawn = draw(task, rounds, asked)
        if drawn is not None:
            picking.challenger = asked, drawn
            return
        picking.search.tell(None)
        failed += 1
        if failed == FAILURES:
            raise Stopped(f"{failed} rounds in a row could not be drawn, see the host's log")


def _show(task: Task, picking: Picking, message: str, changed: bool = False) -> Any:
    """Favourite and challenger, in the gallery and as a result."""
    waiting = picking.challenger is not None
    paused = not (waiting or picking.search.done or changed)
    if not message:
        message = (
            "which is better: the first (favourite) or the second (challenger)?"
            if waiting
            else "the budget is spent: the favourite is what was found"
        )
    result = Result(
        task.asked.session,
        HAND,
        task.p.prompt,
        picking.facts,
        task.size,
        len(picking.search.seeds),
        waiting=waiting,
        paused=paused,
        message=message,
    )
    shown = []
    for pair, note in ((picking.favourite, "favourite"), (picking.challenger, "challenger")):
        if pair is not None:
            asked, drawn = pair
            result.rows.append(Row(asked.number, asked.kind, asked.state, None, note))
            shown.append(_copy(drawn, f"{described(asked)} {note}"))
    RESULTS.put(result)
    report.remember(f"picking by hand: {message}")
    task.p.comment(f"CR-Diff: {message}")
    return gathered(task.p, shown)


def _copy(drawn: Drawn, told: str) -> Drawn:
    """The same images with infotexts of their own: what they are called changes."""
    images = [image.copy() for image in drawn.images]
    again = replace(drawn, images=images, infotexts=list(drawn.infotexts))
    again.mark(**{infotext.ROUND: told})
    return again


def _made_for(task: Task, seeds: tuple[Any, Any]) -> dict[str, str]:
    """What the images depend on, as texts by how people call it; a random seed is any seed."""
    p = task.p
    texts = {told: repr(getattr(p, name, None)) for name, told in _FIELDS.items()}
    texts["the seed"], texts["the variation seed"] = map(_seed, seeds)
    texts["the panel of CR-Diff"] = repr(task.settings)
    asked = task.asked
    texts["the budget, or what is searched,"] = repr((asked.budget, asked.seeds, asked.search_k))
    images = getattr(p, "init_images", None) or ()
    texts["the image to start from"] = repr([_hash(image) for image in images])
    mask = getattr(p, "image_mask", None)
    texts["the mask"] = "" if mask is None else _hash(mask)
    return texts


def _objection(picking: Picking, task: Task) -> str:
    """Why nothing is to be drawn or chosen now, and what to do; empty if all is well."""
    changed = _changed(picking, task)
    if changed:
        return f"{changed} changed since: put it back, or begin anew"
    asked, challenger = task.asked, picking.challenger
    if asked.choice and asked.round != ANY and challenger is not None:
        waits = challenger[0].number
        if asked.round != waits:
            return (
                f"the choice was about round {asked.round}, but round {waits} waits for one: look "
                "at the two and choose again"
            )
    return ""


def _changed(picking: Picking, task: Task) -> str:
    """What is not as it was when the search began; empty if all is."""
    now = _made_for(task, (task.p.seed, task.p.subseed))
    # The fixed seed instead of the random one is the same (an infotext was pasted).
    for name, seed in zip(("the seed", "the variation seed"), picking.seeds, strict=True):
        if picking.made_for[name] == "any" and now[name] == str(int(seed)):
            now[name] = "any"
    changed = [name for name, text in picking.made_for.items() if now[name] != text]
    if "sd_model_checkpoint" not in (task.p.override_settings or {}) and picking.facts is not None:
        task.adapter.settle()
        loaded = task.adapter.loaded_model()
        # Not all of it: a host may learn a file's hash, or its kind of prediction, by drawing.
        if loaded is not None and loaded.checkpoint != picking.facts.checkpoint:
            changed.append("the model")
    return ", ".join(changed)


def _seed(seed: Any) -> str:
    """As get_fixed_seed (modules/processing.py) reads it."""
    return "any" if str(seed) in ("", "None", "-1") else str(int(seed))


def _hash(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
