"""CR-Diff as the authors' code does it, written anew and plainly, to compare costs with.

A second UNet, deep-copied and pruned in place; thresholds by ``kthvalue`` over a group's
concatenated magnitudes; both UNets called, their outputs combined by the formula as written.
(The authors' code copies the pipeline once more while it sets this up; that is left out here.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.outputs import prediction_of, with_prediction

INDEX_BYTES = 8


def kthvalue_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """What ``group_kthvalue`` takes at its peak: three arrays of magnitudes, one of int64."""
    return sum(tensor.numel() * (3 * tensor.element_size() + INDEX_BYTES) for tensor in tensors)


@torch.no_grad()
def group_kthvalue(tensors: Sequence[torch.Tensor], ratio: float) -> float | None:
    """The threshold of one group; None where ``int(N * ratio) == 0``."""
    magnitudes = torch.cat([tensor.detach().flatten() for tensor in tensors]).abs()
    n = int(magnitudes.numel() * ratio)
    return float(torch.kthvalue(magnitudes, n).values) if n else None


@torch.no_grad()
def pruned_copy(unet: torch.nn.Module, thresholds: Mapping[str, float | None]) -> torch.nn.Module:
    """A deep copy of the UNet with small weights set to zero in place."""
    second = copy.deepcopy(unet)
    for weight in prunable_parameters(second):
        threshold = thresholds[weight.group]
        if threshold is not None:
            weight.tensor.mul_(weight.tensor.abs() > threshold)
    return second


@contextmanager
def two_unets(
    unet: torch.nn.Module, thresholds: Mapping[str, float | None], k: float
) -> Iterator[None]:
    """Inside, calling ``unet`` calls it and its pruned copy, and combines."""
    second = pruned_copy(unet, thresholds)
    dense = unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = dense(*args, **kwargs)
        z_dense = prediction_of(output)
        z_pruned = prediction_of(second(*args, **kwargs))
        return with_prediction(output, (1 - k) * z_dense + k * z_pruned)

    unet.__dict__["forward"] = forward
    try:
        yield
    finally:
        del unet.__dict__["forward"]
