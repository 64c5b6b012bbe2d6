"""One set of random CLIP weights in open_clip's names and in transformers' names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.clip_vocabulary import openai_vocabulary, write_clip_tokenizer

SMALL = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 48,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 4,
        "layers": 2,
    },
}


def randomise(model: nn.Module, seed: int) -> None:
    """Every tensor random, of a size that keeps the attention from being flat."""
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=make)
            if name == "logit_scale":
                tensor.fill_(4.6)
            elif name.endswith("weight") and tensor.ndim == 1:  # layer norms
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.ndim == 1:
                tensor.copy_(0.2 * noise)
            else:
                fan = tensor[0].numel() if tensor.ndim > 1 else 1
                tensor.copy_(noise * (0.5 if "embedding" in name else 1.3 * fan**-0.5))


def register(name: str, folder: Path, config: dict[str, Any] = SMALL) -> None:
    """Let open_clip know a backbone."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)


def store_open_clip(weights: Path, name: str, seed: int = 3) -> nn.Module:
    """Random weights where the scorers look for them. Returns the model."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(name).eval()
    randomise(model, seed)
    folder = weights / "clip" / name
    folder.mkdir(parents=True)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return model


def store_pickscore(weights: Path, name: str, config: dict[str, Any], seed: int = 8) -> nn.Module:
    """Random weights of open_clip's model ``name`` as PickScore's folder. Returns the model."""
    import open_clip

    model = open_clip.create_model(name).eval()
    randomise(model, seed)
    as_transformers(model, config, "gelu").save_pretrained(weights / "pickscore")
    processor = weights / "pickscore" / "processor"
    write_clip_tokenizer(processor, openai_vocabulary(), specials={"pad_token": "!"})
    side = config["vision_cfg"]["image_size"]
    settings = {  # as laion's, but for the side
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": side,
    }
    (processor / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def as_transformers(model: nn.Module, config: dict[str, Any], activation: str) -> nn.Module:
    """The same weights in transformers' CLIPModel, float32, in evaluation mode."""
    from transformers import CLIPConfig, CLIPModel

    seen, read = config["vision_cfg"], config["text_cfg"]
    settings = CLIPConfig(
        projection_dim=config["embed_dim"],
        vision_config={
            "hidden_size": seen["width"],
            "intermediate_size": int(seen["width"] * seen.get("mlp_ratio", 4)),
            "num_hidden_layers": seen["layers"],
            "num_attention_heads": seen["width"] // seen.get("head_width", 64),
            "image_size": seen["image_size"],
            "patch_size": seen["patch_size"],
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
        },
        text_config={
            "hidden_size": read["width"],
            "intermediate_size": 4 * read["width"],
            "num_hidden_layers": read["layers"],
            "num_attention_heads": read["heads"],
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 1,
        },
    )
    found = CLIPModel(settings).eval()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        state |= _renamed(name, tensor)
    missing, unexpected = found.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing), missing
    return found


FIXED = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "logit_scale": "logit_scale",
}
STARTS = {
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "ln_final.": "text_model.final_layer_norm.",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in FIXED:
        return {FIXED[name]: tensor}
    if name in ("visual.proj", "text_projection"):
        ours = "visual_projection" if name == "visual.proj" else "text_projection"
        return {f"{ours}.weight": tensor.T.contiguous()}
    for start, ours in STARTS.items():
        if name.startswith(start):
            return {ours + name.removeprefix(start): tensor}
    if "resblocks." not in name:
        return {}  # the causal mask
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    number, _, rest = name.partition("resblocks.")[2].partition(".")
    layer = f"{tower}.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{x}_proj.{kind}": part.contiguous() for x, part in parts}
    part, _, kind = rest.rpartition(".")
    return {f"{layer}.{INSIDE[part]}.{kind}": tensor}
