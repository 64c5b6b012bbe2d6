"""Trains the VAE on scenes and crops of several sizes, so that it is not what breaks first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from harness.embedded.architecture import make_vae
from harness.embedded.training import data

SCENES = {64: 24_000, 128: 16_000}
SEED = 1
# (source size, crop height, crop width, batch): about equal work a step, mostly small canvases
_CANVASES = (
    (64, 64, 64, 16),
    (128, 64, 64, 16),
    (128, 96, 96, 7),
    (64, 64, 64, 16),
    (128, 128, 128, 4),
    (128, 96, 128, 5),
)
_DECODER_CANVASES = (
    (64, 64, 64, 16),
    (64, 64, 64, 16),
    (128, 96, 128, 5),
    (64, 64, 64, 16),
    (128, 128, 128, 4),
)
_KL_WEIGHT = 2e-4


class VaeTrainee:
    """Mean squared and absolute error of the reconstruction, and a little KL."""

    def __init__(self, folder: Path) -> None:
        self.module = make_vae()
        self.images = {size: data.scenes(folder, size, n, SEED)[0] for size, n in SCENES.items()}

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """Reconstruction loss of a batch; the canvas changes with the step."""
        source, height, width, batch = _CANVASES[(step + 3 * rank) % len(_CANVASES)]
        x = _crops(self.images[source], height, width, batch, generator)
        posterior = self.module.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        reconstruction = self.module.decode(posterior.mean + posterior.std * noise).sample.float()
        error = reconstruction - x
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return error.square().mean() + 0.3 * error.abs().mean() + _KL_WEIGHT * kl


class DecoderTrainee:
    """The decoder alone, on small canvases above all: the encoder, and so every latent, stays.

    A scene of 64x64 has 8x8 latents, on which the first stage leaves shapes blurred; the latents
    get a little noise, as those that the denoiser makes have.
    """

    def __init__(self, folder: Path, vae: AutoencoderKL) -> None:
        self.module = vae.train()
        for part in (vae.decoder, vae.post_quant_conv):
            part.requires_grad_(True)
        self.images = {size: data.scenes(folder, size, n, SEED)[0] for size, n in SCENES.items()}

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """Reconstruction loss of a batch; the canvas changes with the step."""
        source, height, width, batch = _DECODER_CANVASES[(step + 3 * rank) % len(_DECODER_CANVASES)]
        x = _crops(self.images[source], height, width, batch, generator)
        with torch.no_grad():
            latents = self.module.encode(x).latent_dist.mean
        spread = 0.15 * latents.std() * torch.rand(len(x), 1, 1, 1, generator=generator)
        noisy = latents + spread * torch.randn(latents.shape, generator=generator)
        error = self.module.decode(noisy).sample.float() - x
        return error.square().mean() + 0.3 * error.abs().mean()


def _crops(
    images: np.ndarray, height: int, width: int, batch: int, generator: torch.Generator
) -> Tensor:
    """Random crops float32 [batch, 3, height, width], transposed half of the time."""
    chosen = images[data.pick(len(images), batch, generator)]
    top, left = (
        int(torch.randint(images.shape[1] - extent + 1, (), generator=generator))
        for extent in (height, width)
    )
    x = data.to_tensor(chosen[:, top : top + height, left : left + width])
    if torch.rand((), generator=generator) < 0.5:
        x = x.transpose(-1, -2).contiguous()
    return x


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, folder: Path) -> float:
    """1 / standard deviation of the latents of 1,024 native scenes, as Stable Diffusion sets it."""
    images = data.scenes(folder, 128, SCENES[128], SEED)[0][:1024]
    vae.register_to_config(scaling_factor=1.0)
    return float(1 / data.encode(vae, images).float().std())
