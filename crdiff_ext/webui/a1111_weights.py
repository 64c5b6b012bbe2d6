"""The weights of a UNet in AUTOMATIC1111, and whether the host is about to merge LoRAs into them.

extensions-builtin/Lora/networks.py merges in place, inside the patched forward of each layer that
finds other LoRAs in its weight than are wanted, and backs up whatever weight it finds before that.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from modules import shared

from .module_weights import ModuleWeights, alive, state_of


class UNetWeights(ModuleWeights):
    """A ``WeightSource``: the UNet of one of the host's models. Keeps the model alive by nothing.

    Args:
        model: the host's ``sd_model``.
        memory: as in ``Settings``; recompute where the host saves memory itself (``--medvram``,
            ``--lowvram``), which copies would defeat, and which moves layers about.
    """

    def __init__(self, model: Any, memory: str) -> None:
        self._model = weakref.ref(model)
        memory = "recompute" if getattr(model, "lowvram", False) else memory
        super().__init__(lambda: alive(self._model).model.diffusion_model, memory)

    def key(self) -> Hashable:
        """The UNet, its checkpoint, and each weight's identity, version, type, and merged LoRAs.

        Nothing of it changes when ``--lowvram`` moves a layer: the Parameter stays, and setting
        its ``.data`` leaves the version. LoRAs are told by what the host notes on each layer
        (extensions-builtin/Lora/networks.py), which is right after a dense pass.
        """
        model = alive(self._model)
        unet, file = weakref.ref(model.model.diffusion_model), model.sd_checkpoint_info.filename
        return unet, file, tuple(state_of(layer.module) for layer in self.layers())

    def settled(self, known: Callable[[], bool]) -> bool:
        """Whether the next forward merges nothing into the prunable weights.

        As ``network_apply_weights`` and ``network_forward`` of extensions-builtin/Lora/networks.py
        will find it. That a plan is ``known`` covers what else may have written to the weights: one
        is only ever made right after a dense pass.
        """
        if "lycoris" in sys.modules:  # an extension that merges by an account of its own
            return False
        return merges_nothing([layer.module for layer in self.layers()]) and known()


def merges_nothing(layers: Sequence[Any]) -> bool:
    """Whether the host's LoRA extension, if there is one, leaves these layers' weights alone.

    That is so where each layer holds what is wanted by now, by the extension's own account. With
    ``lora_functional`` LoRAs run beside the weights, once what was merged before is taken out.
    """
    lora: Any = sys.modules.get("networks")
    loaded = getattr(lora, "loaded_networks", None)
    if loaded is None:
        # Without the extension layers have no account; with one, somebody else took its name.
        return not any(hasattr(layer, "network_current_names") for layer in layers)
    named = [layer for layer in layers if getattr(layer, "network_layer_name", None) is not None]
    if getattr(shared.opts, "lora_functional", False):
        return not loaded or all(
            getattr(layer, "network_weights_backup", None) is None for layer in layers
        )
    try:
        wanted = tuple((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in loaded)
    except AttributeError:  # another version's account: nothing is known
        return False
    return all(getattr(layer, "network_current_names", ()) == wanted for layer in named)
