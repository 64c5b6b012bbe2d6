"""What differs between pipelines: the network that denoises, its noise, and how prompts reach it.

UNets and SD3 take latents as an image [channels, height / 8, width / 8]; FLUX takes them packed,
each 2x2 patch as one token. In all of them an image's noise is one fp32 tensor of that first shape
from a generator of the image's own, so the same seed gives the same noise whatever the method, the
batch and the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from crdiff_ext.errors import CRDiffError
from harness.config import Size

Embeddings = dict[str, torch.Tensor]


def denoiser(pipe: Any) -> Any:
    """The network that predicts noise: a pipeline's UNet, or its transformer."""
    transformer = getattr(pipe, "transformer", None)
    return pipe.unet if transformer is None else transformer


def kind_of(pipe: Any) -> Kind:
    """How ``pipe`` is to be called."""
    network = denoiser(pipe)
    if network is getattr(pipe, "unet", None):
        return Kind(pipe)
    return Flux(pipe) if hasattr(network, "single_transformer_blocks") else SD3(pipe)


class Kind:
    """SD1.5, SD2 and SDXL: a pipeline with a UNet."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.network = denoiser(pipe)

    @property
    def channels(self) -> int:
        """Channels of the latents that the network takes."""
        return int(self.network.config.in_channels)

    def check(self, sizes: Sequence[Size], negative: str) -> None:
        """Refuse what this pipeline can't draw. Raises CRDiffError."""
        if self.channels != self.pipe.vae.config.latent_channels:
            raise CRDiffError(
                f"the UNet takes {self.channels} channels: an inpainting model needs a picture and "
                "a mask, so it cannot be run here; use a text-to-image model"
            )

    def noise(self, size: Size, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Initial latents [len(generators), ...], fp32, on the CPU."""
        scale = self.pipe.vae_scale_factor
        shape = (1, self.channels, size.height // scale, size.width // scale)
        return torch.cat([torch.randn(shape, generator=one) for one in generators])

    def encode(self, text: str, negative: str, guidance: float, device: str) -> Embeddings:
        """The pipeline's embedding arguments for one prompt, [1, ...]."""
        guided = guidance > 1
        encoded = self.pipe.encode_prompt(
            prompt=text,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            # None where empty, as the pipelines' own default: SDXL then uses zeros.
            negative_prompt=(negative or None) if guided else None,
            **self._more_prompts(),
        )
        names = ["prompt_embeds", "negative_prompt_embeds"]
        if len(encoded) == 4:  # SDXL, SD3: also the pooled embeddings
            names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        pairs = zip(names, encoded, strict=True)
        return {name: value for name, value in pairs if value is not None}

    def _more_prompts(self) -> dict[str, Any]:
        return {}


class SD3(Kind):
    """SD3 and SD3.5, whose position embeddings end at a largest size."""

    def check(self, sizes: Sequence[Size], negative: str) -> None:
        """Refuse what this pipeline can't draw. Raises CRDiffError."""
        super().check(sizes, negative)
        config = self.network.config
        most = config.pos_embed_max_size * config.patch_size * self.pipe.vae_scale_factor
        for size in sizes:
            if max(size) > most:
                raise CRDiffError(
                    f"size {size} does not work with this model: no side may be longer than {most}"
                )

    def _more_prompts(self) -> dict[str, Any]:
        return {"prompt_2": None, "prompt_3": None}  # the first one, for all three encoders


class Flux(Kind):
    """FLUX dev and schnell: packed latents; guidance, if any, is an input of the network."""

    @property
    def channels(self) -> int:
        """Channels of the latents before 2x2 patches are packed into tokens."""
        return int(self.network.config.in_channels) // 4

    def check(self, sizes: Sequence[Size], negative: str) -> None:
        """Refuse what this pipeline can't draw. Raises CRDiffError."""
        super().check(sizes, negative)
        if negative:
            raise CRDiffError(
                "FLUX was trained with its guidance as a number, so that it makes no pass for a "
                "negative prompt: leave out --negative"
            )

    def noise(self, size: Size, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Initial latents, packed: [len(generators), height / 16 x width / 16, 64], fp32."""
        latents = super().noise(size, generators)
        count, channels, height, width = latents.shape
        patches = latents.view(count, channels, height // 2, 2, width // 2, 2)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)

    def encode(self, text: str, negative: str, guidance: float, device: str) -> Embeddings:
        """The pipeline's embedding arguments for one prompt, [1, ...]."""
        tokens, pooled, _ = self.pipe.encode_prompt(
            prompt=text,
            prompt_2=None,
            device=device,
            num_images_per_prompt=1,
            # Of the T5's tokens: schnell was made for half as many.
            max_sequence_length=512 if self.network.config.guidance_embeds else 256,
        )
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
