"""CR-Diff in the Forge family: Forge, Forge Neo, reForge, and by capability Forge Classic.

Each UNet call goes through one wrapper on a clone of the model's UNet patcher
(``set_model_unet_function_wrapper``; called by backend/sampling/sampling_function.py). It gets
``apply_model``'s x0, which mixes as the raw output does, because the coefficients k and 1 - k sum
to 1 and x0 is linear in the output: x0 = c x - s F, for SD3 and FLUX too, where c is 1 and s sigma
(``calculate_denoised`` of backend/modules/k_prediction.py). The slot
holds one wrapper, so an earlier one (MultiDiffusion's) is kept and called inside each pass.

The host forgets the clone before each sampling pass (modules/processing.py), loads a refiner
without telling scripts (modules/sd_samplers_common.py), and lets other scripts take the slot
afterwards; so the wrapper is put in place before sampling and looked after at each denoiser call.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ..amplify import Place, reuse_interval
from ..families import FAMILIES
from .actor import Actor
from .forge_models import Models
from .forge_online import find_online, first_module
from .forge_weights import ForgeWeights, copy_bytes
from .hosts import there
from .job import Job, ModelFacts, decide_for, latent_size

logger = logging.getLogger("crdiff")

_MINE = "crdiff_sampling"  # on p, and on our wrappers (plain functions), to know them again
_EARLIER = "crdiff_earlier"  # the wrapper that ours calls
Wrapper = Callable[[Callable[..., Any], dict[str, Any]], Any]


@dataclass
class _Sampling:
    """What the wrapper needs to know of the generation that it belongs to.

    Attributes:
        p: weak, because the host keeps the last wrapper until the next generation.
        begun: the checkpoint that this sampling began with.
        size: (height, width) of the pass in pixels; None before the first denoiser call.
        fraction: of the schedule; None before the first denoiser call.
        level: sigma of the denoiser call, where it is needed: reading it waits for a GPU.
        calls: of the UNet in this denoiser call so far.
        busy: inside one of our calls.
    """

    p: weakref.ref[Any]
    begun: Any
    size: tuple[int, int] | None = None
    fraction: float | None = None
    level: float | None = None
    calls: int = 0
    busy: bool = False

    def switched(self, in_place: bool) -> bool:
        """Whether the refiner has taken over, as another model or ``in_place`` of the first's."""
        p: Any = self.p()
        wanted = getattr(p, "refiner_checkpoint_info", None)
        if wanted is None:
            return False
        return in_place or p.sd_model.sd_checkpoint_info is not self.begun

    def place(self, args: dict[str, Any]) -> Place:
        """Where a call of the UNet is. PAG and SAG make more of them, each with its own number."""
        kinds = tuple(args.get("cond_or_uncond", ()))
        # PAG's own call may stand where a split batch's second half stood a step ago.
        replaced = sorted(args["c"].get("transformer_options", {}).get("patches_replace", {}))
        key = self.calls, tuple(args["input"].shape), kinds, tuple(replaced)
        self.calls += 1
        return Place(self.fraction, self.level, key)


