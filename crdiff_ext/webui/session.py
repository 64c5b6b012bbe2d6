"""From the host's script hooks to a job and back: start, finish, end of one generation."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from fastapi import HTTPException
from modules import paths, processing, shared

from ..errors import CRDiffError
from ..settings import Settings
from . import arguments, infotext, options, report
from .job import Job
from .library import Library

logger = logging.getLogger("crdiff")

_JOBS: weakref.WeakSet[Job] = weakref.WeakSet()
"""The jobs that are still referred to; freeing one in the middle only costs a dense pass."""

OVERRIDES = "crdiff_overrides"
"""On ``p``: argument values by name that win over the panel's, set by XYZ axes."""


def start(p: Any, args: Sequence[Any], library: Library) -> None:
    """Give ``p`` a job of its own, or none. Hosts swallow exceptions here, so none is raised.

    Values that are not allowed: through the API, ``p`` will answer with HTTP 422; in the page,
    the image says so and is drawn densely.
    """
    p.crdiff_job = None
    for job in _JOBS:  # one that an error ended: hosts tell no script, and keep its p for a while
        job.free()
    # A dictionary of its own: the cells of a grid share one, and so do some extensions' inner
    # generations with the outer one, whose keys must stay.
    p.extra_generation_params = infotext.without(p.extra_generation_params)
    if is_inner(p) and not options.inner_passes():
        return
    try:
        settings = asked_for(p, args)
    except CRDiffError as error:
        refuse(p, str(error))
        return
    if settings.mode != "off":
        report.asked(settings)
        job = Job(settings, library.presets(), say=_comments(p), log=report.remember)
        job.hires = same_model_hires(p)
        if getattr(p, "is_api", False):
            job.fail = answer
        # At once, for images that the host saves before the hires pass (modules/processing.py).
        job.began = _writes(p, job)
        p.crdiff_job = job
        _JOBS.add(job)


def is_inner(p: Any) -> bool:
    """Whether this is ADetailer's second look at a face, or that of SD.Next's own detailer."""
    return bool(getattr(p, "_ad_inner", False) or getattr(p, "recursion", False))


def note_api(p: Any) -> None:
    """Note on ``p`` that it came through the API, in hosts that say so elsewhere, and only now.

    SD.Next never sets its ``p.is_api``; it keeps ``shared.state.api`` until the first inner job.
    """
    if getattr(getattr(shared, "state", None), "api", False) and not getattr(p, "is_api", False):
        p.is_api = True


def explain(p: Any, refused: str) -> None:
    """Say under an image for which CR-Diff was asked that this WebUI can't do it (``refused``)."""
    job: Job | None = getattr(p, "crdiff_job", None)
    if job is not None and refused and (job.settings.mode == "always" or job.settings.ratios):
        job.notice(refused)


def same_model_hires(p: Any) -> bool:
    """Whether a hires pass will be drawn with the first pass' model."""
    other = getattr(p, "hr_checkpoint_name", None) not in (None, "", "Use same checkpoint")
    return bool(getattr(p, "enable_hr", False)) and not other


def _writes(p: Any, job: Job) -> Callable[[], None]:
    """Writes what ran so far; refers to both weakly, because each has the other."""
    alive, of = weakref.ref(p), weakref.ref(job)

    def write() -> None:
        found, ran = alive(), of()
        if found is not None and ran is not None:
            infotext.write(found.extra_generation_params, ran)

    return write


def _comments(p: Any) -> Callable[[str], None]:
    """Puts a sentence among the comments of ``p``, which has the job and is referred to weakly."""
    alive = weakref.ref(p)

    def say(sentence: str) -> None:
        found = alive()
        if found is not None and options.notice_level() != "quiet":
            found.comment(sentence)

    return say


def asked_for(p: Any, args: Sequence[Any]) -> Settings:
    """The settings of a generation. Raises CRDiffError that names the argument."""
    values = {**arguments.named(args), **getattr(p, OVERRIDES, {})}
    settings = arguments.settings_from(values, options.limits())
    return replace(settings, memory=options.memory()) if settings.memory == "auto" else settings


def refuse(p: Any, sentence: str) -> None:
    """Bad input: a 4xx through the API, a notice and a dense image in the page."""
    logger.error("%s", sentence)
    report.remember(sentence)
    if not getattr(p, "is_api", False):
        p.comment(f"CR-Diff: {sentence}; this image was made without CR-Diff")
        return

    def init(*_: Any, **__: Any) -> NoReturn:
        answer(sentence)

    # modules/scripts.py swallows what `process` raises; modules/processing.py calls p.init next
    p.init = init


def answer(sentence: str) -> NoReturn:
    """Raise what the host's API turns into HTTP 422 with ``sentence`` as its detail."""
    raise HTTPException(status_code=422, detail=f"CR-Diff: {sentence}")


def sampled(p: Any) -> None:
    """Sampling is over, or its first pass: what follows (VAE, upscaler) needs the memory."""
    job: Job | None = getattr(p, "crdiff_job", None)
    if job is not None:
        job.free()


def finish(p: Any) -> None:
    """After the sampling of a batch: write what really ran."""
    job: Job | None = getattr(p, "crdiff_job", None)
    if job is None:
        return
    infotext.write(p.extra_generation_params, job)
    if options.notice_level() == "verbose":
        for record in job.records:
            if not record.decision.act:
                job.notice(record.decision.sentence)
    if job.acted() and getattr(p, "iteration", 0) == 0:
        _rewrite_params_txt(p)


def end(p: Any, processed: Any = None) -> None:
    """After the generation: let go of what is left of it."""
    job: Job | None = getattr(p, "crdiff_job", None)
    _show(p, processed)
    if job is not None:
        report.ran(job)
        job.free()


def _show(p: Any, processed: Any) -> None:
    """Pass our comments on in hosts that lose those of ``p`` (SD.Next's modules/processing.py)."""
    shown = getattr(processed, "comments", None)
    if not isinstance(shown, str):
        return
    ours = [comment for comment in getattr(p, "comments", ()) if comment.startswith("CR-Diff: ")]
    lost = [comment for comment in ours if comment not in shown]
    processed.comments = "\n".join([*filter(None, [shown.rstrip("\n")]), *lost]) if lost else shown


def _rewrite_params_txt(p: Any) -> None:
    """The host wrote its "last generation" file before sampling, when nothing had run yet."""
    make: Callable[..., Any] = processing.Processed
    try:
        text = make(p, []).infotext(p, 0)
        (Path(paths.data_path) / "params.txt").write_text(text, encoding="utf8")
    except OSError as error:
        logger.warning("params.txt could not be written: %s", error)
