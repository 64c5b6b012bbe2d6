"""One thread, and a small UNet with self-attention and feed-forward layers in all three groups."""

from __future__ import annotations

import pytest
import torch

from harness.bench.cost_subject import Subject, random_unet
from harness.config import Size

torch.set_num_threads(1)

TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
}


@pytest.fixture
def subject() -> Subject:
    """64x64 pixels, natively 96x96, batch 2, with plan."""
    unet = random_unet(TINY, torch.float32, "cpu")
    return Subject("tiny", unet, Size(64, 64), Size(96, 96), 2, "cpu")
