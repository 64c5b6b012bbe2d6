"""A small SD.Next: what the adapter rests on of modules/processing_diffusers.py and around it.

Each class and function names the host's file that it imitates; behaviour that surprises is kept:
some exceptions of a pipeline end a generation quietly, LoRAs are merged into new Parameters before
each pipeline call, an earlier ``p`` may be gone on with, offloading exchanges forwards.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from types import SimpleNamespace
from typing import Any

import torch

from tests.core.tiny import Matrix, TinyUNet

LATENT = (1, 4, 16, 16)  # 128x128 pixels


class UNet(TinyUNet):
    """diffusers' UNet2DConditionModel, by its forward's names and its weights'.

    Attributes:
        ran: "d" or "p" for each forward: whether the middle's weight was its own.
        fault: called in each forward of weights that are not the layer's own.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.ran = ""
        self.fault: Any = None
        for name, module in self.named_modules():
            if type(module) is Matrix:
                module.network_layer_name = name.replace(".", "_")
        middle = self.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
        middle.register_forward_hook(self._look)  # after it, before the pruned weight goes
        self.own = middle.weight

    def forward(  # type: ignore[override]
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, return_dict: bool = True
    ) -> Any:
        t = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1)
        tokens = sample.flatten(1)[:, :8] + 0.01 * t + encoder_hidden_states.mean((1, 2))[:, None]
        y = torch.nn.functional.normalize(super().forward(torch.tanh(tokens)))
        z = sample * y.repeat(1, sample[0].numel() // 8).view(sample.shape)
        return SimpleNamespace(sample=z) if return_dict else (z,)

    def _look(self, middle: Any, inputs: Any, output: Any) -> None:
        pruned = middle.weight is not self.own
        self.ran += "p" if pruned else "d"
        if pruned and self.fault is not None:
            self.fault()


class Scheduler:
    """Euler's shape; ``order`` 2 lists each timestep but the first twice, as Heun's does."""

    config = {"prediction_type": "epsilon"}  # noqa: RUF012

    def __init__(self, order: int = 1) -> None:
        self.order, self.timesteps, self.step_index = order, torch.zeros(0), None

    def set_timesteps(self, steps: int) -> None:
        t = torch.linspace(900, 100, steps)
        self.timesteps = torch.cat([t[:1], t[1:].repeat_interleave(self.order)])
        self.step_index = None

    def step(self, z: torch.Tensor, x: torch.Tensor, begin: int) -> torch.Tensor:
        self.step_index = (begin if self.step_index is None else self.step_index) + 1
        return x + 0.1 * z


class Pipeline:
    """diffusers' StableDiffusionPipeline; ``strength`` below 1 begins in the middle (img2img)."""

    vae_scale_factor = 8

    def __init__(self, unet: Any, name: str = "tiny", order: int = 1) -> None:
        self.unet, self.scheduler = unet, Scheduler(order)
        filename = f"/models/{name}.safetensors"
        self.sd_checkpoint_info = SimpleNamespace(
            name=name, model_name=name, filename=filename, shorthash="0123456789"
        )
        self.loaded_loras: dict[str, list[str]] = {}

    def __call__(self, latents: Any, steps: int, cfg: float, step_end: Any, strength: float = 1.0):
        self.scheduler.set_timesteps(steps)
        begin = round(len(self.scheduler.timesteps) * (1 - strength))
        # New embeddings at each step, as the host's callback makes them
        # (modules/processing_callbacks.py, prompt_callback).
        x = latents
        for t in self.scheduler.timesteps[begin:]:
            text = torch.cat([torch.zeros(len(x), 2, 3), torch.ones(len(x), 2, 3)])
            if cfg > 1:
                z = self.unet(torch.cat([x, x]), t, encoder_hidden_states=text, return_dict=False)
                uncond, cond = z[0].chunk(2)
                z = uncond + cfg * (cond - uncond)
            else:
                z = self.unet(x, t, encoder_hidden_states=text[len(x) :], return_dict=False)[0]
            x = self.scheduler.step(z, x, begin)
            step_end()
        return SimpleNamespace(images=x)


class State:
    """modules/shared_state.py."""

    interrupted = False
    api = False


class Processing:
    """modules/processing_class.py."""

    def __init__(self, job: Any = None, **options: Any) -> None:
        self.crdiff_job = job
        self.is_hr_pass = self.is_refiner_pass = False
        self.steps, self.cfg, self.latent, self.seed = 4, 7.0, LATENT, 7
        self.loras: dict[str, float] = {}
        self.strength = 1.0
        self.hires: tuple[int, ...] | None = None
        self.step_end: Any = lambda: None
        self.go_on_with: Any = None
        self.__dict__.update(options)

    @property
    def height(self) -> int:
        return self.latent[-2] * 8

    @property
    def width(self) -> int:
        return self.latent[-1] * 8


class Host:
    """What is loaded, and modules/processing_diffusers.py as a module that calls by name."""

    def __init__(self) -> None:
        self.state = State()
        self.model_data = SimpleNamespace(sd_model=Pipeline(UNet()), sd_refiner=None)
        self.foreign = 0  # weights that a LoRA's merge found, and that were not the layer's own
        self.decoded = 0
        self.offload: Any = lambda pipe: None  # modules/sd_models.py, apply_balanced_offload
        self.module = types.ModuleType("modules.processing_diffusers")
        for name in ("process_diffusers", "set_pipeline_args", "process_post", "process_decode"):
            setattr(self.module, name, getattr(self, name))

    @property
    def unet(self) -> Any:
        return self.model_data.sd_model.unet

    def modules(self) -> dict[str, types.ModuleType]:
        package = types.ModuleType("modules")
        package.__path__ = []  # type: ignore[attr-defined]
        data = types.ModuleType("modules.modeldata")
        data.model_data = self.model_data  # type: ignore[attr-defined]
        package.processing_diffusers, package.modeldata = self.module, data  # type: ignore
        return {
            "modules": package,
            "modules.processing_diffusers": self.module,
            "modules.modeldata": data,
        }

    def draw(self, p: Processing) -> Any:
        """modules/processing.py, as far as it matters: the image's latents, None if it failed."""
        self.state.interrupted = False
        with torch.no_grad():  # modules/devices.py, inference_context
            return self.module.process_diffusers(p)  # type: ignore[attr-defined]

    # --- modules/processing_diffusers.py

    def process_diffusers(self, p: Processing) -> Any:
        p = p.go_on_with or p  # restore_state
        x = torch.randn(p.latent, generator=torch.Generator().manual_seed(p.seed))
        x = self._pipeline(p, self.model_data.sd_model, x, p.steps, p.strength)
        if x is not None and p.hires is not None:
            p.is_hr_pass = True
            x = torch.nn.functional.interpolate(x, p.hires)
            x = self._pipeline(p, self.model_data.sd_model, x, p.steps, 0.5)
            p.is_hr_pass = False
        if x is not None and self.model_data.sd_refiner is not None:
            p.is_refiner_pass = True
            x = self._pipeline(p, self.model_data.sd_refiner, x, p.steps, 0.5, post=False)
            p.is_refiner_pass = False
        return self.module.process_decode(p, x)  # type: ignore[attr-defined]

    def _pipeline(
        self, p: Processing, pipe: Any, x: Any, steps: int, strength: float, post: bool = True
    ) -> Any:
        self.offload(pipe)
        self.network_activate(pipe, p.loras)
        args = self.module.set_pipeline_args(  # type: ignore[attr-defined]
            p=p, model=pipe, latents=x, steps=steps, strength=strength
        )
        try:
            return pipe(**args).images
        except (AssertionError, ValueError, RuntimeError):
            self.state.interrupted = True
            return None
        finally:
            if post:
                self.module.process_post(p)  # type: ignore[attr-defined]

    def set_pipeline_args(self, p: Any, model: Any, **kwargs: Any) -> dict[str, Any]:
        def step_end() -> None:
            p.step_end()
            if self.state.interrupted:
                raise AssertionError("Interrupted...")  # modules/processing_callbacks.py

        return {**kwargs, "cfg": p.cfg, "step_end": step_end}

    def process_post(self, p: Any) -> None:
        """Takes the modifiers of a pipeline call away."""

    def process_decode(self, p: Any, x: Any) -> Any:
        self.decoded += 1
        return x

    def network_activate(self, pipe: Any, loras: dict[str, float]) -> None:
        """modules/lora/networks.py and lora_apply.py: from a backup, into new Parameters."""
        wanted = tuple((name, [strength] * 3) for name, strength in loras.items())
        unet = pipe.unet
        for layer in unet.modules():
            if getattr(layer, "network_layer_name", None) is None:
                continue
            if getattr(layer, "network_current_names", ()) == wanted:
                continue
            if getattr(layer, "network_weights_backup", None) is None:
                layer.network_weights_backup = layer.weight.detach().clone()
                self.foreign += bool((layer.weight == 0).any())
            weight = layer.network_weights_backup.clone()
            for name, multiplier in loras.items():
                generator = torch.Generator().manual_seed(sum(name.encode()))
                weight += 0.2 * multiplier * torch.randn(weight.shape, generator=generator)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            layer.network_current_names = wanted
        middle = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
        unet.own = middle.weight


class Hook:
    """accelerate/hooks.py, ModelHook; ``moves`` counts what it would move."""

    def __init__(self) -> None:
        self.moves = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.moves += 1
        return args, kwargs


def add_hook_to_module(module: Any, hook: Hook) -> None:
    """accelerate/hooks.py."""
    if hasattr(module, "_hf_hook") and hasattr(module, "_old_forward"):
        old_forward = module._old_forward
    else:
        old_forward = module._old_forward = module.forward
    module._hf_hook = hook

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = module._hf_hook.pre_forward(module, *args, **kwargs)
        return module._old_forward(*args, **kwargs)

    new_forward = functools.partial(new_forward, module)
    module.forward = functools.update_wrapper(new_forward, old_forward)


def remove_hook_from_module(module: Any) -> None:
    """accelerate/hooks.py."""
    if hasattr(module, "_hf_hook"):
        del module._hf_hook
    if hasattr(module, "_old_forward"):
        module.forward = module._old_forward
        del module._old_forward


def install(monkeypatch: Any) -> tuple[Host, Any]:
    """A new host, and the adapter's module imported against it."""
    host = Host()
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "crdiff_ext.webui.diffusers_host", raising=False)
    return host, importlib.import_module("crdiff_ext.webui.diffusers_host")
