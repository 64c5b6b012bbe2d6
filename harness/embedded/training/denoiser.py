"""Trains UNet and text encoder: first at 64x64, then the UNet alone at the native 128x128.

The order is that of the real models, which were pretrained at a small size and tuned at the one
that is called native afterwards.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from harness.embedded.architecture import make_scheduler, make_text_encoder, make_unet
from harness.embedded.scenes import all_specs, caption, split_of
from harness.embedded.training import data

_DROPPED = 0.1  # share of captions replaced by the empty one, for classifier-free guidance


class Latents:
    """Latents of rendered scenes and, for each, the row of its caption in ``captions``."""

    def __init__(self, folder: Path, vae: AutoencoderKL, size: int, n: int, seed: int) -> None:
        images, captions = data.scenes(folder, size, n, seed)
        path = folder / f"latents-{size}-{n}-{seed}.pt"
        if not path.exists():
            torch.save(data.encode(vae, images), path)
        self.latents: Tensor = torch.load(path, weights_only=True)
        # row 0 is the empty caption
        self.captions = ["", *(caption(s) for s in all_specs() if split_of(s) == "train")]
        row = {text: i for i, text in enumerate(self.captions)}
        self.rows = torch.tensor([row[text] for text in captions])

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(latents float32 [batch, 4, h, w], caption rows [batch]), some captions dropped."""
        index = torch.randint(len(self.latents), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < _DROPPED
        return self.latents[index].float(), self.rows[index].masked_fill(dropped, 0)


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Tensor:
    """Token ids [n, 77], padded as the pipeline pads them."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def v_loss(
    unet: nn.Module, latents: Tensor, context: Tensor, alphas: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1-a) x; timesteps stratified over a batch."""
    batch = len(latents)
    jitter = torch.rand(batch, generator=generator)
    t = ((torch.arange(batch) + jitter) / batch * 1000).long().clamp(0, 999)
    noise = torch.randn(latents.shape, generator=generator)
    a = alphas[t].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    target = a.sqrt() * noise - (1 - a).sqrt() * latents
    return F.mse_loss(unet(noisy, t, context).sample.float(), target)


class PretrainingTrainee:
    """UNet and text encoder together, at the pretraining size."""

    batch = 64

    def __init__(self, latents: Latents, tokenizer: PreTrainedTokenizerBase) -> None:
        unet, text_encoder = make_unet(), make_text_encoder(len(tokenizer))
        unet.set_attn_processor(AttnProcessor())  # faster than SDPA on so few positions
        self.module = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        self.latents, self.ids = latents, tokenize(tokenizer, latents.captions)
        self.alphas: Tensor = make_scheduler().alphas_cumprod

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """The v-prediction loss of a random batch."""
        latents, rows = self.latents.draw(self.batch, generator)
        context = self.module["text_encoder"](self.ids[rows])[0]
        return v_loss(self.module["unet"], latents, context, self.alphas, generator)


class TuningTrainee:
    """The UNet alone at the native size; the text encoder is frozen, its outputs are stored."""

    batch = 32

    def __init__(self, latents: Latents, unet: UNet2DConditionModel, context: Tensor) -> None:
        unet.set_attn_processor(AttnProcessor())
        self.module, self.latents, self.context = unet, latents, context
        self.alphas: Tensor = make_scheduler().alphas_cumprod

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """The v-prediction loss of a random batch."""
        latents, rows = self.latents.draw(self.batch, generator)
        return v_loss(self.module, latents, self.context[rows].float(), self.alphas, generator)


@torch.no_grad()
def embed(text_encoder: CLIPTextModel, ids: Tensor, batch: int = 64) -> Tensor:
    """Last hidden states float16 [n, 77, 96] of token ids [n, 77]."""
    text_encoder.eval()
    return torch.cat([text_encoder(part)[0].half() for part in ids.split(batch)])
