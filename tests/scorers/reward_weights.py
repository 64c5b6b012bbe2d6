"""Random weights under ImageReward's own names, and a vocabulary in BERT's format."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRUE = {"width": 1024, "blocks": 24, "image": 224, "text": 768, "layers": 12, "vocabulary": 30524}
SMALL = {"width": 128, "blocks": 2, "image": 64, "text": 64, "layers": 2, "vocabulary": 1002}
PATCH = 16


def med_config(sizes: dict[str, int]) -> dict[str, Any]:
    """med_config.json as THUDM/ImageReward has it (with the true sizes)."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes["text"],
        "initializer_range": 0.02,
        "intermediate_size": 4 * sizes["text"],
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": sizes["text"] // 64 or 1,
        "num_hidden_layers": sizes["layers"],
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": sizes["vocabulary"],
        "encoder_width": sizes["text"],
        "add_cross_attention": True,
    }


def checkpoint(sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Every tensor of ImageReward.pt, random, so scaled that activations keep their size."""
    make = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def normal(name: str, *shape: int, scale: float) -> None:
        state[name] = torch.randn(*shape, generator=make) * scale

    def linear(name: str, before: int, after: int) -> None:
        normal(f"{name}.weight", after, before, scale=1.2 * before**-0.5)
        normal(f"{name}.bias", after, scale=0.1)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=make)
        normal(f"{name}.bias", width, scale=0.1)

    width, text = sizes["width"], sizes["text"]
    eye = "blip.visual_encoder"
    normal(f"{eye}.cls_token", 1, 1, width, scale=0.5)
    normal(f"{eye}.pos_embed", 1, (sizes["image"] // PATCH) ** 2 + 1, width, scale=0.5)
    normal(f"{eye}.patch_embed.proj.weight", width, 3, PATCH, PATCH, scale=0.05)
    normal(f"{eye}.patch_embed.proj.bias", width, scale=0.1)
    for i in range(sizes["blocks"]):
        block = f"{eye}.blocks.{i}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", width, 4 * width)
        linear(f"{block}.mlp.fc2", 4 * width, width)
    norm(f"{eye}.norm", width)

    reader = "blip.text_encoder"
    state[f"{reader}.embeddings.position_ids"] = torch.arange(512)[None]
    normal(f"{reader}.embeddings.word_embeddings.weight", sizes["vocabulary"], text, scale=0.5)
    normal(f"{reader}.embeddings.position_embeddings.weight", 512, text, scale=0.5)
    norm(f"{reader}.embeddings.LayerNorm", text)
    for i in range(sizes["layers"]):
        layer = f"{reader}.encoder.layer.{i}"
        for kind, seen in (("attention", text), ("crossattention", width)):
            linear(f"{layer}.{kind}.self.query", text, text)
            linear(f"{layer}.{kind}.self.key", seen, text)
            linear(f"{layer}.{kind}.self.value", seen, text)
            linear(f"{layer}.{kind}.output.dense", text, text)
            norm(f"{layer}.{kind}.output.LayerNorm", text)
        linear(f"{layer}.intermediate.dense", text, 4 * text)
        linear(f"{layer}.output.dense", 4 * text, text)
        norm(f"{layer}.output.LayerNorm", text)

    linear("blip.vision_proj", width, 256)
    linear("blip.text_proj", text, 256)
    steps = (text, 1024, 128, 64, 16, 1)
    for place, before, after in zip((0, 2, 4, 6, 7), steps, steps[1:], strict=False):
        linear(f"mlp.layers.{place}", before, after)
    return state


def vocabulary(words: int) -> list[str]:
    """``words`` entries in the order of bert-base-uncased's file: specials at 0 and 100 to 103."""
    letters = string.ascii_lowercase + string.digits
    found = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    found += [*letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    found += ["photo", "dog", "street", "##ing"]
    return found + [f"[more{i}]" for i in range(words - len(found))]


def write(folder: Path, sizes: dict[str, int], seed: int = 5) -> Path:
    """A weights folder as a user has it. Returns it."""
    for name in ("image-reward", "bert-base-uncased"):
        (folder / name).mkdir(parents=True)
    torch.save(checkpoint(sizes, seed), folder / "image-reward" / "ImageReward.pt")
    (folder / "image-reward" / "med_config.json").write_text(json.dumps(med_config(sizes)))
    words = vocabulary(sizes["vocabulary"] - 2)
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


CAPTIONS = (
    "A photo of a dog crossing the street.",
    "",
    "Zebras; 3 of them, near a lake: " + "very " * 60 + "late",
    "un café — naïve, 雪 and [ENC] pizza!",
)
SHAPES = ((256, 256), (512, 320), (200, 640), (64, 48))
"""Height and width: square, upright, wide, small."""
EXPECTED_KEYS = 625
EXPECTED_PARAMETERS = 446_665_953


def independent_tokens(words: list[str], caption: str, longest: int = 35) -> list[int]:
    """BERT's greedy word pieces of plain ASCII text, written out: [longest], padded with 0."""
    number = {word: i for i, word in enumerate(words)}
    spaced = "".join(f" {c} " if c in string.punctuation else c for c in caption.lower())
    ids = []
    for word in spaced.split():
        start, pieces = 0, []
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in number:
                    pieces.append(number[piece])
                    start = end
                    break
            else:
                pieces, start = [number["[UNK]"]], len(word)
        ids += pieces
    ids = [number["[CLS]"], *ids[: longest - 2], number["[SEP]"]]
    return ids + [0] * (longest - len(ids))
