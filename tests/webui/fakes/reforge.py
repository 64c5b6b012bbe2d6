"""A reForge in miniature: what differs from Forge 2; each part names the host file it imitates.

Contracts are copied, not code. Layers are torch's, with a list of functions of the weight; a
checkpoint is loaded when it is chosen, and a refiner's stays in memory.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from tests.webui.fakes import forge
from tests.webui.fakes.forge_process import fake_module
from tests.webui.fakes.neo import NeoEngine, NeoHost, NeoPatcher


def cast_bias_weight(layer, x=None, dtype=None, device=None, bias_dtype=None):
    """ldm_patched/modules/ops.py: cast, a copy where there are functions, then these."""
    dtype = x.dtype if x is not None else dtype
    weight = layer.weight.to(dtype, copy=bool(layer.weight_function))
    for function in layer.weight_function:
        weight = function(weight)
    return weight, layer.bias


class CastWeightBiasOp:
    """ldm_patched/modules/ops.py: the list is the class's, shared by all layers without one."""

    ldm_patched_cast_weights = False
    weight_function: list[Any] = []  # noqa: RUF012 - as there


class Linear(torch.nn.Linear, CastWeightBiasOp):
    """ldm_patched/modules/ops.py, Linear of disable_weight_init and of manual_cast."""

    def __init__(self, weight, manual_cast=False):
        super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.used: Any = None  # not the host's: the effective weight of the last forward
        if manual_cast:
            self.ldm_patched_cast_weights = True

    def forward(self, x):
        weight = self.weight
        if self.ldm_patched_cast_weights or self.weight_function:
            weight, _ = cast_bias_weight(self, x)
        self.used = weight.detach().clone()
        return x @ weight.T


class UNet(forge.UNet):
    """The same net of such layers."""

    layer_type = Linear


class EPS:
    """ldm_patched/modules/model_sampling.py."""


class V_PREDICTION(EPS):
    """ldm_patched/modules/model_sampling.py."""


class BaseModel(torch.nn.Module):
    """ldm_patched/modules/model_base.py: ``apply_model`` takes sigma and returns x0."""

    def __init__(self, unet, sampling: type = EPS):
        super().__init__()
        self.diffusion_model = unet
        layers = [linear for block in unet.order for linear in block]
        unet.dtype = layers[0].weight.dtype
        self.manual_cast_dtype = torch.float32 if layers[0].ldm_patched_cast_weights else None
        self.model_sampling = type("ModelSampling", (torch.nn.Module, sampling), {})()
        self.current_weight_patches_uuid: Any = None
        self.backup: dict[str, Any] = {}

    def apply_model(self, x, t, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        sigma = t.view(-1, 1, 1, 1)
        model_input = (x / (sigma**2 + 1) ** 0.5).to(self.manual_cast_dtype or x.dtype)
        output = self.diffusion_model(
            model_input, t, c_crossattn, control=control, transformer_options=transformer_options
        )
        return x - output.float() * sigma


class Patcher(NeoPatcher):
    """ldm_patched/modules/model_patcher.py: ``load`` merges LoRAs, or leaves them to each forward.

    ``online``: the layer is swapped out, so its LoRA is added at each forward.
    """

    cast = "ldm_patched_cast_weights"

    def load(self):
        if self.model.current_weight_patches_uuid != self.patches_uuid:
            for module in self.model.modules():
                if hasattr(module, "weight_function"):
                    module.weight_function = []  # wipe_lowvram_weight: then the layer's own
        super().load()


class Engine(NeoEngine):
    """modules_forge/forge_loader.py, load_model_for_a1111."""

    def __init__(self, name, unet, sampling: type = EPS):
        super().__init__(name, forge.UNet())
        self.forge_objects.unet = Patcher(BaseModel(unet, sampling))
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()


class ReForgeHost(NeoHost):
    """The process."""

    def __init__(self, engine):
        super().__init__(engine)
        self.chosen = engine
        self.data = types.SimpleNamespace(sd_model=engine)  # modules/sd_models.py, SdModelData

    def reload_model_weights(self, sd_model=None, info=None):
        """modules/sd_models.py: loads what is chosen, unless it is there."""
        self.data.sd_model = self.chosen

    def modules(self, online=True):
        state = types.SimpleNamespace(name="NORMAL_VRAM")
        ops = {"CastWeightBiasOp": CastWeightBiasOp, "cast_bias_weight": cast_bias_weight}
        made = {
            "modules": {},
            "modules.script_callbacks": {"on_cfg_denoiser": self.callbacks.append},
            "modules.sd_models": {
                "model_data": self.data,
                "reload_model_weights": self.reload_model_weights,
            },
            "modules.sd_samplers_common": {},
            "ldm_patched": {},
            "ldm_patched.modules": {},
            "ldm_patched.modules.model_management": {"vram_state": state},
            "ldm_patched.modules.ops": ops if online else {},
        }
        return {name: fake_module(name, contents) for name, contents in made.items()}
