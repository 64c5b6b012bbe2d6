"""A small AUTOMATIC1111: the contracts of 1.8 and 1.10 that the adapter rests on.

Each class and function names the host's file that it imitates; behaviour that surprises (swallowed
exceptions, LoRAs merged in place in the first forward, a BaseException as interrupt) is kept.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

from tests.webui.fakes.a1111_models import (
    CheckpointInfo,
    Denoiser,
    LatentDiffusion,
    Linear,
    MMDiT,
    Networks,
    SD3Inferencer,
    UNet,
)

__all__ = ["CheckpointInfo", "Host", "Linear", "MMDiT", "Processing", "SD3Inferencer", "UNet"]

LATENT = (1, 4, 16, 16)  # 128x128 pixels


class InterruptedException(BaseException):
    """modules/sd_samplers_common.py."""


class ScriptCallbacks:
    """modules/script_callbacks.py: exceptions are reported and swallowed."""

    def __init__(self) -> None:
        self.callbacks: list[Any] = []
        self.errors: list[Exception] = []

    def on_cfg_denoiser(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def remove_callbacks_for_function(self, callback: Any) -> None:
        self.callbacks = [known for known in self.callbacks if known != callback]

    def clear_callbacks(self) -> None:
        self.callbacks.clear()

    def cfg_denoiser_callback(self, params: Any) -> None:
        for callback in self.callbacks:
            try:
                callback(params)
            except Exception as error:  # noqa: BLE001 - as the host does
                self.errors.append(error)


class Processing:
    """modules/processing.py, StableDiffusionProcessing."""

    is_hr_pass = False
    refiner_checkpoint_info: CheckpointInfo | None = None
    refiner_switch_at = 0.5
    is_api = False
    conds = 1  # parts of an AND prompt
    apart = False  # shared.opts.batch_cond_uncond switched off
    skip_uncond = False  # s_min_uncond: in odd steps

    def __init__(self, job: Any = None, **more: Any) -> None:
        self.crdiff_job = job
        self.__dict__.update(more)


class Host:
    """One host process: its modules, its loaded model, its samplers."""

    def __init__(self) -> None:
        self.networks = Networks()
        self.script_callbacks = ScriptCallbacks()
        self.state = types.SimpleNamespace(interrupted=False)
        self.loads = 0
        self.model_data = types.SimpleNamespace(sd_model=None)
        self.sd_unet = types.ModuleType("modules.sd_unet")
        self.sd_unet.current_unet = None
        self.CFGDenoiser = _make_denoiser(self)
        self.models: dict[str, Any] = {}
        self.model = self.load("base", 1)

    def load(self, name: str, seed: int) -> Any:
        """modules/sd_models.py, load_model and reload_model_weights."""
        if name not in self.models:
            self.models[name] = LatentDiffusion(self.networks, name, seed)
        self.model_data.sd_model = self.models[name]
        return self.models[name]

    @property
    def sd_model(self) -> Any:
        """modules/shared.py; the first use loads one."""
        if self.model_data.sd_model is None:
            self.loads += 1
            self.load("base", 1)
        return self.model_data.sd_model

    def modules(self) -> dict[str, types.ModuleType]:
        """What an import of the host's modules finds."""
        shared = _SharedModule("modules.shared")
        shared.__dict__["host"] = self
        models = types.ModuleType("modules.sd_models")
        models.model_data = self.model_data
        denoiser = types.ModuleType("modules.sd_samplers_cfg_denoiser")
        denoiser.CFGDenoiser = self.CFGDenoiser
        package = types.ModuleType("modules")
        package.__path__ = []
        parts = {
            "shared": shared,
            "sd_models": models,
            "sd_unet": self.sd_unet,
            "script_callbacks": self.script_callbacks,
            "sd_samplers_cfg_denoiser": denoiser,
        }
        for name, part in parts.items():
            setattr(package, name, part)
        lora = _NetworksModule("networks")  # extensions-builtin/Lora/networks.py
        lora.__dict__["host"] = self
        named = {f"modules.{name}": part for name, part in parts.items()}
        return {"modules": package, "networks": lora, **named}

    def sample(
        self, p: Processing, steps: int = 4, *, order: int = 1, latent: tuple[int, ...] = LATENT
    ) -> torch.Tensor:
        """A sampling: ``order`` calls of the denoiser a step (modules/sd_samplers_common.py).

        With 2, as Heun's method: the second one is at the next step's sigma.

        The latent so far is what an interrupt gives, as ``launch_sampling`` does.
        """
        denoiser = self.CFGDenoiser()
        denoiser.p = p
        denoiser.step = 0
        denoiser.total_steps = steps * order
        x = torch.randn(latent, generator=torch.Generator().manual_seed(7))
        try:
            for number in range(steps * order):
                level = steps - (number + order - 1) // order
                sigma = torch.full((latent[0],), float(level))
                with torch.no_grad():
                    x = x + 0.1 * denoiser(x, sigma)
        except InterruptedException:
            pass
        return x


