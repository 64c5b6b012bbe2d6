"""What a diffusers pipeline has loaded, and where a pruned pass of it gets its weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..blocks import prunable_layers
from ..errors import CRDiffError
from ..families import UNKNOWN, Family, identify_module
from ..settings import ALL
from .job import ModelFacts
from .module_weights import ModuleWeights, alive, state_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_NOT = "this model is not supported: "
_OTHER = f"{_NOT}it is a transformer of another structure than those of SD3, SD3.5 and FLUX"
_CACHES = ("is_cache_enabled", "_is_cached", "enable_teacache")
"""Of a network that leaves out parts of forwards by what earlier ones gave: diffusers' CacheMixin,
para-attention and cache-dit, SD.Next's modules/teacache."""
_HOOKS = {
    "group_offloading": "group offloading keeps the weights elsewhere between layers",
    "layerwise_casting": "layerwise casting changes the weights' type around each layer",
}


def pipeline_of(model: Any) -> Any:
    """The pipeline that samples: some of the host's hold it (modules/processing_args.py)."""
    inner = getattr(model, "pipe", None)
    return model if inner is None or hasattr(model, "no_recurse") else inner


def network_of(model: Any) -> Any:
    """A pipeline's UNet, or its transformer; None when it has neither."""
    pipe = pipeline_of(model)
    unet = getattr(pipe, "unet", None)
    return getattr(pipe, "transformer", None) if unet is None else unet


def facts_of(model: Any) -> ModelFacts:
    """What a pipeline of the host is, as far as CR-Diff is concerned."""
    pipe, network = pipeline_of(model), network_of(model)
    info = getattr(model, "sd_checkpoint_info", None) or getattr(pipe, "sd_checkpoint_info", None)
    name = str(getattr(info, "model_name", None) or getattr(info, "name", None) or "the model")
    sha = str(getattr(info, "shorthash", None) or "")
    if not isinstance(network, torch.nn.Module):
        engine = f"{_NOT}its UNet or transformer is no torch module, or is missing"
        return ModelFacts(UNKNOWN, name, engine, sha)
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    prediction = config.get("prediction_type") if hasattr(config, "get") else None
    try:
        family = identify_module(network, prediction_type=prediction)
        return ModelFacts(family, name, why_not(network, family), sha)
    except CRDiffError as error:  # fused projections, names that contradict each other
        return ModelFacts(UNKNOWN, name, f"{_NOT}{error}", sha)


def why_not(network: torch.nn.Module, family: Family) -> str | None:
    """Why this network can't be pruned as it is now; None when it can. Raises CRDiffError."""
    if any(hasattr(part, "_orig_mod") for part in network.modules()) or any(
        getattr(part, "_compiled_call_impl", None) is not None for part in network.modules()
    ):
        return "a compiled model (torch.compile) can't be pruned"
    layers = prunable_layers(network)
    if not layers:
        return f"{_NOT}it has no layers of a kind that CR-Diff prunes"
    if layers[0].group == ALL and not family.is_dit:
        return _OTHER
    for name in _CACHES:
        if getattr(network, name, False) is True:
            return f"{_NOT}a cache skips parts of its forwards ({name})"
    for layer in layers:
        if why := _unreadable(layer.module):
            return f"{_NOT}{why}"
    for part in network.modules():
        for hook in getattr(getattr(part, "_diffusers_hook", None), "hooks", ()):
            if hook in _HOOKS:
                return f"{_NOT}{_HOOKS[hook]}"
    return None


def _unreadable(layer: torch.nn.Module) -> str:
    """Why a layer's weight is not what it multiplies with; empty when it is."""
    weight: Any = layer.weight
    if hasattr(layer, "sdnq_dequantizer") or hasattr(weight, "quant_state"):
        return "its weights are quantized"
    if type(weight) not in (torch.nn.Parameter, torch.Tensor) or weight.dtype not in FLOATS:
        return f"its weights are quantized or stored as {str(weight.dtype).removeprefix('torch.')}"
    if weight.device.type == "meta":
        return "sequential offloading keeps its weights elsewhere between layers"
    return ""


class NetworkWeights(ModuleWeights):
    """A ``WeightSource``: the network of one pipeline. LoRAs are in before the pipeline is called.

    The host merges LoRAs into new weights, or lets peft add them beside or into the weights, before
    each pipeline call, and at steps between two forwards (modules/lora/networks.py), never in one.
    """

    def __init__(self, pipe: Any, network: torch.nn.Module, memory: str) -> None:
        self._pipe, self._held = weakref.ref(pipe), weakref.ref(network)
        super().__init__(lambda: alive(self._held), memory)

    def key(self) -> Hashable:
        """The network, its checkpoint, each weight's state, and the LoRAs by the host's notes."""
        pipe = self._pipe()
        info = getattr(pipe, "sd_checkpoint_info", None)
        file = str(getattr(info, "filename", ""))
        # Also what peft merged, and how strongly (modules/lora/extra_networks_lora.py).
        loras = repr(getattr(pipe, "loaded_loras", None))
        return self._held, file, loras, tuple(state_of(layer.module) for layer in self.layers())

    def settled(self, known: Callable[[], bool]) -> bool:
        """Always: see this class."""
        return True
