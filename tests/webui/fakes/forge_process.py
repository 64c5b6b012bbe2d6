"""A Forge in miniature, its process: all here imitates the host file that it names.

Contracts are copied, not code: who calls whom, with what, what is copied, popped, reset, shared.
"""

from __future__ import annotations

import copy
import gc
import types
from dataclasses import dataclass
from typing import Any

import torch

from tests.webui.fakes.forge import (
    CALCULATORS,
    WIDTH,
    KModel,
    UNet,
    dequantize_tensor,
    get_weight_and_bias,
)


class Interrupted(BaseException):
    """modules/sd_samplers_common.py, InterruptedException: not an Exception."""


class UnetPatcher:
    """backend/patcher/{base,unet}.py: ``clone`` deep-copies ``model_options``."""

    def __init__(self, model) -> None:
        self.model = model
        self.load_device = torch.device("cpu")
        self.lora_patches: dict[Any, Any] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.controlnet: Any = None
        self.extra_preserved_memory_during_sampling = 0

    def clone(self):
        other = copy.copy(self)
        other.lora_patches = dict(self.lora_patches)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def set_model_unet_function_wrapper(self, wrapper):
        self.model_options["model_function_wrapper"] = wrapper

    def add_extra_preserved_memory_during_sampling(self, amount):
        self.extra_preserved_memory_during_sampling += amount

    def model_patches_to(self, target):
        wrapper = self.model_options.get("model_function_wrapper")
        if hasattr(wrapper, "to"):
            self.model_options["model_function_wrapper"] = wrapper.to(target)


@dataclass
class ForgeObjects:
    """backend/diffusion_engine/base.py."""

    unet: UnetPatcher

    def shallow_copy(self):
        return ForgeObjects(self.unet)


class Engine:
    """backend/diffusion_engine/base.py, ForgeDiffusionEngine."""

    def __init__(self, name: str, unet: UNet) -> None:
        self.forge_objects = ForgeObjects(UnetPatcher(KModel(unet)))
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.sd_checkpoint_info = types.SimpleNamespace(
            name_for_extra=name, filename=f"{name}.safetensors"
        )

    def use_lora(self, patches=None, file="lora.safetensors", online=False):
        """extensions-builtin/sd_forge_lora/networks.py: a clone with patches."""
        unet = self.forge_objects_after_applying_lora.unet.clone()
        unet.lora_patches = {} if patches is None else {(file, 1.0, online): patches}
        self.forge_objects_after_applying_lora = ForgeObjects(unet)


class ControlNet:
    """backend/patcher/controlnet.py: new lists for each batch of conds."""

    def get_control(self, x, batch):
        shape = (x.shape[0], 1, WIDTH)
        return {
            "input": [torch.full(shape, 0.3), torch.full(shape, 0.5)],
            "middle": [torch.full(shape, 0.7)],
            "output": [torch.full(shape, 0.2 + i / 10) for i in range(4)],
        }


def calc_cond_uncond_batch(unet, conds, x, sigma, together=True):
    """backend/sampling/sampling_function.py: conds in one batch, or each alone."""
    groups = [list(conds)] if together else [[cond] for cond in conds]
    outputs = {}
    for group in groups:
        options = dict(unet.model_options["transformer_options"])
        options["cond_or_uncond"] = [kind for kind, _ in group]
        inputs = torch.cat([x] * len(group))
        c = {
            "c_crossattn": torch.cat([context.expand(len(x), 1, 1) for _, context in group]),
            "transformer_options": options,
        }
        timestep = torch.cat([sigma] * len(group))
        if unet.controlnet is not None:
            c["control"] = unet.controlnet.get_control(inputs, len(group))
        model = unet.model
        wrapper = unet.model_options.get("model_function_wrapper")
        if wrapper is not None:
            kinds = options["cond_or_uncond"]
            args = {"input": inputs, "timestep": timestep, "c": c, "cond_or_uncond": kinds}
            output = wrapper(model.apply_model, args)
        else:
            output = model.apply_model(inputs, timestep, **c)
        for (kind, _), part in zip(group, output.chunk(len(group)), strict=True):
            outputs[kind] = part
    return outputs


class Processing:
    """modules/processing.py, StableDiffusionProcessingTxt2Img."""

    def __init__(self, host, steps=2, hires=False, refiner=None, cfg=7.0, together=True) -> None:
        self.host, self.steps, self.hires, self.cfg = host, steps, hires, cfg
        self.together = together
        self.width, self.height = 64, 32
        self.hr_upscale_to_x, self.hr_upscale_to_y = 96, 64
        self.is_hr_pass = False
        self.refiner_checkpoint_info = refiner
        self.refiner_switch_at = 0.5
        self.crdiff_job: Any = None

    @property
    def sd_model(self):
        return self.host.data.sd_model


