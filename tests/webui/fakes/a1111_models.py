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


class Networks(dict):
    """The LoRAs that are wanted by now, name -> multiplier; one for the whole host.

    ``foreign``, not the host's: how often a merge or a backup found a weight that is not the
    layer's own, a pruned or a folded one.
    """

    foreign = 0

    @property
    def loaded_networks(self) -> list[Any]:
        """As extensions-builtin/Lora/networks.py has them."""
        return [_Network(name, 1.0, multiplier, None) for name, multiplier in self.items()]


@dataclasses.dataclass
class _Network:
    """extensions-builtin/Lora/network.py."""

    name: str
    te_multiplier: float
    unet_multiplier: float
    dyn_dim: int | None


class Linear(Matrix):
    """torch.nn.Linear as extensions-builtin/Lora/networks.py patches its forward."""

    networks: Networks
    own: list[torch.nn.Parameter]  # not the host's: the parameter that it was made with
    network_layer_name: str | None
    functional = False  # shared.opts.lora_functional

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.functional:
            if not self.networks:
                return super().forward(x)
            backup = getattr(self, "network_weights_backup", None)
            if backup is not None:
                self.write(backup)
            self.network_current_names, self.network_weights_backup = (), None
            y = super().forward(x)
            for name in self.networks:
                y = y + x @ self.delta(name).T
            return y
        self.network_apply_weights()
        return super().forward(x)

    def write(self, values: torch.Tensor) -> None:
        self.networks.foreign += self.weight is not self.own[0]
        with torch.no_grad():
            self.weight.copy_(values)

    def network_apply_weights(self) -> None:
        if self.network_layer_name is None:
            return
        wanted = tuple(
            (x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim)
            for x in self.networks.loaded_networks
        )
        current = getattr(self, "network_current_names", ())
        backup = getattr(self, "network_weights_backup", None)
        if backup is None and wanted:
            assert current == (), "no backup weights found and current weights are not unchanged"
            self.networks.foreign += self.weight is not self.own[0]
            self.network_weights_backup = backup = self.weight.to("cpu", copy=True)
        if current == wanted:
            return
        if backup is not None:
            self.write(backup)
        for name in self.networks:
            self.write(self.weight + self.delta(name))
        self.network_current_names = wanted

    def delta(self, name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        added = 0.2 * torch.randn(self.weight.shape, generator=generator)
        return self.networks[name] * added


class UNet(TinyUNet):
    """The diffusion_model: LDM names, the host's Linear; latents in, latents out."""

    def __init__(self, networks: Networks, seed: int) -> None:
        super().__init__(LDM_BLOCKS, seed=seed)
        for name, module in self.named_modules():
            if type(module) is Matrix:
                module.__class__ = Linear
                module.networks = networks
                module.own = [module.weight]
                module.network_layer_name = name.replace(".", "_")

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

    def __init__(self, networks: Networks, name: str, seed: int) -> None:
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

    def __init__(self, networks: Networks, unet: torch.nn.Module) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.diffusion_model = unet
        self.sd_checkpoint_info = CheckpointInfo("sd3", "/models/sd3.safetensors")

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return self.model.diffusion_model(x, t, cond["c_crossattn"][0])

    def create_denoiser(self) -> Denoiser:
        return Denoiser(self)


class MMDiT(torch.nn.Module):
    """SD3's names (modules/models/sd3/mmdit.py), which CR-Diff does not prune in a host."""

    def __init__(self) -> None:
        super().__init__()
        block = torch.nn.ModuleDict({"x_block": torch.nn.ModuleDict({"attn": torch.nn.Module()})})
        block["x_block"]["attn"].qkv = torch.nn.Linear(8, 24)
        block["x_block"]["mlp"] = torch.nn.ModuleDict(
            {"fc1": torch.nn.Linear(8, 32), "fc2": torch.nn.Linear(32, 8)}
        )
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