class ForgeAdapter:
    """The adapter for hosts whose models carry a patchable UNet."""

    name = "Forge"
    refused = ""

    def __init__(self) -> None:
        self._callbacks = importlib.import_module("modules.script_callbacks")
        self._memory = first_module(
            "backend.memory_management", "ldm_patched.modules.model_management"
        )
        self._samplers = first_module("modules.sd_samplers_common")
        self._online = find_online()
        self.transformers = _transformers()
        self._models = Models(importlib.import_module("modules.sd_models"), self._online)
        self._installed = False

    def install(self) -> None:
        """Register with the host; harmless to repeat."""
        if self._online is not None:
            self._online.register()
        if not self._installed:
            self._callbacks.on_cfg_denoiser(self._before_denoising)
            self._installed = True

    def before_sampling(self, p: Any) -> None:
        """Put the wrapper in place; the hires pass asks for it twice."""
        job = getattr(p, "crdiff_job", None)
        if job is not None:
            self._put(p, job, _begin(p))

    def settle(self) -> None:
        """Have the chosen checkpoint loaded, in hosts that don't wait for the generation."""
        self._models.settle()

    def loaded_model(self) -> ModelFacts | None:
        """The model that the next generation uses: in memory, or chosen and told by its file."""
        return self._models.chosen()

    def _before_denoising(self, params: Any) -> None:
        """After a refiner switch, before the UNet is read (modules/sd_samplers_cfg_denoiser.py)."""
        denoiser = params.denoiser
        p = denoiser.p
        job = getattr(p, "crdiff_job", None)
        if job is None:
            return
        known: _Sampling | None = getattr(p, _MINE, None)
        # XYZ plots copy p, and with it our account of another sampling.
        sampling = known if known is not None and known.p() is p else _begin(p)
        if _sampling_of(_slot(p.sd_model.forge_objects.unet)) is not sampling:
            self._put(p, job, sampling)
        sampling.size = latent_size(params.x)
        sampling.calls = 0
        if reuse_interval(job.settings.amplification) > 1:
            sampling.level = float(params.sigma.max())
        if denoiser.total_steps:
            # Adaptive samplers go past the number of steps that was announced.
            sampling.fraction = min(denoiser.step / denoiser.total_steps, 1 - 1e-6)

    def _put(self, p: Any, job: Job, sampling: _Sampling) -> None:
        """Our wrapper around whatever holds the slot now, in place of an earlier one of ours."""
        unet = p.sd_model.forge_objects.unet
        earlier = _slot(unet)
        again = _sampling_of(earlier) is not None
        while _sampling_of(earlier) is not None:
            earlier = getattr(earlier, _EARLIER)
        clone = unet.clone()
        clone.set_model_unet_function_wrapper(self._wrapper(sampling, earlier))
        if not again:
            self._reserve(p, job, clone)
        p.sd_model.forge_objects.unet = clone

    def _reserve(self, p: Any, job: Job, unet: Any) -> None:
        """Tell the host how much memory the masked copies will take, if copies were asked for."""
        if job.settings.memory != "copy":
            return
        size = (p.height, p.width)
        if _part(p) == "hires":
            size = (p.hr_upscale_to_y, p.hr_upscale_to_x)
        facts = self._models.facts_of(p.sd_model)
        decision = decide_for(job.settings, job.presets, facts, size, _part(p))
        reserve = getattr(unet, "add_extra_preserved_memory_during_sampling", None)
        if decision.ratios is not None and reserve is not None:
            reserve(copy_bytes(unet.model.diffusion_model, decision.ratios))

    def _wrapper(self, sampling: _Sampling, earlier: Wrapper | None) -> Wrapper:
        """A plain function: ``clone()`` deep-copies ``model_options``, and with it any object."""

        def run(apply_model: Callable[..., Any], args: dict[str, Any]) -> Any:
            c = _own(args["c"])
            if earlier is None:
                return apply_model(args["input"], args["timestep"], **c)
            output = earlier(apply_model, {**args, "c": c})
            # MultiDiffusion answers with a buffer of its own, which the next call overwrites.
            return output.clone() if isinstance(output, torch.Tensor) else output

        def wrapper(apply_model: Callable[..., Any], args: dict[str, Any]) -> Any:
            p = sampling.p()
            job = getattr(p, "crdiff_job", None)
            # Busy: some other script wrapped this wrapper, and was wrapped again.
            if job is None or sampling.busy:
                return run(apply_model, args)
            size = sampling.size or latent_size(args["input"])
            in_place = self._refined_in_place()
            actor = self._actor(p, job, size, sampling.switched(in_place), in_place)
            if actor is None:
                return run(apply_model, args)
            sampling.busy = True
            try:
                return actor(lambda: run(apply_model, args), sampling.place(args))
            finally:
                sampling.busy = False

        def move(target: Any) -> Wrapper:
            """For ``model_patches_to`` (backend/patcher/base.py): move what we hide from it."""
            nonlocal earlier
            earlier = earlier.to(target)  # type: ignore[union-attr]
            setattr(wrapper, _EARLIER, earlier)
            return wrapper

        setattr(wrapper, _MINE, sampling)
        setattr(wrapper, _EARLIER, earlier)
        if hasattr(earlier, "to"):
            wrapper.to = move  # type: ignore[attr-defined]
        if hasattr(earlier, "models"):  # what ``model_patches_models`` has to load with the UNet
            wrapper.models = lambda: earlier.models()  # type: ignore[attr-defined,union-attr]
        return wrapper

    def _refined_in_place(self) -> bool:
        """Whether the refiner's weights were copied into the model that was there.

        Forge Neo's 'Reload "state_dict" Only' (``apply_refiner`` of modules/sd_samplers_common.py):
        the same objects throughout, and tensors that keep no account of being written to.
        """
        return getattr(self._samplers, "ORIGINAL_CHECKPOINT", None) is not None

    def _actor(
        self, p: Any, job: Job, size: tuple[int, int], refiner: bool, in_place: bool
    ) -> Actor | None:
        """Who acts at this denoiser call; None: nobody."""
        sd_model = p.sd_model
        unet = sd_model.forge_objects.unet
        memory = self._memory_mode(job.settings.memory)
        info = p.refiner_checkpoint_info if in_place and refiner else None
        record = job.record(
            _part(p),
            unet.model,
            lambda: self._models.facts_of(sd_model, info),
            size,
            refiner,
            lambda: ForgeWeights(
                unet.model, unet.load_device, self._online, memory, _loras_of(sd_model)
            ),
        )
        for other in job.records:
            if other is not record and other.actor is not None:
                other.actor.free()  # a pass or a model that is done with
        return record.actor

    def _memory_mode(self, asked: str) -> str:
        """No copies for "auto" where the host itself is short of memory."""
        state = getattr(getattr(self._memory, "vram_state", None), "name", "")
        return "recompute" if asked == "auto" and state in ("LOW_VRAM", "NO_VRAM") else asked