class Host:
    """The process: modules/{processing,script_callbacks,sd_models,sd_samplers_*}.py."""

    def __init__(self, engine: Engine) -> None:
        self.data = types.SimpleNamespace(
            sd_model=engine, forge_loading_parameters={"checkpoint_info": engine.sd_checkpoint_info}
        )
        self.callbacks: list[Any] = []
        self.loaders: dict[int, Any] = {}  # id(checkpoint info) -> makes its engine
        self.hooks: list[Any] = []  # process_before_every_sampling of each script, in order

    def modules(self, online=True) -> dict[str, Any]:
        """What ``sys.modules`` needs for it; without ``online``: Forge Classic."""
        state = types.SimpleNamespace(name="NORMAL_VRAM")
        made = {
            "modules": {},
            "modules.script_callbacks": {"on_cfg_denoiser": self.callbacks.append},
            "modules.sd_models": {"model_data": self.data},
        }
        if online:
            made |= {
                "backend": {},
                "backend.patcher": {},
                "backend.patcher.lora": {"extra_weight_calculators": CALCULATORS},
                "backend.operations": {"get_weight_and_bias": get_weight_and_bias},
                "backend.operations_gguf": {"dequantize_tensor": dequantize_tensor},
                "backend.memory_management": {"vram_state": state},
            }
        else:
            made |= {
                "ldm_patched": {},
                "ldm_patched.modules": {},
                "ldm_patched.modules.model_management": {"vram_state": state},
            }
        return {name: fake_module(name, contents) for name, contents in made.items()}

    @torch.no_grad()
    def generate(self, p: Processing) -> torch.Tensor:
        """process_images_inner: one batch of one image, seed 0."""
        self._reset(p.sd_model)
        self._run_hooks(p)
        channels = p.sd_model.forge_objects.unet.model.diffusion_model.channels
        x = torch.randn(1, channels, 4, 8, generator=torch.Generator().manual_seed(0))
        x = self._sample(p, x)
        if p.hires:
            p.is_hr_pass = True
            self._run_hooks(p)  # processing.py:1510, before the reset
            self._reset(p.sd_model)
            self._run_hooks(p)  # processing.py:1522
            x = torch.nn.functional.interpolate(x, (8, 12))
            x = self._sample(p, x)
            p.is_hr_pass = False
        return x

    def _reset(self, engine):
        engine.forge_objects = engine.forge_objects_after_applying_lora.shallow_copy()

    def _run_hooks(self, p):
        for hook in self.hooks:
            hook(p)

    def _prepare(self, unet):
        """sampling_prepare -> load_models_gpu -> model_load."""
        unet.model_patches_to(torch.device("cpu"))
        unet.model.lora_loader.refresh(unet.lora_patches)

    def _sample(self, p, x):
        self._prepare(p.sd_model.forge_objects.unet)
        for step in range(p.steps):
            x = x + (self._denoise(p, x, step) - x) / (p.steps - step)
        return x

    def _denoise(self, p, x, step):
        """sd_samplers_cfg_denoiser.py: refiner, callbacks, then the UNet is read."""
        self._refine(p, step / p.steps)
        denoiser = types.SimpleNamespace(p=p, step=step, total_steps=p.steps)
        sigma = torch.full((len(x),), 14.0 / (step + 1))
        for callback in self.callbacks:
            callback(types.SimpleNamespace(x=x, sigma=sigma, denoiser=denoiser))
        unet = p.sd_model.forge_objects.unet
        conds = [("cond", torch.full((1, 1, 1), 0.9)), ("uncond", torch.full((1, 1, 1), 0.1))]
        if p.cfg == 1.0:
            return calc_cond_uncond_batch(unet, conds[:1], x, sigma)["cond"]
        out = calc_cond_uncond_batch(unet, conds, x, sigma, p.together)
        return out["uncond"] + (out["cond"] - out["uncond"]) * p.cfg

    def _refine(self, p, done):
        """sd_samplers_common.py, apply_refiner: no script is told; the old model goes first."""
        wanted = p.refiner_checkpoint_info
        if wanted is None or done < p.refiner_switch_at:
            return
        if p.sd_model.sd_checkpoint_info is wanted:
            return
        self.data.sd_model = None
        gc.collect()
        self.data.sd_model = self.loaders[id(wanted)]()
        self._prepare(p.sd_model.forge_objects.unet)


def fake_module(name, contents):
    module = types.ModuleType(name)
    module.__path__ = []  # a package, so that its members can be imported
    module.__spec__ = types.SimpleNamespace(name=name, submodule_search_locations=[])  # type: ignore[assignment]
    for key, value in contents.items():
        setattr(module, key, value)
    return module
