"""Hosts that can change a layer's weight at each forward, and how: told by what they have.

Forge 2 has "online LoRAs" (``extra_weight_calculators`` of ``backend/patcher/lora.py``). Forge Neo
has a list of functions on each layer instead (``weight_function`` of ``backend/operations.py``),
and so has reForge (``ldm_patched/modules/ops.py``). All apply them last, to the weight in the type
and on the device of the computation, and inside of the host's copying stream, where a hook before
the layer would race.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

import torch

from ..blocks import Threshold
from ..pruning import prune

logger = logging.getLogger("crdiff")

PATCH = "crdiff"
"""Our kind of patch in ``backend.patcher.lora.extra_weight_calculators``."""
_ONLINE = "forge_online_loras"  # Forge 2: a layer's patches by parameter name
_FUNCTIONS = "weight_function"  # Forge Neo, reForge: a layer's functions of the weight
_ABSENT: Any = object()


class Online(Protocol):
    """What a host can do with a layer's weight at each forward."""

    def register(self) -> None:
        """Make the host know our kind of change; harmless to repeat."""

    def changes(self, layer: Any) -> Sequence[Any]:
        """What the host itself does to the layer's weight at each forward, besides casting it."""

    def mark(self, model: Any, layer: Any) -> Hashable:
        """Something that differs when ``changes`` do, for as long as the process lives."""

    def effective(self, layer: Any, device: torch.device, dtype: Any) -> torch.Tensor:
        """The weight as the layer's forward has it, when it computes in ``dtype``."""

    def add(self, layer: Any, threshold: Threshold, factor: float) -> Callable[[], None]:
        """From now on small weights come times ``factor``; what is returned takes it back."""

    def why_unreadable(self, layer: Any) -> str | None:
        """What keeps this layer from being pruned (a part of a sentence), else None."""


@dataclass(frozen=True)
class OnlineLoras:
    """Forge 2.

    Attributes:
        calculators: backend.patcher.lora.extra_weight_calculators.
        read: backend.operations.get_weight_and_bias.
        dequantize: backend.operations_gguf.dequantize_tensor.
    """

    calculators: MutableMapping[str, Callable[[torch.Tensor, float, Any], torch.Tensor]]
    read: Callable[..., tuple[torch.Tensor, Any]]
    dequantize: Callable[[Any], torch.Tensor]

    def register(self) -> None:
        """As in ``Online``."""
        self.calculators[PATCH] = lambda weight, strength, v: prune(weight, *v)

    def changes(self, layer: Any) -> Sequence[Any]:
        """As in ``Online``: lists of strength, what to add, strength of the model, and more."""
        return list((getattr(layer, _ONLINE, None) or {}).get("weight", ()))

    def mark(self, model: Any, layer: Any) -> Hashable:
        """As in ``Online``; the files are told by ``lora_loader.loaded_hash``."""
        return repr([(patch[0], patch[2]) for patch in self.changes(layer)])

    def effective(self, layer: Any, device: torch.device, dtype: Any) -> torch.Tensor:
        """As in ``Online`` (``forward`` of backend/operations.py)."""
        packed = is_gguf(layer.weight)
        cast = None
        if packed or is_cast(layer):
            cast = {"device": device, "dtype": dtype}
        weight, _ = self.read(
            layer, weight_args=cast, weight_fn=self.dequantize if packed else None
        )
        return weight

    def add(self, layer: Any, threshold: Threshold, factor: float) -> Callable[[], None]:
        """As in ``Online``: one more patch in a dict of the layer's own."""
        attributes = layer.__dict__
        before = attributes.get(_ONLINE, _ABSENT)
        mine = [1.0, (PATCH, (threshold, factor)), 1.0, None, None]
        patches = {} if before is _ABSENT else before
        attributes[_ONLINE] = {**patches, "weight": [*self.changes(layer), mine]}
        return lambda: _restore(attributes, _ONLINE, before)

    def why_unreadable(self, layer: Any) -> str | None:
        """As in ``Online``: none but those that no host can read."""
        return None


class _Functions:
    """A list of functions on each layer."""

    def register(self) -> None:
        """As in ``Online``: nothing to make known."""

    def changes(self, layer: Any) -> Sequence[Any]:
        """As in ``Online``: functions of the weight (``LowVramPatch`` of the host's patcher).

        The list is the class's own, shared by all, where the layer has none: never write to it.
        """
        return list(getattr(layer, _FUNCTIONS, None) or ())

    def mark(self, model: Any, layer: Any) -> Hashable:
        """As in ``Online``: the host gives each set of LoRAs a number of its own.

        Merged ones show in the weights, and there is then no need to tell one load of the same
        checkpoint from the next.
        """
        changed = bool(self.changes(layer))
        return str(getattr(model, "current_weight_patches_uuid", None)) if changed else ""

    def add(self, layer: Any, threshold: Threshold, factor: float) -> Callable[[], None]:
        """As in ``Online``: one more function, the last, in a list of the layer's own."""
        attributes = layer.__dict__
        before = attributes.get(_FUNCTIONS, _ABSENT)
        attributes[_FUNCTIONS] = [
            *self.changes(layer),
            lambda weight: prune(weight, threshold, factor),
        ]
        return lambda: _restore(attributes, _FUNCTIONS, before)


