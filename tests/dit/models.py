"""Small SD3 and FLUX pipelines of random weights and the true structure, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crdiff_ext.dit_shapes import Fingerprint
from harness.embedded.tokenizer import build_tokenizer

WIDTH = 32
TEXT = 32
"""Of the T5's tokens; the two CLIPs of SD3 have half of it each."""

SD3_PRINT = Fingerprint((WIDTH, 16, 2, 2), TEXT, TEXT, 2)
FLUX_PRINT = Fingerprint((WIDTH, 64), TEXT, TEXT // 2, 2, 1, normed=2, guided=True)
SCHNELL_PRINT = Fingerprint((WIDTH, 64), TEXT, TEXT // 2, 2, 1, normed=2)
PRINTS = {SD3_PRINT: "sd3", FLUX_PRINT: "flux-dev", SCHNELL_PRINT: "flux-schnell"}
"""What ``crdiff_ext.dit_shapes.KNOWN`` has to hold for these models to be known."""


def sd3_transformer(dual: bool = False) -> Any:
    """SD3 in small: two blocks; SD3.5's second attention in the first one with ``dual``."""
    from diffusers import SD3Transformer2DModel

    more: dict[str, Any] = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if dual else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return SD3Transformer2DModel(
            sample_size=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=WIDTH // 8,
            joint_attention_dim=TEXT,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=TEXT,
            pos_embed_max_size=64,
            **more,
        ).eval()


def flux_transformer(guided: bool = True) -> Any:
    """FLUX in small: two blocks of two streams, one of one; ``guided``: dev, else schnell."""
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        return FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=WIDTH // 8,
            joint_attention_dim=TEXT,
            pooled_projection_dim=TEXT // 2,
            guidance_embeds=guided,
            axes_dims_rope=(2, 2, 4),
        ).eval()


def inputs(transformer: Any, seed: int = 0, batch: int = 2) -> dict[str, Any]:
    """Arguments of one call, as the pipelines make them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    given = {
        "encoder_hidden_states": noise(batch, 5, TEXT),
        "timestep": torch.full((batch,), 600.0),
        "return_dict": False,
    }
    if hasattr(transformer, "single_transformer_blocks"):
        ids = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1)
        ids = torch.cat([torch.zeros(16, 1), ids.reshape(16, 2)], 1)
        guided = transformer.config.guidance_embeds
        return given | {
            "hidden_states": noise(batch, 16, 64),
            "pooled_projections": noise(batch, TEXT // 2),
            "timestep": torch.full((batch,), 0.6),
            "guidance": torch.full((batch,), 3.5) if guided else None,
            "img_ids": ids,
            "txt_ids": torch.zeros(5, 3),
        }
    return given | {
        "hidden_states": noise(batch, 16, 8, 8),
        "pooled_projections": noise(batch, TEXT),
    }


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        mid_block_add_attention=False,
    )


def _t5() -> tuple[Any, Any]:
    """(a T5 encoder, a T5 tokenizer of single letters)."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *letters]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval(), tokenizer


def _clip(tokenizer: Any, cls: str) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT // 2,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=TEXT // 2,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    return getattr(transformers, cls)(config).eval()


def sd3_pipeline(scratch: Path, with_t5: bool = True) -> Any:
    """A StableDiffusion3Pipeline; ``scratch``: a folder for the tokenizer's files."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = build_tokenizer(scratch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        t5, t5_tokenizer = _t5() if with_t5 else (None, None)
        return StableDiffusion3Pipeline(
            transformer=sd3_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(),
            text_encoder=_clip(tokenizer, "CLIPTextModelWithProjection"),
            tokenizer=tokenizer,
            text_encoder_2=_clip(tokenizer, "CLIPTextModelWithProjection"),
            tokenizer_2=tokenizer,
            text_encoder_3=t5,
            tokenizer_3=t5_tokenizer,
        )


def flux_pipeline(scratch: Path, guided: bool = True) -> Any:
    """A FluxPipeline: dev, or schnell unless ``guided``."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    tokenizer = build_tokenizer(scratch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(14)
        t5, t5_tokenizer = _t5()
        return FluxPipeline(
            transformer=flux_transformer(guided),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided),
            vae=_vae(),
            text_encoder=_clip(tokenizer, "CLIPTextModel"),
            tokenizer=tokenizer,
            text_encoder_2=t5,
            tokenizer_2=t5_tokenizer,
        )


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "sd3": sd3_pipeline,
    "flux-dev": flux_pipeline,
    "flux-schnell": lambda scratch: flux_pipeline(scratch, guided=False),
}
