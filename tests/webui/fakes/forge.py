"""A Forge in miniature, its models: all here imitates the host file that it names.

Contracts are copied, not code: who calls whom, with what, what is copied, popped, reset, shared.
"""

from __future__ import annotations

import types
import weakref
from typing import Any

import torch

from tests.core.tiny import LAYERS, LDM_BLOCKS, Node

CALCULATORS: dict[str, Any] = {}
WIDTH = 8


def merge_lora_to_weight(patches, weight, computation_dtype):
    """backend/patcher/lora.py: a copy, changed by each patch in turn."""
    original = weight.dtype
    weight = weight.to(computation_dtype, copy=True)
    for strength, v, strength_model, _offset, _function in patches:
        weight *= strength_model
        if v[0] == "diff":
            weight += strength * v[1][0].to(weight)
        else:
            weight = CALCULATORS[v[0]](weight, strength, v[1])
    return weight.to(original)


def get_weight_and_bias(layer, weight_args=None, bias_args=None, weight_fn=None, bias_fn=None):
    """backend/operations.py: unpack, cast, scale, then the online patches."""
    patches = (getattr(layer, "forge_online_loras", None) or {}).get("weight")
    weight = layer.weight
    if weight_fn is not None:
        weight = weight_fn(weight)
    if weight_args is not None:
        weight = weight.to(**weight_args)
    if layer.scale_weight is not None:
        weight = weight * layer.scale_weight.to(weight)
    if patches is not None:
        weight = merge_lora_to_weight(patches, weight, weight.dtype)
    return weight, layer.bias


def dequantize_tensor(tensor):
    """backend/operations_gguf.py."""
    return tensor.detach().half() / 64 if getattr(tensor, "gguf_cls", None) else tensor


class Linear(torch.nn.Module):
    """backend/operations.py, ForgeOperations.Linear: not a torch.nn.Linear."""

    def __init__(self, weight: torch.Tensor, manual_cast: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.scale_weight = None
        self.bias = None
        self.parameters_manual_cast = manual_cast
        self.used: Any = None  # not the host's: the effective weight of the last forward

    def forward(self, x):
        packed = getattr(self.weight, "gguf_cls", None)
        if self.parameters_manual_cast or packed:
            args = {"device": x.device, "dtype": x.dtype}
            weight, _ = get_weight_and_bias(self, args, weight_fn=packed and dequantize_tensor)
        else:
            weight, _ = get_weight_and_bias(self)
        self.used = weight.detach().clone()
        return x @ weight.T


class UNet(torch.nn.Module):
    """backend/nn/unet.py: pops residuals off ``control``, writes into ``transformer_options``."""

    layer_type: Any = Linear
    channels, prediction_type = 4, "epsilon"  # of latents; as the predictor calls it

    def __init__(self, seed: int = 0, dtype=torch.float32, manual_cast: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = [(WIDTH, WIDTH)] * 4 + [(8 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
        self.order: list[list[Linear]] = []
        self.interrupt: Any = None  # called before each forward
        self.passes: list[list[torch.Tensor]] = []  # the effective weights of each forward
        for block in LDM_BLOCKS:
            layers = []
            for layer, shape in zip(LAYERS, shapes, strict=True):
                weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
                linear = self.layer_type(weight.to(dtype), manual_cast)
                self._attach(f"{block}.transformer_blocks.0.{layer}", linear)
                layers.append(linear)
            self.order.append(layers)

    def _attach(self, name, linear):
        node: Any = self
        for part in name.split(".")[:-1]:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        node.add_module(name.rpartition(".")[2], linear)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None):
        assert "block" not in transformer_options, "another pass' transformer_options"
        # x [n, 4, h, w] -> [n, h * w / 2, WIDTH]
        h = x.reshape(x.shape[0], -1, WIDTH) + context + timesteps[:, None, None] / 100
        for index, (q, k, v, out, up, down) in enumerate(self.order):
            transformer_options["block"] = index
            if self.interrupt is not None:
                self.interrupt(self, index)
            h = h + out(torch.tanh(q(h)) * torch.tanh(k(h)) + v(h)) / 4
            h = h + down(up(h).chunk(2, dim=-1)[0]) / 4
            name = "input" if index < 2 else "middle" if index == 2 else "output"
            if control is not None and control.get(name):
                h = h + control[name].pop()
        self.passes.append([linear.used for layers in self.order for linear in layers])
        return h.reshape(x.shape)


class KModel(torch.nn.Module):
    """backend/modules/k_model.py: ``apply_model`` takes sigma and returns x0."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.diffusion_model = unet
        self.computation_dtype = torch.float32
        self.predictor = types.SimpleNamespace(prediction_type=unet.prediction_type)
        self.lora_loader = LoraLoader(self)

    def apply_model(self, x, t, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        sigma = t.view(-1, 1, 1, 1)
        flows = self.predictor.prediction_type == "const"  # SD3, FLUX (calculate_input)
        model_input = x if flows else x / (sigma**2 + 1) ** 0.5
        output = self.diffusion_model(
            model_input, t, c_crossattn, control=control, transformer_options=transformer_options
        )
        return x - output.float() * sigma


class LoraLoader:
    """backend/patcher/lora.py: merges on load, keeps a backup, tells by ``loaded_hash``."""

    def __init__(self, model) -> None:
        self.model = weakref.ref(model)
        self.backup: dict[str, Any] = {}
        self.online_backup: list[Any] = []
        self.loaded_hash = str([])

    @torch.inference_mode()
    def refresh(self, lora_patches):
        hashes = str(list(lora_patches))
        if hashes == self.loaded_hash:
            return
        for layer in self.online_backup:
            del layer.forge_online_loras
        for key, weight in self.backup.items():
            self.model().get_submodule(key).weight = weight
        self.backup, self.online_backup = {}, []
        for (_file, _strength, online), patches in lora_patches.items():
            for key, patch in patches.items():
                layer = self.model().get_submodule(key)
                if online:
                    layer.forge_online_loras = {"weight": [patch]}
                    self.online_backup.append(layer)
                else:
                    self.backup[key] = layer.weight
                    merged = merge_lora_to_weight([patch], layer.weight, torch.float32)
                    layer.weight = torch.nn.Parameter(merged, requires_grad=False)
        self.loaded_hash = hashes
