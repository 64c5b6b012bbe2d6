"""AUTOMATIC1111, 1.6 and newer: the loaded model's ``apply_model``, inside each denoiser call.

``CFGDenoiser.forward`` (modules/sd_samplers_cfg_denoiser.py; both kinds of samplers use it) is
wrapped once. While one runs, the host calls ``on_cfg_denoiser`` after a refiner switch and before
the UNet; there the instance attribute ``apply_model`` of the model in use is set. Every family's
UNet is called through it, outside of what ControlNet patches. The end of that forward undoes it.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from modules import script_callbacks, sd_models, sd_unet, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser

from ..amplify import Place, reuse_interval
from ..blocks import unet_layers
from ..errors import CRDiffError
from ..families import UNKNOWN, identify_module
from ..patch import fresh
from .a1111_weights import UNetWeights
from .actor import Actor
from .job import Job, ModelFacts, Record, latent_size

logger = logging.getLogger("crdiff")

_MARK = "_crdiff_wraps"  # on our forward, to know it again after a reload of the scripts
_RUN = "_crdiff_run"  # on a denoiser, while its forward runs
_BEGUN = "_crdiff_begun_with"  # on a denoiser: the checkpoint before its first call
_PREDICTIONS = {"v": "v_prediction", "eps": "epsilon"}


class A1111Adapter:
    """See ``hosts.Adapter``. It has no state: a generation's is on its ``p`` and its denoiser."""

    name = "A1111"
    transformers: frozenset[str] = frozenset()
    refused = ""

    def install(self) -> None:
        """Wrap the denoiser and register the callback; harmless to repeat."""
        _wrap_forward()
        # A reload of the scripts clears callbacks (modules/scripts.py, load_scripts), a second
        # registration without one would leave two.
        script_callbacks.remove_callbacks_for_function(on_cfg_denoiser)
        script_callbacks.on_cfg_denoiser(on_cfg_denoiser)

    def before_sampling(self, p: Any) -> None:
        """Nothing: 1.10's hook comes too early for refiner and LoRA, and older hosts lack it."""

    def settle(self) -> None:
        """A refiner's or a hires pass' checkpoint stays in memory until the next generation."""
        if sd_models.model_data.sd_model is not None:
            sd_models.reload_model_weights()  # nothing, if it is the chosen one

    def loaded_model(self) -> ModelFacts | None:
        """The model in memory; never loads one, as ``shared.sd_model`` would."""
        model = sd_models.model_data.sd_model
        return None if model is None else facts_of(model)


class Run:
    """One run of a denoiser's forward: the attribute that it sets on the model, and its undoing."""

    def __init__(self) -> None:
        self._model: Any = None
        self._ours: Callable[..., Any] | None = None
        self._before: Callable[..., Any] | None = None
        self._open = True
        self._calls = 0

    def arm(self, model: Any, actor: Actor, place: Place) -> None:
        """Let ``actor`` make each ``apply_model`` of ``model`` from here to the end of the run.

        ``place``: fraction and level, the same for all of the run's calls, which are told apart by
        their number and the latents' shape.
        """
        if self._model is not None:
            return  # the callback is registered twice
        original = model.apply_model

        def apply_model(*args: Any, **kwargs: Any) -> Any:
            if not self._open:  # somebody kept it
                return original(*args, **kwargs)
            key = self._calls, _shape(args, kwargs)
            self._calls += 1
            return actor(lambda: original(*fresh(args), **fresh(kwargs)), replace(place, key=key))

        self._before = model.__dict__.get("apply_model")
        self._model, self._ours = model, apply_model
        model.__dict__["apply_model"] = apply_model

    def undo(self) -> None:
        """Leave the model as it was; harmless to repeat."""
        self._open = False
        if self._model is None or self._model.__dict__.get("apply_model") is not self._ours:
            return  # not armed, or another extension has set its own since: ours is inert by now
        if self._before is None:
            del self._model.__dict__["apply_model"]
        else:
            self._model.__dict__["apply_model"] = self._before


