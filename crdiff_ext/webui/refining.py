"""Refinement for one prompt, driven through the host's processing: ask, draw, judge, tell.

Runs inside the host's own queue, as a script that the user (or the button of the panel, or the API)
selects. Candidates are judged by a reward (here) or by a person (``handpick.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import HTTPException
from modules import processing, shared

from ..errors import CRDiffError
from ..refine import Judged
from . import arguments, handpick, infotext, report, reward, session
from .hosts import Adapter
from .library import Library
from .refine_arguments import request
from .refine_results import RESULTS, Result, rows_of
from .refine_task import Task, draw, prepare
from .rounds import Drawn, Rounds, Stopped, described, gathered, interrupted, plain

logger = logging.getLogger("crdiff")

TITLE = "CR-Diff"


def run(p: Any, args: Sequence[Any], adapter: Adapter, library: Library) -> Any:
    """The script's ``run``: the host's Processed with all candidates. Raises HTTPException (API).

    In the page nothing is raised for bad input: a notice says what is wrong, and nothing is drawn.
    """
    name = ""
    try:
        asked = request(args)
        name = asked.session
        asked = asked if name else replace(asked, session=uuid4().hex)
        panel = panel_arguments(p)
        values = {**arguments.named(panel), **getattr(p, session.OVERRIDES, {})}
        task = Task(p, asked, values, session.asked_for(p, panel), adapter, library)
        judge = None if asked.hand else reward.judge()
        if judge is None:
            return handpick.step(task)
        if asked.choice:
            raise CRDiffError(
                f"choice is {asked.choice!r}, but {judge.name} judges: set judge to hand"
            )
        return _search(task, judge)
    except CRDiffError as error:
        return refuse(p, str(error), name)
    finally:
        shared.state.textinfo = None  # the host resets it only when the next job begins


def refuse(p: Any, sentence: str, name: str, status: int = 422) -> Any:
    """Nothing can be drawn: an HTTP error through the API, a notice in the page."""
    logger.error("%s", sentence)
    report.remember(sentence)
    if name:
        known = RESULTS.get(name) or Result(name)
        known.message = sentence
        RESULTS.put(known)
    if getattr(p, "is_api", False):
        raise HTTPException(status_code=status, detail=f"CR-Diff: {sentence}")
    p.comment(f"CR-Diff: {sentence}")
    return gathered(p, [])


def panel_arguments(p: Any) -> Sequence[Any]:
    """What the panel, or the API, says to the script that acts on each generation."""
    for script in p.scripts.alwayson_scripts:
        if script.title() == TITLE:
            given: Sequence[Any] = p.script_args[script.args_from : script.args_to]
            return given
    raise CRDiffError("CR-Diff is not among this tab's scripts: reload the page's interface")


def _search(task: Task, judge: Any) -> Any:
    p = task.p
    processing.fix_seed(p)
    rounds = Rounds(p, task.asked.seeds, task.asked.budget // task.asked.seeds)
    result = _result(task, judge.name)
    kept: dict[int, Drawn] = {}
    search, message, died = None, "", False
    try:
        search, first = prepare(task, rounds)
        while not search.done:
            asked = search.ask()
            drawn, first = first or draw(task, rounds, asked), None
            scores = None if drawn is None else _judge(judge, drawn)
            search.tell(scores)
            if drawn is not None:
                kept[asked.number] = drawn
    except Stopped:
        message = "interrupted"
    except Judgeless as error:
        message, died = str(error), True
    told = [] if search is None else search.judged
    result.facts = task.facts
    result.rows = [] if search is None else rows_of(search)
    result.message = _sentence(result, message)
    RESULTS.put(result)
    report.remember(result.message)
    if died and getattr(p, "is_api", False):
        raise HTTPException(status_code=503, detail=f"CR-Diff: {result.message}")
    p.comment(f"CR-Diff: {result.message}")
    return gathered(p, _marked(told, kept, result))


class Judgeless(CRDiffError):
    """The reward can't judge any more."""


def _judge(judge: Any, drawn: Drawn) -> list[float]:
    """A score for each image. Raises Judgeless, Stopped."""
    shared.state.textinfo = f"judging by {judge.name}"
    prompts = [plain(prompt) for prompt in drawn.prompts]
    groups = [prompts[:1]] if len(set(prompts)) == 1 else [[prompt] for prompt in prompts]
    try:
        if len(groups) == 1:
            return list(judge.scores(prompts[0], drawn.images, interrupted))
        each = zip(prompts, drawn.images, strict=True)
        return [judge.scores(prompt, [image], interrupted)[0] for prompt, image in each]
    except CRDiffError as error:
        if interrupted():
            raise Stopped("interrupted") from error
        raise Judgeless(str(error)) from error


def _result(task: Task, judge: str) -> Result:
    return Result(task.asked.session, judge, task.p.prompt, None, task.size, task.asked.seeds)


def _sentence(result: Result, message: str) -> str:
    """How the search ended, for people."""
    scored = [row for row in result.ranked if row.score is not None]
    if not scored:
        return message or "no round could be judged"
    best = scored[0]
    told = f"best of {len(scored)} rounds by {result.judge}: {best.state}, score {best.score:.4f}"
    if best.kind == "dense":
        told = f"nothing of {len(scored)} rounds beat the dense model by {result.judge}"
    elif result.dense is not None:
        told += f" (dense: {result.dense:.4f})"
    return f"{message}; {told}" if message else told


def _marked(judged: Sequence[Judged], kept: Mapping[int, Drawn], result: Result) -> list[Drawn]:
    """The drawn rounds, best first, their scores in their infotexts."""
    by_number = {one.round.number: one for one in judged}
    ranked = []
    for row in result.ranked:
        drawn = kept.get(row.number)
        if drawn is not None and row.score is not None:
            keys = {infotext.SCORE: f"{row.score:.4f}"}
            drawn.mark(**keys, **{infotext.ROUND: described(by_number[row.number].round)})
            ranked.append(drawn)
    return ranked