class _SharedModule(types.ModuleType):
    @property
    def sd_model(self) -> Any:
        return self.host.sd_model

    @property
    def opts(self) -> Any:
        return types.SimpleNamespace(lora_functional=Linear.functional)


class _NetworksModule(types.ModuleType):
    @property
    def loaded_networks(self) -> Any:
        return self.host.networks.loaded_networks


def _make_denoiser(host: Host) -> Any:
    class CFGDenoiser(torch.nn.Module):
        """modules/sd_samplers_cfg_denoiser.py, and its subclass of sd_samplers_timesteps.py."""

        cfg_scale = 7.0

        def __init__(self) -> None:
            super().__init__()
            self.p: Any = None
            self.step = 0
            self.total_steps: int | None = None
            self.model_wrap: Any = None

        @property
        def inner_model(self) -> Any:
            if self.model_wrap is None:
                make = getattr(host.sd_model, "create_denoiser", None)  # 1.10
                self.model_wrap = make() if make else Denoiser(host.sd_model)
            return self.model_wrap

        def apply_refiner(self) -> None:
            """modules/sd_samplers_common.py."""
            info = self.p.refiner_checkpoint_info
            early = self.step / self.total_steps < self.p.refiner_switch_at
            if info is None or early or host.sd_model.sd_checkpoint_info is info:
                return
            host.load(info.name_for_extra, 2)
            self.model_wrap = None

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            if host.state.interrupted:
                raise InterruptedException
            self.apply_refiner()
            parts = self.p.conds + 1  # each the size of x, uncond last
            x_in, sigma_in = torch.cat([x] * parts), torch.cat([sigma] * parts)
            params = types.SimpleNamespace(x=x_in, sigma=sigma_in, denoiser=self)
            host.script_callbacks.cfg_denoiser_callback(params)
            strengths = [1.0 / n for n in range(1, parts)] + [0.0]
            context = torch.cat([torch.full((len(x), 2, 3), value) for value in strengths])
            skip = self.p.skip_uncond and self.step % 2 == 1
            end = len(x_in) - len(x) if skip else len(x_in)
            size = len(x) if self.p.apart else end
            x_out = torch.cat(
                [
                    self.inner_model(
                        params.x[a : a + size],
                        params.sigma[a : a + size],
                        cond={"c_crossattn": [context[a : a + size]]},
                    )
                    for a in range(0, end, size)
                ]
            )
            self.step += 1
            conds = sum(x_out.split(len(x))[: self.p.conds]) / self.p.conds
            uncond = conds if skip else x_out[-len(x) :]
            return uncond + self.cfg_scale * (conds - uncond)

    return CFGDenoiser


def install(monkeypatch: Any) -> tuple[Host, Any]:
    """A new host, and the adapter's module imported against it."""
    import importlib

    host = Host()
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("a1111", "a1111_weights"):
        monkeypatch.delitem(sys.modules, f"crdiff_ext.webui.{name}", raising=False)
    return host, importlib.import_module("crdiff_ext.webui.a1111")