def _wrap_forward() -> None:
    forward = CFGDenoiser.forward
    if getattr(forward, _MARK, False):
        return

    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A run that is there already: another extension wrapped ours, and a reload ours again.
        if _RUN in self.__dict__ or getattr(self.p, "crdiff_job", None) is None:
            return forward(self, *args, **kwargs)
        if self.step == 0:
            self.__dict__[_BEGUN] = shared.sd_model.sd_checkpoint_info
        run = self.__dict__[_RUN] = Run()
        try:
            return forward(self, *args, **kwargs)
        except BaseException:  # the host's InterruptedException is one
            self.p.crdiff_job.free()  # no script is told, and the host keeps p for a while
            raise
        finally:
            run.undo()
            del self.__dict__[_RUN]

    setattr(wrapped, _MARK, True)
    CFGDenoiser.forward = wrapped


def on_cfg_denoiser(params: Any) -> None:
    """Arm the model that the host is about to call, if this generation has a job that acts."""
    denoiser = params.denoiser
    job: Job | None = getattr(getattr(denoiser, "p", None), "crdiff_job", None)
    if job is None:
        return
    run: Run | None = denoiser.__dict__.get(_RUN)
    if run is None:
        job.notice("another extension took the place of the denoiser: CR-Diff can't act")
        return
    model = shared.sd_model  # asked for each time: refiner and hires checkpoint change it
    record = _record(job, denoiser, model, latent_size(params.x))
    for other in job.records:
        if other is not record and other.actor is not None:
            other.actor.free()  # a model that is done with; its copies would outlast it
    if record.actor is not None:
        run.arm(model, record.actor, Place(fraction_of(denoiser), _level(job, params)))


def _record(job: Job, denoiser: Any, model: Any, size: tuple[int, int]) -> Record:
    """What to do at this place in the generation."""
    p = denoiser.p
    begun = denoiser.__dict__.get(_BEGUN)
    switched = begun is not None and model.sd_checkpoint_info is not begun
    return job.record(
        "hires" if getattr(p, "is_hr_pass", False) else "first",
        model,
        lambda: facts_of(model),
        size,
        refiner=switched and getattr(p, "refiner_checkpoint_info", None) is not None,
        source=lambda: UNetWeights(model, job.settings.memory),
    )


def _level(job: Job, params: Any) -> float | None:
    """Sigma, or the timestep of samplers that go by it; None where nobody needs to know.

    Reading it waits for a GPU.
    """
    if reuse_interval(job.settings.amplification) == 1:
        return None
    return float(params.sigma.max())


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Of the latents: the first tensor among the arguments of ``apply_model``."""
    tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
    return next((tuple(x.shape) for x in tensors), ())


def fraction_of(denoiser: Any) -> float | None:
    """Steps done / steps in all, below 1; None when the host doesn't know.

    Both count calls, so second-order samplers, which call twice a step, come out right
    (modules/sd_samplers_common.py, ``total_steps``). Adaptive samplers and Restart make more calls
    than foreseen: what is over counts as the end.
    """
    if not denoiser.total_steps:
        return None
    return float(min(denoiser.step / denoiser.total_steps, math.nextafter(1.0, 0.0)))


def facts_of(model: Any) -> ModelFacts:
    """What the host's ``sd_model`` is."""
    info = model.sd_checkpoint_info
    checkpoint = info.name_for_extra
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    try:
        refused = _why_not(unet)
        prediction = _PREDICTIONS.get(getattr(model, "parameterization", ""))
        family = UNKNOWN if unet is None else identify_module(unet, prediction)
        family = UNKNOWN if family.is_dit else family  # SD3, from 1.10: refused, see _why_not
    except CRDiffError as error:  # names that contradict each other
        return ModelFacts(UNKNOWN, checkpoint, f"this model is not supported: {error}")
    # None with --no-hashing, and until the host has read the file (modules/sd_models.py).
    return ModelFacts(family, checkpoint, refused, hash=info.shorthash or "")


def _why_not(unet: Any) -> str | None:
    """Why this UNet can't be pruned; None when it can."""
    active = sd_unet.current_unet  # a TensorRT engine, say: modules/sd_unet.py calls it instead
    if active is not None:
        label = getattr(getattr(active, "option", None), "label", type(active).__name__)
        return f"this model is not supported: the UNet {label} in use has weights of its own"
    if unet is None or not unet_layers(unet):
        return "this model is not supported: it has no layers of a kind that CR-Diff prunes"
    return None
