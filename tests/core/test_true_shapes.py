"""The released models' true shapes, on the meta device: no weights, no network."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.families import identify, identify_module
from crdiff_ext.pruning import by_pool
from tests.core.tiny import sd15_ldm_shapes, sdxl_ldm_shapes

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
MILLIONS = {
    "sd15": {"down": 68.8, "mid": 26.2, "up": 103.2},
    "sdxl": {"down": 550.5, "mid": 262.1, "up": 825.8},
}
TOTAL = {"sd15": 198.2, "sdxl": 1638.4}
LAYERS = {"sd15": 96, "sdxl": 420}
LDM = {"sd15": sd15_ldm_shapes, "sdxl": sdxl_ldm_shapes}


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def check_counts(weights, name):
    counts = {pool.name: sum(weight.tensor.numel() for weight in pool.members)
              for pool in by_pool(weights)}  # fmt: skip
    assert {group: round(n / 1e6, 1) for group, n in counts.items()} == MILLIONS[name]
    assert round(sum(counts.values()) / 1e6, 1) == TOTAL[name]
    assert len(weights) == LAYERS[name]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_ldm_counts(name):
    check_counts(prunable_parameters(meta(LDM[name]())), name)


@pytest.mark.parametrize(("name", "config"), [("sd15", SD15), ("sdxl", SDXL)])
def test_diffusers_counts_and_agreement_with_ldm(name, config):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(in_channels=4, out_channels=4, **config)
    weights = prunable_parameters(unet)
    check_counts(weights, name)
    ldm = prunable_parameters(meta(LDM[name]()))
    assert [(w.canonical, w.group, w.tensor.shape) for w in weights] == [
        (w.canonical, w.group, w.tensor.shape) for w in ldm
    ]
    assert identify_module(unet).name == name
    state = {f"unet.{key}": tuple(value.shape) for key, value in unet.state_dict().items()}
    assert identify(state).name == name
