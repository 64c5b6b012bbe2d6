"""ImageReward's network in transformers' own BLIP modules, from the official checkpoint.

ViT-L/16 (layer norms with eps 1e-6) feeds BERT-base with cross-attention; five linear layers
without activations turn the caption's [CLS] into a reward (Xu et al., "ImageReward", 2023). Every
tensor of the checkpoint is either loaded under another name or left out on purpose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crdiff_ext.errors import CRDiffError

VISION_EPS = 1e-6
"""ImageReward's ViT has it; transformers' default is 1e-5."""
HEAD_WIDTH = 64
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""The reward's standardisation, constants of the official code."""

LEFT_OUT = re.compile(
    r"blip\.(vision_proj|text_proj)\.|blip\.text_encoder\.embeddings\.position_ids"
)
"""In the checkpoint, but not in the reward: two projections, and a row of numbers 0, 1, 2, ..."""

RENAMED = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.norm(\d)\.",
        r"vision.encoder.layers.\1.layer_norm\2.",
    ),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.",
        r"vision.encoder.layers.\1.self_attn.qkv.",
    ),
    (
        r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
HEAD = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}
"""Where the head's linear layers are among its dropouts, and how wide each one's output is."""


class RewardNetwork(nn.Module):
    """Pixels float32 [n, 3, s, s], captions' tokens int64 [n, t] -> standardised rewards [n]."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        self.head = nn.Sequential(*(nn.Identity() for _ in range(max(HEAD) + 1)))
        width = text["hidden_size"]
        for place, after in HEAD.items():
            self.head[place] = nn.Linear(width, after)
            width = after

    def forward(self, pixels: Tensor, tokens: Tensor, attention: Tensor) -> Tensor:
        """``attention`` int64 [n, t]: 1 for tokens, 0 for padding."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens,
            attention_mask=attention,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return (self.head(read[:, 0])[:, 0] - MEAN) / DEVIATION


def renamed(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names, without those that are left out on purpose."""
    state = {}
    for name, tensor in checkpoint.items():
        if LEFT_OUT.match(name):
            continue
        for pattern, ours in RENAMED:
            new, hits = re.subn(pattern, ours, name)
            if hits:
                name = new
                break
        state[name] = tensor
    return state


def vision_config(checkpoint: Mapping[str, Tensor]) -> dict[str, Any]:
    """The vision tower's sizes as the checkpoint has them (official: ViT-L/16 at 224)."""
    patches = checkpoint["blip.visual_encoder.patch_embed.proj.weight"]
    width, side = patches.shape[0], patches.shape[-1]
    places = checkpoint["blip.visual_encoder.pos_embed"].shape[1] - 1
    blocks = {match[1] for name in checkpoint if (match := re.search(r"blocks\.(\d+)\.", name))}
    return {
        "hidden_size": width,
        "intermediate_size": checkpoint["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": side * round(places**0.5),
        "patch_size": side,
        "layer_norm_eps": VISION_EPS,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
    }


def text_config(med_config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The text tower from med_config.json; ``width`` of the vision tower, which it attends to."""
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "layer_norm_eps",
        "hidden_act",
        "pad_token_id",
    )
    return {
        **{name: med_config[name] for name in names},
        "encoder_hidden_size": width,
        "is_decoder": True,  # only so that the layers have cross-attention: it reads both ways
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def load_reward_network(checkpoint: Path, med_config: Path) -> RewardNetwork:
    """The network with the official weights, float32, in evaluation mode.

    Raises CRDiffError when the files are others: no tensor may be missing or left over.
    """
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        vision = vision_config(stored)
        settings = json.loads(med_config.read_text(encoding="utf-8"))
        network = RewardNetwork(vision, text_config(settings, vision["hidden_size"]))
        network.load_state_dict(renamed(stored), strict=True, assign=True)
    except (RuntimeError, KeyError, ValueError, EOFError, AttributeError) as error:
        raise CRDiffError(
            f"{checkpoint} and {med_config.name} are not ImageReward's: get both again from "
            "huggingface.co/THUDM/ImageReward"
        ) from error
    return network.float().eval().requires_grad_(False)
