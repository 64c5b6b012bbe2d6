"""The weights of a UNet of the Forge family, and how a pruned (or folded) pass gets its own.

A layer is *plain* when its forward uses the weight as it is stored. Where all layers are, the
core's ``PrunedWeights`` does it all. Otherwise (storage in fp8, weights swapped to the CPU, LoRA
applied at each forward, GGUF) the host itself changes every layer's weight for the pruned pass,
at each forward, where it can (``forge_online.py``).

Thresholds are on what is masked: the stored weights, where the cast to the type of the computation
is exact, else the effective ones.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from ..blocks import PrunableLayer, PrunableWeight, prunable_layers
from ..errors import CRDiffError
from ..families import Family
from ..pruning import PrunePlan
from ..settings import ALL, Ratios
from ..weights import PrunedWeights
from .forge_online import Online, is_cast, is_gguf, quantized

UNKNOWN_TRANSFORMER = (
    "this model is not supported: it is a transformer of another structure than SD3, SD3.5, FLUX "
    "dev and FLUX schnell have"
)
_SAMPLES = 16
_GOLDEN = (5**0.5 - 1) / 2
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_FLOAT16 = (torch.float16, torch.bfloat16)


class ForgeWeights:
    """One UNet's ``WeightSource``.

    Refers to the model weakly and lets go of its layers when it dies: at a refiner switch the
    host frees one model before it loads the next, and a generation's job must not keep both.

    Args:
        model: the patcher's ``model`` (KModel in Forge), whose ``diffusion_model`` is the UNet.
        device: where it computes.
        online: what the host can do besides plain weights.
        memory: as in ``weights.py``, for plain weights; others are masked at each forward.
        loras: which LoRAs are merged, for a model without a ``lora_loader`` (Forge Neo).
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        online: Online | None,
        memory: str = "auto",
        loras: Callable[[], Hashable] = lambda: None,
    ) -> None:
        self._model = weakref.ref(model, self._forget)
        self._device = device
        self._online = online
        self._memory = memory
        self._loras = loras
        self._found: list[PrunableLayer] | None = None
        self._swapper: tuple[PrunePlan, float, PrunedWeights] | None = None
        self._seen: dict[str, tuple[weakref.ref[torch.Tensor], int | None, bytes]] = {}

    def key(self) -> Hashable:
        """LoRAs by the host's own account, and a sample of each stored weight.

        The sample is taken again when the tensor is another one or was written to, so a move to
        another device or into the swap changes nothing, and neither does loading the same
        checkpoint again.
        """
        owner = self._unet_owner()
        loader = getattr(owner, "lora_loader", None)
        loras = self._loras() if loader is None else getattr(loader, "loaded_hash", None)
        digest = hashlib.blake2b(digest_size=16)
        for layer in self._layers():
            module: Any = layer.module
            digest.update(self._sample(layer.name, module.weight))
            if self._online is not None:
                digest.update(repr(self._online.mark(owner, module)).encode())
            if _scale(module) is not None:
                digest.update(self._sample(f"{layer.name}.scale", module.scale_weight))
        return loras, str(self._compute_dtype()), digest.digest()

    def settled(self, known: Callable[[], bool]) -> bool:
        """Always.

        LoRAs are merged before sampling (``refresh_loras`` of backend/patcher/base.py), or applied
        at each forward, before our mask, to a weight that is not kept.
        """
        return True

    def weights(self) -> Iterator[PrunableWeight]:
        """The weights as they are masked, effective ones made on the CPU as they are asked for."""
        for layer in self._layers():
            module: Any = layer.module
            weight = module.weight
            if not self._is_exact(module):
                weight = self._effective(layer)
            yield from layer.weights(weight)

    def pruned(self, plan: PrunePlan, factor: float) -> AbstractContextManager[None]:
        """Inside, forwards see small weights times ``factor``.

        Raises CRDiffError where they wouldn't.
        """
        modules = [layer.module for layer in self._layers()]
        if self._online is not None and not all(self._is_plain(m) for m in modules):
            return self._patched(self._online, plan, factor)
        if self._online is None and any(getattr(m, "weight_function", None) for m in modules):
            # Of a way that is not known here: LoRA would be added after our mask.
            raise CRDiffError(
                "LoRA on swapped weights can't be pruned in this WebUI: let it load the whole model"
            )
        return self._swapped(plan, factor)  # where weights are cast, pruned ones are too

    def free(self) -> None:
        """Drop masked copies."""
        if self._swapper is not None:
            self._swapper[2].free()

    def _forget(self, _: object) -> None:
        self._found = None
        self._swapper = None
        self._seen.clear()

    def _unet_owner(self) -> Any:
        model = self._model()
        if model is None:
            raise CRDiffError("the model was unloaded in the middle of a generation")
        return model

    def _layers(self) -> list[PrunableLayer]:
        owner = self._unet_owner()
        if self._found is None:
            self._found = prunable_layers(owner.diffusion_model)
        return self._found

    def _compute_dtype(self) -> torch.dtype | None:
        """The type of activations; None where the host keeps no account of it.

        In reForge and Forge Classic (``apply_model`` of ldm_patched/modules/model_base.py) it is
        the UNet's own, unless another one is set.
        """
        owner = self._unet_owner()
        accounts = (
            getattr(owner, "computation_dtype", None),
            getattr(owner, "manual_cast_dtype", None),
            getattr(owner.diffusion_model, "dtype", None),
        )
        return next((found for found in accounts if isinstance(found, torch.dtype)), None)

    def _is_exact(self, layer: Any) -> bool:
        """Whether masking the stored weight and the effective one is the same."""
        if self._is_packed(layer) or (self._online is not None and self._online.changes(layer)):
            return False
        if self._online is None or not is_cast(layer):
            return True
        return is_exact_cast(layer.weight.dtype, self._compute_dtype())

    def _is_plain(self, layer: Any) -> bool:
        """Whether the layer's forward uses its weight as it is stored."""
        if is_cast(layer) or self._is_packed(layer):
            return False
        return self._online is None or not self._online.changes(layer)

    @staticmethod
    def _is_packed(layer: Any) -> bool:
        """Whether the stored values are not the weight's own."""
        weight = layer.weight
        return _scale(layer) is not None or is_gguf(weight) or quantized(weight) is not None

    def _effective(self, layer: PrunableLayer) -> torch.Tensor:
        """The weight as the layer's forward has it (``forward`` of backend/operations.py)."""
        module: Any = layer.module
        if self._online is None:
            raise CRDiffError(f"layer {layer.name}: its weight is changed in a way not known here")
        with torch.no_grad():
            weight = self._online.effective(module, self._device, self._compute_dtype())
        return weight.detach().cpu()

    def _sample(self, name: str, weight: torch.Tensor) -> bytes:
        """Some of the weight's bytes, type and shape; kept for as long as it stays the same."""
        version = None if weight.is_inference() else weight._version
        known = self._seen.get(name)
        if known is not None and known[0]() is weight and known[1] == version:
            return known[2]
        stored = quantized(weight)
        flat = (weight if stored is None else stored).detach().data.reshape(-1)
        at = torch.tensor(_places(flat.numel()), device=flat.device)
        # As bytes, because not every type can be indexed.
        some = flat.view(torch.uint8).reshape(flat.numel(), -1)[at]
        taken = bytes(some.flatten().tolist()) + f"{weight.dtype}{tuple(weight.shape)}".encode()
        self._seen[name] = (weakref.ref(weight), version, taken)
        return taken

    @contextmanager
    def _swapped(self, plan: PrunePlan, factor: float) -> Iterator[None]:
        if self._swapper is None or self._swapper[:2] != (plan, factor):
            unet = self._unet_owner().diffusion_model
            self._swapper = plan, factor, PrunedWeights(unet, plan, self._memory, factor)
        with self._swapper[2].active():
            yield

    @contextmanager
    def _patched(self, online: Online, plan: PrunePlan, factor: float) -> Iterator[None]:
        """One more change in each layer; afterwards the layer has what it had."""
        with ExitStack() as stack:
            for layer in self._layers():
                threshold = layer.threshold(plan.thresholds)
                if threshold is not None:
                    stack.callback(online.add(layer.module, threshold, factor))
            yield


