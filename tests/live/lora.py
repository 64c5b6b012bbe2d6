"""A random LoRA for the shared host's checkpoint, in the naming that all trainers use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from crdiff_ext.blocks import prunable_names

RANK = 4


def write_lora(server: Any, name: str, seed: int = 3, strength: float = 0.3) -> Path:
    """Write ``models/Lora/name.safetensors`` for every prunable layer of the first checkpoint.

    ``strength``: how large the added matrix is beside the layer's own.
    """
    folder: Path = server.data / "models/Lora"
    tensors = {}
    generator = torch.Generator().manual_seed(seed)
    file = server.checkpoint
    if file.is_dir():  # a pipeline's folder
        file = file / "unet/diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as checkpoint:
        for key, parsed in prunable_names(checkpoint.keys()).items():
            out, wide = checkpoint.get_slice(key).get_shape()
            layer = "lora_unet_" + parsed.canonical.replace(".", "_")
            down = torch.randn(RANK, wide, generator=generator)
            up = torch.randn(out, RANK, generator=generator)
            up *= strength / (wide * RANK) ** 0.5
            tensors[f"{layer}.lora_down.weight"] = down
            tensors[f"{layer}.lora_up.weight"] = up
            tensors[f"{layer}.alpha"] = torch.tensor(float(RANK))
    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    return path
