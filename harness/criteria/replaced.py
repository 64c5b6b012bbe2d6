"""CR-Diff's two passes with any replaced weights in the pruned one, not only masked by magnitude.

The discipline is that of ``crdiff_ext.weights``: for a pruned pass a new Parameter goes into the
layer's own table, and the very same dense Parameter comes back after it, whatever happens; the
dense one's storage is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from crdiff_ext.amplify import Amplifier, PassCounts
from crdiff_ext.blocks import prunable_layers
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import forward_replaced, fresh

_HANDLE = "_crdiff_replaced"  # on our own forward function, to know it again


class ReplacedWeights:
    """A UNet with other weights for its pruned passes; nothing is changed outside ``attached()``.

    Args:
        unet: a diffusers or LDM UNet.
        weights: canonical layer name -> the weight [out, in] that a pruned pass sees, of the dense
            one's shape; layers that are not named stay as they are.
        k: amplification: z = k z_pruned + (1 - k) z_dense; at 1 only the pruned pass is made.

    Raises CRDiffError for a layer that is not there, a shape that differs, a weight that is no
    plain parameter, and k outside 0 to 3.
    """

    def __init__(
        self, unet: torch.nn.Module, weights: Mapping[str, torch.Tensor], k: float
    ) -> None:
        self.unet = unet
        self._amplifier = Amplifier(k)
        layers = {layer.canonical: layer.module for layer in prunable_layers(unet)}
        self._swaps: list[tuple[dict[str, Any], torch.nn.Parameter]] = []
        for name, weight in weights.items():
            table: dict[str, Any] = layers[name]._parameters if name in layers else {}
            dense = table.get("weight")
            if dense is None or dense.shape != weight.shape:
                raise CRDiffError(
                    f"layer {name} has no plain weight of shape {tuple(weight.shape)}: these "
                    "weights are for another UNet"
                )
            moved = weight.detach().to(device=dense.device, dtype=dense.dtype)
            self._swaps.append((table, torch.nn.Parameter(moved, requires_grad=False)))

    @property
    def stats(self) -> PassCounts:
        """``dense_passes`` and ``pruned_passes`` made so far."""
        return self._amplifier.stats

    @contextmanager
    def active(self) -> Iterator[None]:
        """Forwards inside see the replaced weights. Undone whatever happens."""
        with ExitStack() as stack:
            for table, replacement in self._swaps:
                # Before the change, so that an interrupt between the two finds it on the stack.
                stack.callback(table.__setitem__, "weight", table["weight"])
                table["weight"] = replacement
            yield

    @contextmanager
    def attached(self) -> Iterator[ReplacedWeights]:
        """Inside, calling the UNet makes both passes; at the end its forward is what it was.

        Raises CRDiffError when replaced weights are attached to this UNet already.
        """
        if hasattr(self.unet.__dict__.get("forward"), _HANDLE):
            raise CRDiffError("replaced weights are attached to this UNet: leave these first")
        with forward_replaced(self.unet, self._wrap):
            yield self

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def pruned(args: Any, kwargs: Any) -> Any:
            with self.active():
                return original(*fresh(args), **fresh(kwargs))

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._amplifier(
                lambda: original(*fresh(args), **fresh(kwargs)),
                (lambda: pruned(args, kwargs)) if self._swaps else None,
            )

        setattr(forward, _HANDLE, self)
        return forward
