"""The prediction inside what a UNet gives: a tensor, a tuple, or an object with ``sample``."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from .errors import CRDiffError


def prediction_of(output: Any) -> torch.Tensor:
    """The predicted tensor, of any shape. Raises CRDiffError for outputs of an unknown kind."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    sample = getattr(output, "sample", None)
    if isinstance(sample, torch.Tensor):
        return sample
    raise CRDiffError(
        f"the UNet gave a {type(output).__name__}: a tensor, a tuple or an output with .sample is "
        "needed"
    )


def with_prediction(output: Any, z: torch.Tensor) -> Any:
    """A new output of the same kind with ``z`` for its prediction; all else that it holds stays."""
    if isinstance(output, torch.Tensor):
        return z
    if isinstance(output, (tuple, list)):
        members = [z, *output[1:]]
        return members if isinstance(output, list) else tuple(members)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return dataclasses.replace(output, sample=z)
    changed = copy.copy(output)
    changed.sample = z
    return changed
