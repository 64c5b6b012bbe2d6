"""Drawing with an SDXL pipeline: two text encoders, pooled embeddings, sizes off the grid of 64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.generate import Painter
from harness.methods import DENSE, Drawing
from harness.plan import Batch, Item, Sampling
from harness.prompts import Prompt

SAMPLING = Sampling("0" * 64, 2, 3.0, "", "EulerDiscreteScheduler", "1" * 64, "fp32", "cpu", 0, 2)
CRDIFF = Drawing("amplified", Ratios(0.5, 0.5, 0.5), 1.5)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SDXL in small: three levels, the first without attention, text and size embeddings."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from harness.embedded.architecture import make_vae
    from harness.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=(1, 2, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        )
        return StableDiffusionXLPipeline(
            vae=make_vae(),
            text_encoder=CLIPTextModel(text),
            text_encoder_2=CLIPTextModelWithProjection(text),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=EulerDiscreteScheduler(),
            add_watermarker=True if _watermark_installed() else None,
        )


def _watermark_installed() -> bool:
    from diffusers.utils import is_invisible_watermark_available

    return bool(is_invisible_watermark_available())


@pytest.mark.parametrize("base", [DENSE, CRDIFF])
def test_the_unet_is_told_the_native_size(pipe: Any, base: Drawing) -> None:
    """original_size, crop, target_size, as SDXL's UNet gets them, in both halves of guidance."""
    seen = []

    def spy(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["added_cond_kwargs"]["time_ids"])

    items = (Item(0, Prompt("0", "a red circle"), 1, {}),)
    images = {}
    handle = pipe.unet.register_forward_pre_hook(spy, with_kwargs=True)
    try:
        for told in (None, Size(128, 96), Size(64, 72)):
            drawn = Batch(Size(64, 72), replace(base, told_size=told), items)
            images[told] = np.asarray(Painter(pipe, SAMPLING).draw(drawn)[0][0])
            assert len(seen) == SAMPLING.steps
            height, width = told or (64, 72)
            expected = torch.tensor([[height, width, 0, 0, height, width]] * 2)
            assert all(torch.equal(ids.long(), expected) for ids in seen)
            seen.clear()
    finally:
        handle.remove()
    assert images[None].shape == images[Size(128, 96)].shape == (64, 72, 3)
    assert not np.array_equal(images[None], images[Size(128, 96)])
    assert np.array_equal(images[None], images[Size(64, 72)])


@pytest.mark.parametrize("size", [Size(64, 64), Size(72, 104)])
def test_two_prompts(pipe: Any, size: Size) -> None:
    items = tuple(Item(i, Prompt(str(i), f"prompt {i}"), i, {}) for i in range(2))
    painter = Painter(pipe, SAMPLING)
    assert pipe.watermark is None
    drawn = [painter.draw(Batch(size, drawing, items))[0] for drawing in (DENSE, CRDIFF)]
    dense, crdiff = (np.stack([np.asarray(image) for image in images]) for images in drawn)
    assert dense.shape == (2, size.height, size.width, 3)
    assert not np.array_equal(dense[0], dense[1])
    assert not np.array_equal(dense, crdiff)
    assert set(painter._encode("prompt 0")) == {
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    }
