"""Runs inside SD.Next's environment: writes small random pipelines, as diffusers lays them out.

Arguments: the installation's folder, the folder to fill. The tokenizer is the embedded model's.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

OUT = Path(sys.argv[2]) / "Diffusers"
TOKENIZER = Path(__file__).resolve().parents[2] / "harness/embedded/model/tokenizer"
SEED = "crdiff live, sdnext"
WIDE = 64


def text(kind: type, vocabulary: int) -> torch.nn.Module:
    """A CLIP text encoder."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDE,
        intermediate_size=2 * WIDE,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDE,
        eos_token_id=vocabulary - 1,
    )
    return kind(config)


def unet(channels: int = 4, **more: object) -> UNet2DConditionModel:
    """Stable Diffusion's net with fewer channels; transformers in down, mid and up."""
    shape = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDE,
        "attention_head_dim": 8,
        "sample_size": 16,
    }
    return UNet2DConditionModel(in_channels=channels, **{**shape, **more})


def vae() -> AutoencoderKL:
    """Four levels: eight pixels a latent pixel."""
    return AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
    )


def scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def sd(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text(CLIPTextModel, len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDE,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 2 * WIDE,
    }
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text(CLIPTextModel, len(tokenizer)),
        text_encoder_2=text(CLIPTextModelWithProjection, len(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(**added),
        scheduler=scheduler(),
    )


def draw(name: str, module: torch.nn.Module) -> None:
    """Noise from a generator of its own for each tensor, by checkpoint and name."""
    with torch.no_grad():
        for key, tensor in module.named_parameters():
            data = hashlib.sha256(f"{SEED}|{name}|{key}".encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(data, "big"))
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() >= 2:
                tensor.copy_(noise * (0.1 if "embedding" in key else tensor[0].numel() ** -0.5))
            else:
                tensor.copy_(torch.ones_like(tensor) if key.endswith("weight") else 0.1 * noise)


def main() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    for name, make in (("tiny-sd", sd), ("tiny-sd-b", sd), ("tiny-sdxl", sdxl)):
        pipe = make(tokenizer)
        for part, module in pipe.components.items():
            if isinstance(module, torch.nn.Module):
                draw(f"{name}|{part}", module)
        shutil.rmtree(OUT / name, ignore_errors=True)
        pipe.save_pretrained(OUT / name, safe_serialization=True)


main()