def _own(c: dict[str, Any]) -> dict[str, Any]:
    """The conditioning with containers of its own, for one pass.

    The UNet pops residuals off the lists of ``control`` (``apply_control`` of backend/nn/unet.py)
    and writes into ``transformer_options``.
    """
    own = dict(c)
    if isinstance(c.get("transformer_options"), dict):
        own["transformer_options"] = dict(c["transformer_options"])
    if isinstance(c.get("control"), dict):
        own["control"] = {
            name: list(items) if isinstance(items, list) else items
            for name, items in c["control"].items()
        }
    return own


def _transformers() -> frozenset[str]:
    """The families of transformers whose networks this host has (backend/nn)."""
    networks = {"sd3": "backend.nn.mmditx", "sd35": "backend.nn.mmditx", "flux": "backend.nn.flux"}
    return frozenset(
        name
        for name, family in FAMILIES.items()
        if family.is_dit and there(networks[name.partition("-")[0]])
    )


def _loras_of(sd_model: Any) -> Callable[[], Hashable]:
    """Tells the files and strengths of the LoRAs (extensions-builtin/sd_forge_lora/networks.py)."""
    alive = weakref.ref(sd_model)
    return lambda: getattr(alive(), "current_lora_hash", None)


def _slot(unet: Any) -> Any:
    return unet.model_options.get("model_function_wrapper")


def _sampling_of(wrapper: Any) -> _Sampling | None:
    return getattr(wrapper, _MINE, None)


def _begin(p: Any) -> _Sampling:
    """A new account of ``p``'s sampling; on ``p``, to find it again after a refiner switch."""
    sampling = _Sampling(weakref.ref(p), getattr(p.sd_model, "sd_checkpoint_info", None))
    setattr(p, _MINE, sampling)
    return sampling


def _part(p: Any) -> str:
    return "hires" if getattr(p, "is_hr_pass", False) else "first"
