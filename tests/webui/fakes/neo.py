"""A Forge Neo in miniature: what differs from Forge 2; each part names the host file it imitates.

Contracts are copied, not code. No online patches and no ``lora_loader``: each layer has a list of
functions of its weight, and a set of LoRAs has a number.
"""

from __future__ import annotations

import types
import uuid
from typing import Any

import torch

from tests.webui.fakes import forge
from tests.webui.fakes.forge_process import Engine, ForgeObjects, Host, UnetPatcher, fake_module


class Quantized(torch.nn.Parameter):
    """backend/quant_ops.py, QuantizedTensor: packed values and a scale."""

    scale = 0.5

    @property
    def _qdata(self):
        return self.data

    def dequantize(self):
        return self.data.float() * self.scale


def weights_manual_cast(layer, x=None, *, dtype=None, device=None, weight_fn=None):
    """backend/operations.py: unpack and cast, then the functions; without any, as it is packed."""
    dtype = x.dtype if x is not None else dtype
    if not layer.weight_function and weight_fn is None:
        return (
            (layer.weight if isinstance(layer.weight, Quantized) else layer.weight.to(dtype)),
            0,
            0,
        )
    weight = layer.weight
    if isinstance(weight, Quantized):
        weight = weight.dequantize()
    if weight_fn is not None:
        weight = weight_fn(weight)
    weight = weight.detach().to(dtype, copy=True)
    for function in layer.weight_function:
        weight = function(weight)
    return weight, None, None


class ForgeWeights:
    """backend/operations.py: the list is the class's, shared by all layers without one."""

    parameters_manual_cast = False
    weight_function: list[Any] = []  # noqa: RUF012 - as there


class Linear(forge.Linear, ForgeWeights):
    """backend/operations.py, Linear of ForgeOperations, of the GGUF and the quantized ones."""

    def __init__(self, weight, manual_cast=False):
        super().__init__(weight, manual_cast)
        del self.scale_weight

    def forward(self, x):
        packed = getattr(self.weight, "gguf_cls", None)
        if self.parameters_manual_cast or packed or isinstance(self.weight, Quantized):
            fn = forge.dequantize_tensor if packed else None
            weight, _, _ = weights_manual_cast(self, x, weight_fn=fn)
        else:
            weight = self.weight  # get_weight_and_bias
            for function in self.weight_function:
                weight = function(weight)
        if isinstance(weight, Quantized):
            weight = weight.dequantize()
        self.used = weight.detach().clone()
        return x @ weight.T


class FastLinear(Linear):
    """backend/operations.py, ForgeOperationsFP8.Linear."""


class UNet(forge.UNet):
    """The same net of such layers."""

    layer_type = Linear


class KModel(forge.KModel):
    """backend/modules/k_model.py."""

    def __init__(self, unet):
        super().__init__(unet)
        del self.lora_loader
        self.current_weight_patches_uuid: Any = None
        self.backup: dict[str, Any] = {}


class LowVramPatch:
    """backend/patcher/base.py: changes the tensor that it is given."""

    def __init__(self, key, patches) -> None:
        self.key, self.patches = key, patches

    @torch.inference_mode()
    def __call__(self, weight):
        for patch in self.patches[self.key]:
            weight += patch[0] * patch[1][1][0].to(weight)
        return weight


class NeoPatcher(UnetPatcher):
    """backend/patcher/base.py: ``load`` merges LoRAs, or leaves them to each forward."""

    cast = "parameters_manual_cast"  # what the layers call it

    def __init__(self, model) -> None:
        super().__init__(model)
        self.patches: dict[str, Any] = {}
        self.online = False
        self.patches_uuid = uuid.uuid4()

    @torch.inference_mode()
    def load(self):
        model = self.model
        if model.current_weight_patches_uuid == self.patches_uuid:
            return
        for key, weight in model.backup.items():
            model.get_submodule(key).weight = weight
        model.backup.clear()
        for module in model.modules():
            if hasattr(module, f"prev_{self.cast}"):
                setattr(module, self.cast, getattr(module, f"prev_{self.cast}"))
                delattr(module, f"prev_{self.cast}")
                module.weight_function = []
        for key, patches in self.patches.items():
            layer = model.get_submodule(key)
            if self.online:
                layer.weight_function = [LowVramPatch(key, self.patches)]
                setattr(layer, f"prev_{self.cast}", getattr(layer, self.cast))
                setattr(layer, self.cast, True)
            else:
                model.backup[key] = layer.weight
                merged = LowVramPatch(key, {key: patches})(layer.weight.float().clone())
                layer.weight = torch.nn.Parameter(merged.to(layer.weight), requires_grad=False)
        model.current_weight_patches_uuid = self.patches_uuid


class NeoEngine(Engine):
    """backend/diffusion_engine/base.py."""

    def __init__(self, name, unet):
        super().__init__(name, unet)
        self.current_lora_hash = str([])
        self.forge_objects = ForgeObjects(NeoPatcher(KModel(unet)))
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    def use_lora(self, patches=None, file="lora.safetensors", online=False):
        unet = self.forge_objects_after_applying_lora.unet.clone()
        unet.patches = {key: [patch] for key, patch in (patches or {}).items()}
        unet.online, unet.patches_uuid = online, uuid.uuid4()
        strengths = [patch[0] for patch in (patches or {}).values()]
        self.current_lora_hash = str([file, strengths, online] if patches else [])
        self.forge_objects_after_applying_lora = ForgeObjects(unet)


class NeoHost(Host):
    """The process. ``fast``: the option 'Reload "state_dict" Only' of the refiner."""

    def __init__(self, engine, fast=False):
        super().__init__(engine)
        self.fast = fast
        self.samplers = fake_module("modules.sd_samplers_common", {"ORIGINAL_CHECKPOINT": None})

    def modules(self, online=True):
        made = super().modules()
        made["modules.sd_samplers_common"] = self.samplers
        made["backend.patcher.lora"] = fake_module("backend.patcher.lora", {})
        operations = {
            "ForgeWeights": ForgeWeights,
            "weights_manual_cast": weights_manual_cast,
            "ForgeOperationsFP8": types.SimpleNamespace(Linear=FastLinear),
        }
        made["backend.operations"] = fake_module("backend.operations", operations)
        return made

    def _prepare(self, unet):
        unet.model_patches_to(torch.device("cpu"))
        unet.load()

    @torch.inference_mode()
    def _refine(self, p, done):
        """modules/sd_samplers_common.py, apply_refiner: into the model that is there, if fast."""
        wanted = p.refiner_checkpoint_info
        if not self.fast or wanted is None or done < p.refiner_switch_at:
            return super()._refine(p, done)
        if self.samplers.ORIGINAL_CHECKPOINT is None:
            self.samplers.ORIGINAL_CHECKPOINT = p.sd_model.sd_checkpoint_info.filename
            state = self.loaders[id(wanted)]().forge_objects.unet.model.state_dict()
            p.sd_model.forge_objects.unet.model.load_state_dict(state)
        return None
