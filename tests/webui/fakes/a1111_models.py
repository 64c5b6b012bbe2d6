"""Models as AUTOMATIC1111 holds them: LDM's, SD3's, and linear layers that merge LoRAs in place.

Each class names the host's file that it imitates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tests.core.tiny import LDM_BLOCKS, Matrix, TinyUNet


@dataclasses.dataclass(eq=False)
class CheckpointInfo:
    """modules/sd_models.py; no __eq__ there either."""

    name_for_extra: str
    filename: str
    sha256: str | None = None
    shorthash: str | None = None
    hash: str = "0badf00d"


class Linear(Matrix):
    """torch.nn.Linear as extensions-builtin/Lora/networks.py patches its forward."""

    networks: dict[str, torch.Tensor]  # name -> what it adds; one dict for the whole host
    functional = False  # shared.opts.lora_functional

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.functional:
            y = super().forward(x)
            for name in self.networks:
                y = y + x @ self.delta(name).T
            return y
        self.network_apply_weights()
        return super().forward(x)

    def network_apply_weights(self) -> None:
        wanted = tuple((name, 1.0) for name in self.networks)
        current = getattr(self, "network_current_names", ())
        backup = getattr(self, "network_weights_backup", None)
        if backup is None and wanted:
            assert current == (), "no backup weights found and current weights are not unchanged"
            self.network_weights_backup = backup = self.weight.to("cpu", copy=True)
        if current == wanted:
            return
        with torch.no_grad():
            if backup is not None:
                self.weight.copy_(backup)
            for name in self.networks:
                self.weight.copy_(self.weight + self.delta(name))
        self.network_current_names = wanted

    def delta(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        return 0.2 * torch.randn(self.weight.shape, generator=generator)


class UNet(TinyUNet):
    """The diffusion_model: LDM names, the host's Linear; latents in, latents out."""

    def __init__(self, networks: dict[str, torch.Tensor], seed: int) -> None:
        super().__init__(LDM_BLOCKS, seed=seed)
        for module in self.modules():
            if type(module) is Matrix:
                module.__class__ = Linear
                module.networks = networks

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1)[:, :8] + 0.01 * t[:, None] + context.mean((1, 2))[:, None]
        y = torch.tanh(super().forward(torch.tanh(tokens)))  # bounded, however long it samples
        return x * y.repeat(1, x[0].numel() // 8).view(x.shape)


class DiffusionWrapper(torch.nn.Module):
    """ldm/models/diffusion/ddpm.py."""

    conditioning_key = "crossattn"

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.diffusion_model = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return self.diffusion_model(x, t, torch.cat(cond["c_crossattn"]))


class LatentDiffusion(torch.nn.Module):
    """ldm/models/diffusion/ddpm.py, with modules/sd_hijack_unet.py's apply_model.

    That one replaces the members of ``cond`` in place; here it takes them out, as ControlNet-like
    patches do with lists of theirs, so that a second pass with the same dict would fail.
    """

    parameterization = "eps"
    lowvram = False

    def __init__(self, networks: dict[str, torch.Tensor], name: str, seed: int) -> None:
        super().__init__()
        self.model = DiffusionWrapper(UNet(networks, seed))
        self.sd_checkpoint_info = CheckpointInfo(name, f"/models/{name}.safetensors")

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        taken = {"c_crossattn": [cond["c_crossattn"].pop()]}
        return self.model(x, t, taken)


class SD3Inferencer(torch.nn.Module):
    """1.10's modules/models/sd3/sd3_model.py: ``model.forward`` is not where the UNet is called."""

    parameterization = "eps"
    lowvram = False

    def __init__(self, networks: dict[str, torch.Tensor], unet: torch.nn.Module) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.diffusion_model = unet
        self.sd_checkpoint_info = CheckpointInfo("sd3", "/models/sd3.safetensors")

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return self.model.diffusion_model(x, t, cond["c_crossattn"][0])

    def create_denoiser(self) -> Denoiser:
        return Denoiser(self)


class MMDiT(torch.nn.Module):
    """SD3's names (modules/models/sd3/mmdit.py), none of which CR-Diff knows."""

    def __init__(self) -> None:
        super().__init__()
        block = torch.nn.ModuleDict({"x_block": torch.nn.ModuleDict({"attn": torch.nn.Module()})})
        block["x_block"]["attn"].qkv = torch.nn.Linear(8, 24)
        self.joint_blocks = torch.nn.ModuleList([block])

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x * 0.9


class Denoiser(torch.nn.Module):
    """k_diffusion/external.py and sd_samplers_timesteps.py: both call ``apply_model``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.__dict__["inner_model"] = model  # no submodule, to keep the fake's tree small

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self.inner_model.apply_model(x, sigma, **kwargs)