def _places(count: int) -> list[int]:
    """Some of ``count`` places, in rows and columns of their own in a matrix of any shape."""
    return [int(count * ((n * _GOLDEN) % 1)) for n in range(1, _SAMPLES + 1)]


def is_exact_cast(stored: torch.dtype, computed: torch.dtype | None) -> bool:
    """Whether every value of ``stored`` is one of ``computed``."""
    if stored == computed:
        return True
    if stored in _FLOAT8:
        return computed in (*_FLOAT16, torch.float32, torch.float64)
    if stored in _FLOAT16:
        return computed in (torch.float32, torch.float64)
    return stored == torch.float32 and computed == torch.float64


def why_unreadable(unet: Any, online: Online | None, family: Family) -> str | None:
    """A sentence when this UNet's weights can't be masked, else None."""
    layers = prunable_layers(unet)
    if not layers:
        return "this model is not supported: it has no layer that CR-Diff knows how to prune"
    for layer in layers:
        weight: Any = layer.module.weight
        if hasattr(weight, "bnb_quantized") or hasattr(weight, "quant_state"):
            return "this model is not supported: its weights are in 4 bits (nf4 or fp4)"
        if is_gguf(weight) and online is None:
            return "this model is not supported: its weights are GGUF, which can't be read here"
        why = None if online is None else online.why_unreadable(layer.module)
        if why is not None:
            return f"this model is not supported: {why}"
    if layers[0].group == ALL and not family.is_dit:
        return UNKNOWN_TRANSFORMER
    return None


def copy_bytes(unet: Any, ratios: Ratios) -> int:
    """What masked copies of the layers of all groups with a ratio take, in bytes.

    Raises CRDiffError for unequal ratios with a transformer.
    """
    weights: list[Any] = [
        layer.module.weight for layer in prunable_layers(unet) if ratios.of(layer.group)
    ]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _scale(layer: Any) -> torch.Tensor | None:
    """The factor of scaled fp8 checkpoints."""
    scale: torch.Tensor | None = getattr(layer, "scale_weight", None)
    return scale
