"""SD.Next, and by capability any host that samples by diffusers pipelines in its way.

Functions of modules/processing_diffusers.py are wrapped once, by name: a generation's batch is one
``process_diffusers``; each pipeline call in it (first pass, hires pass, refiner) comes right after
``set_pipeline_args``, when LoRAs and all modifiers are in, and is over when ``process_post`` or
``process_decode`` begins. In between, the network's forward is ours (``diffusers_denoiser.py``).
The end of ``process_diffusers`` undoes it, whatever happens in it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from modules import processing_diffusers
from modules.modeldata import model_data

from ..amplify import reuse_interval
from ..families import FAMILIES
from ..patch import fresh
from .diffusers_denoiser import Replaced, Schedule, named, place_of, size_of
from .diffusers_models import NetworkWeights, facts_of, network_of, pipeline_of
from .job import Job, ModelFacts, Record

logger = logging.getLogger("crdiff")

_MARK = "_crdiff_wraps"  # on our functions, to know them again after a reload of the scripts
_NOW: ContextVar[Batch | None] = ContextVar("crdiff_batch", default=None)
"""The batch that is being drawn; a ``p`` would not do, because the host may go on with an earlier
one (``restore_state``)."""


class DiffusersAdapter:
    """See ``hosts.Adapter``. It has no state: a batch's is in ``_NOW`` while it is drawn."""

    name = "diffusers"
    transformers = frozenset(name for name, family in FAMILIES.items() if family.is_dit)
    refused = ""

    def install(self) -> None:
        """Wrap the host's functions; harmless to repeat."""
        for name, wrap in (
            ("process_diffusers", _batch),
            ("set_pipeline_args", _call),
            ("process_post", _after),
            ("process_decode", _after),  # a refiner has no process_post
        ):
            original = getattr(processing_diffusers, name)
            if not hasattr(original, _MARK):
                wrapped = functools.wraps(original)(wrap(original))
                setattr(wrapped, _MARK, True)
                setattr(processing_diffusers, name, wrapped)

    def before_sampling(self, p: Any) -> None:
        """Nothing: this host has no such hook."""

    def settle(self) -> None:
        """Nothing: a refiner is a pipeline of its own, and the chosen model stays."""

    def loaded_model(self) -> ModelFacts | None:
        """The model in memory; never loads one, as ``shared.sd_model`` would."""
        model = model_data.sd_model
        return None if model is None else facts_of(model)


def _batch(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_diffusers(p: Any, *args: Any, **kwargs: Any) -> Any:
        job = getattr(p, "crdiff_job", None)
        with _drawing(None if job is None else Batch(job)):
            return original(p, *args, **kwargs)

    return process_diffusers


def _call(original: Callable[..., Any]) -> Callable[..., Any]:
    def set_pipeline_args(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        batch = _NOW.get()
        if batch is not None and {"p", "model"} <= kwargs.keys():
            batch.begin(kwargs["p"], kwargs["model"], made)
        return made

    return set_pipeline_args


def _after(original: Callable[..., Any]) -> Callable[..., Any]:
    def process(*args: Any, **kwargs: Any) -> Any:
        batch = _NOW.get()
        if batch is not None:
            batch.undo()
        return original(*args, **kwargs)

    return process


@contextmanager
def _drawing(batch: Batch | None) -> Iterator[None]:
    """Inside, ``batch`` is the one that is drawn; None: a batch that CR-Diff leaves alone."""
    token = _NOW.set(batch)
    try:
        yield
    finally:
        _NOW.reset(token)
        if batch is not None:
            batch.undo()


class Batch:
    """One batch's pipeline calls, one after the other."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._call: Call | None = None
        self._replaced: Replaced | None = None

    def begin(self, p: Any, model: Any, arguments: Any) -> None:
        """A pipeline is about to be called: put CR-Diff on its network."""
        self.undo()
        part = "hires" if getattr(p, "is_hr_pass", False) else "first"
        call = Call(self.job, model, part, bool(getattr(p, "is_refiner_pass", False)))
        refused = facts_of(model).refused
        if refused is not None:
            call.record(_size_asked(p, arguments))  # decides, and says why not
            return
        self._call = call
        self._replaced = Replaced(network_of(model), call.wrap)

    def undo(self) -> None:
        """The network is as it was, and nothing is kept of it: upscaler and VAE need the memory."""
        self.job.free()
        if self._call is not None:
            self._call.over = True
        if self._replaced is not None:
            self._replaced.undo()
        self._call = self._replaced = None


class Call:
    """One call of a pipeline: what becomes of each forward of its network.

    Attributes:
        over: it has ended; somebody may have kept the forward that was ours.
    """

    def __init__(self, job: Job, model: Any, part: str, refiner: bool) -> None:
        self.over = False
        self._job, self._model = job, model
        self._part, self._refiner = part, refiner
        pipe = pipeline_of(model)
        self._factor = int(getattr(pipe, "vae_scale_factor", 8))
        self._schedule = Schedule(getattr(pipe, "scheduler", None), whole=refiner)
        settings = job.settings
        self._windowed = (settings.start, settings.end) != (0.0, 1.0)
        self._reusing = reuse_interval(settings.amplification) > 1
        self._busy = False

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that makes the passes that were decided on, of ``original``."""
        by_name = named(original)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.over or self._busy:  # busy: ours is inside of itself, hooked twice
                return original(*args, **kwargs)
            arguments = by_name(args, kwargs)
            size = size_of(arguments, self._factor)
            if size is None:
                self._job.notice("the size of the image is not known in this pipeline")
                return original(*args, **kwargs)
            actor = self.record(size).actor
            if actor is None:
                return original(*args, **kwargs)
            place = place_of(self._schedule, arguments, self._windowed, self._reusing)
            self._busy = True
            try:
                return actor(lambda: original(*fresh(args), **fresh(kwargs)), place)
            finally:
                self._busy = False

        return forward

    def record(self, size: tuple[int, int]) -> Record:
        """What to do at this place in the generation."""
        pipe, network = pipeline_of(self._model), network_of(self._model)
        known = network if isinstance(network, torch.nn.Module) else pipe
        return self._job.record(
            self._part,
            known,
            lambda: facts_of(self._model),
            size,
            refiner=self._refiner,
            source=lambda: NetworkWeights(pipe, network, self._job.settings.memory),
        )


def _size_asked(p: Any, arguments: Any) -> tuple[int, int]:
    """(height, width) of an image that is not looked at any closer."""
    given = arguments if isinstance(arguments, dict) else {}
    height, width = (given.get(name) or getattr(p, name, 0) or 0 for name in ("height", "width"))
    return max(8, int(height)), max(8, int(width))