@dataclass(frozen=True)
class WeightFunctions(_Functions):
    """Forge Neo.

    Attributes:
        read: backend.operations.weights_manual_cast.
        dequantize: backend.operations_gguf.dequantize_tensor.
        in_fp8: backend.operations.ForgeOperationsFP8.Linear, which multiplies in fp8.
    """

    read: Callable[..., tuple[torch.Tensor, Any, Any]]
    dequantize: Callable[[Any], torch.Tensor]
    in_fp8: Any = None

    def effective(self, layer: Any, device: torch.device, dtype: Any) -> torch.Tensor:
        """As in ``Online`` (``forward`` of backend/operations.py)."""
        packed = is_gguf(layer.weight)
        cast = packed or quantized(layer.weight) is not None
        if cast or is_cast(layer):
            unpack = self.dequantize if packed else None
            read, _, _ = self.read(layer, dtype=dtype, device=device, weight_fn=unpack)
            # Quantized ones are unpacked by the host only if it has something to do with them.
            return read.to(dtype) if quantized(read) is None else read.dequantize().to(dtype)
        weight: torch.Tensor = layer.weight.detach().clone()
        for function in self.changes(layer):
            weight = function(weight)
        return weight

    def why_unreadable(self, layer: Any) -> str | None:
        """As in ``Online``: a layer that multiplies in 8 or 4 bits as long as nothing changes it.

        A pruned pass would make it multiply in full, and amplification would amplify that too.
        """
        fast = self.in_fp8 is not None and isinstance(layer, self.in_fp8)
        if fast and layer.weight.dtype == torch.float8_e4m3fn:
            return "its layers multiply in 8 bits (--fast-fp8)"
        if quantized(layer.weight) is not None and not getattr(layer, "_full_precision_mm", False):
            return "its layers multiply in 8 or 4 bits"
        return None


@dataclass(frozen=True)
class CastFunctions(_Functions):
    """reForge.

    Attributes:
        read: ldm_patched.modules.ops.cast_bias_weight.
    """

    read: Callable[..., tuple[torch.Tensor, Any]]

    def effective(self, layer: Any, device: torch.device, dtype: Any) -> torch.Tensor:
        """As in ``Online`` (``Linear.forward`` of ldm_patched/modules/ops.py)."""
        if not is_cast(layer) and not self.changes(layer):
            weight: torch.Tensor = layer.weight
            return weight
        return self.read(layer, dtype=dtype, device=device)[0]

    def why_unreadable(self, layer: Any) -> str | None:
        """As in ``Online``: a scale comes after the functions, or the layer multiplies in 8 bits.

        ``fp8_ops`` and ``scaled_fp8_ops`` have the attribute, with a scale or without one.
        """
        if not hasattr(layer, _FUNCTIONS):
            return "its layers are not the WebUI's own"
        if hasattr(layer, "scale_weight"):
            return "its weights are in 8 bits with a scale, or multiplied in 8 bits"
        return None


def is_cast(layer: Any) -> bool:
    """Whether a layer's forward casts its weight, as each host calls it."""
    marks = ("parameters_manual_cast", "ldm_patched_cast_weights")
    return any(getattr(layer, mark, False) for mark in marks)


def is_gguf(weight: Any) -> bool:
    """Whether a weight is packed as in GGUF files."""
    return getattr(weight, "gguf_cls", None) is not None


def quantized(weight: Any) -> torch.Tensor | None:
    """The packed values of a quantized weight (comfy_kitchen's ``QuantizedTensor``), else None."""
    packed: torch.Tensor | None = getattr(weight, "_qdata", None)
    return packed


def find_online() -> Online | None:
    """How this host changes weights at each forward; None where it doesn't, or in no known way."""
    try:
        return _find_backend() or _find_patched()
    except AttributeError as error:  # a later one
        logger.warning("this WebUI's weights can't be changed at each forward: %s", error)
        return None


def _find_backend() -> Online | None:
    lora = first_module("backend.patcher.lora")
    operations = first_module("backend.operations")
    gguf = first_module("backend.operations_gguf")
    if lora is None or operations is None or gguf is None:
        return None
    if hasattr(lora, "extra_weight_calculators"):
        return OnlineLoras(
            lora.extra_weight_calculators, operations.get_weight_and_bias, gguf.dequantize_tensor
        )
    if hasattr(operations.ForgeWeights, _FUNCTIONS):
        fast = getattr(operations, "ForgeOperationsFP8", None)
        return WeightFunctions(
            operations.weights_manual_cast,
            gguf.dequantize_tensor,
            getattr(fast, "Linear", None),
        )
    return None


def _find_patched() -> Online | None:
    operations = first_module("ldm_patched.modules.ops")
    if hasattr(getattr(operations, "CastWeightBiasOp", None), _FUNCTIONS):
        return CastFunctions(operations.cast_bias_weight)  # type: ignore[union-attr]
    return None


def first_module(*names: str) -> ModuleType | None:
    """The first of these host modules that there is."""
    for name in names:
        try:
            if find_spec(name) is not None:
                return importlib.import_module(name)
        except ModuleNotFoundError:  # a parent package is missing
            continue
    return None


def _restore(attributes: MutableMapping[str, Any], name: str, before: Any) -> None:
    if before is _ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = before
