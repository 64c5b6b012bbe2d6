"""What the weight sources of hosts with plain torch modules have in common (A1111, diffusers)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..blocks import PrunableLayer, PrunableWeight, prunable_layers, prunable_parameters
from ..pruning import PrunePlan
from ..weights import PrunedWeights


class ModuleWeights:
    """Most of a ``WeightSource``: a network whose layers hold what they multiply with.

    Args:
        network: gives the UNet or transformer; never kept, so that it may go.
        memory: as in ``Settings``.
    """

    def __init__(self, network: Callable[[], torch.nn.Module], memory: str) -> None:
        self._network = network
        self._memory = memory
        self._layers: list[PrunableLayer] = []
        self._made_for: tuple[PrunePlan, float] | None = None
        self._weights: PrunedWeights | None = None

    def weights(self) -> list[PrunableWeight]:
        """The effective weights, LoRA merged."""
        return prunable_parameters(self._network())

    def pruned(self, plan: PrunePlan, factor: float) -> AbstractContextManager[None]:
        """Inside, forwards see small weights times ``factor``."""
        if self._weights is None or self._made_for != (plan, factor):
            self._drop_copies()
            self._weights = PrunedWeights(self._network(), plan, self._memory, factor)
            self._made_for = plan, factor
        return self._weights.active()

    def free(self) -> None:
        """Let go of copies, and of the model's layers."""
        self._drop_copies()
        self._layers = []

    def layers(self) -> list[PrunableLayer]:
        """The prunable layers, looked for once until ``free``."""
        if not self._layers:
            self._layers = prunable_layers(self._network())
        return self._layers

    def _drop_copies(self) -> None:
        if self._weights is not None:
            self._weights.free()
        self._weights = self._made_for = None


def alive(reference: weakref.ref[Any]) -> Any:
    """What a weak reference refers to, which must be there while the host samples with it."""
    found = reference()
    assert found is not None, "the host sampled with a model that is gone"
    return found


def state_of(layer: Any) -> Hashable:
    """Identity, version and type of a layer's weight, and the LoRAs that the host merged into it.

    ``network_current_names`` is the host's note of these: extensions-builtin/Lora/networks.py in
    AUTOMATIC1111, modules/lora/networks.py in SD.Next, where lists are in it.
    """
    weight = layer.weight
    version = None if weight.is_inference() else weight._version
    loras = getattr(layer, "network_current_names", ())
    return id(weight), version, weight.dtype, repr(loras) if loras else ""
