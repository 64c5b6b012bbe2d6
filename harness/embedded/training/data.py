"""Rendered scenes and their latents as arrays on disk, the same for the same seed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from harness.embedded.scenes import caption, render, sample_spec

_SHARD = 500


def _render_shard(
    shard: int, size: int, seed: int, split: str | None
) -> tuple[np.ndarray, list[str]]:
    rng = random.Random(f"{seed}/{size}/{shard}")
    images = np.empty((_SHARD, size, size, 3), np.uint8)
    captions = []
    for i in range(_SHARD):
        spec = sample_spec(rng, split)
        images[i] = np.asarray(render(spec, size, size, rng))
        captions.append(caption(spec))
    return images, captions


def scenes(folder: Path, size: int, n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """(images uint8 [n, size, size, 3], captions) of the train split; rendered once, then mapped.

    ``n`` must be a multiple of 500.
    """
    images_path = folder / f"scenes-{size}-{n}-{seed}.npy"
    captions_path = images_path.with_suffix(".json")
    if not captions_path.exists():
        if n % _SHARD:
            raise ValueError(f"the number of scenes must be a multiple of {_SHARD}")
        folder.mkdir(parents=True, exist_ok=True)
        job = partial(_render_shard, size=size, seed=seed, split="train")
        with get_context("spawn").Pool(os.cpu_count()) as pool:
            shards = pool.map(job, range(n // _SHARD), chunksize=1)
        np.save(images_path, np.concatenate([images for images, _ in shards]))
        captions_path.write_text(json.dumps([c for _, captions in shards for c in captions]))
    return np.load(images_path, mmap_mode="r"), json.loads(captions_path.read_text())


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, batch: int = 32) -> Tensor:
    """Scaled latent means, float16 [n, 4, h/8, w/8]."""
    parts = []
    for start in range(0, len(images), batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean = vae.encode(to_tensor(images[start : start + batch])).latent_dist.mean
        parts.append((mean.float() * vae.config.scaling_factor).half())
    return torch.cat(parts)


def pick(n: int, count: int, generator: torch.Generator) -> Sequence[int]:
    """``count`` random indices below ``n``, sorted (arrays on disk are read in order)."""
    indices: list[int] = torch.randint(n, (count,), generator=generator).sort().values.tolist()
    return indices
