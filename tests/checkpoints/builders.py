"""Small pipelines of the published families' shapes, and single files of them, made on the spot."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from harness.layouts.export import ldm_state_dict
from harness.layouts.unet import UNET_PREFIX, unet_to_ldm
from harness.layouts.vae import VAE_PREFIX, vae_to_ldm
from harness.locate import read_json
from harness.single_file import CONFIGS, write_config_folder

TINY_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def shrunken(family: str) -> dict[str, Any]:
    """The bundled configuration of a family with narrow, shallow networks."""
    configs = copy.deepcopy(read_json(CONFIGS / f"{family}.json"))
    levels = len(configs["unet"]["block_out_channels"])
    configs["unet"] |= {
        "block_out_channels": [32 * min(2**level, 2) for level in range(levels)],
        "cross_attention_dim": 32,
        "sample_size": 8,
    }
    if isinstance(configs["unet"]["attention_head_dim"], list):
        configs["unet"]["attention_head_dim"] = [2, 4, 4, 4][:levels]
    configs["vae"] |= TINY_VAE
    configs["text_encoder"] |= TINY_TEXT | {"num_hidden_layers": 2, "projection_dim": 32}
    if "text_encoder_2" in configs:
        # diffusers tells SDXL's two encoders in a file apart by their widths
        second = {"hidden_size": 64, "num_hidden_layers": 3, "projection_dim": 64}
        configs["text_encoder_2"] |= TINY_TEXT | second
        configs["unet"] |= {
            "cross_attention_dim": 32 + 64,
            "transformer_layers_per_block": [1, 1, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64 + 6 * 8,
        }
    return configs


def build(configs: Mapping[str, Any], folder: Path) -> Any:
    """A pipeline of random weights from ``configs``, whose configuration is left in ``folder``."""
    import diffusers
    import transformers

    write_config_folder(configs, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        parts = {
            name: getattr(diffusers, configs[name]["_class_name"]).from_config(configs[name])
            for name in ("unet", "vae", "scheduler")
        }
        for name in ("text_encoder", "text_encoder_2"):
            if name in configs:
                config = transformers.CLIPTextConfig.from_pretrained(folder / name)
                parts[name] = getattr(transformers, configs[name]["architectures"][0])(config)
    for name in ("tokenizer", "tokenizer_2"):
        if name in configs:
            parts[name] = transformers.CLIPTokenizer.from_pretrained(folder / name)
    if "text_encoder_2" in configs:
        return diffusers.StableDiffusionXLPipeline(**parts)
    absent = {"safety_checker": None, "feature_extractor": None}
    return diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)


def single_file(pipe: Any, path: Path) -> Path:
    """Save a pipeline as the original single file of its family."""
    if hasattr(pipe, "text_encoder_2"):
        text = clip_names(pipe.text_encoder, "conditioner.embedders.0.transformer.text_model.")
        text |= openclip_names(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipe.text_encoder.config.hidden_act == "gelu":
        text = openclip_names(pipe.text_encoder, "cond_stage_model.model.")
    else:
        save_file(ldm_state_dict(pipe), path)
        return path
    unet = pipe.unet.state_dict()
    names = unet_to_ldm(unet)
    state = {UNET_PREFIX + names[name]: tensor for name, tensor in unet.items()}
    state |= {VAE_PREFIX + n: t for n, t in vae_to_ldm(pipe.vae.state_dict()).items()}
    save_file({n: t.detach().contiguous() for n, t in (state | text).items()}, path)
    return path


def clip_names(encoder: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """A CLIPTextModel's weights as the original files name them."""
    state = encoder.state_dict().items()
    return {prefix + name.removeprefix("text_model."): tensor for name, tensor in state}


def openclip_names(encoder: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """The weights as OpenCLIP packs them: q, k and v in one tensor, the projection transposed."""
    state = {n.removeprefix("text_model."): t for n, t in encoder.state_dict().items()}
    layers = encoder.config.num_hidden_layers
    new = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        new["text_projection"] = state["text_projection.weight"].T
    renames = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    renames |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for layer in range(layers):
        old, block = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for tail in ("weight", "bias"):
            qkv = [state[f"{old}.self_attn.{part}_proj.{tail}"] for part in "qkv"]
            new[f"{block}.attn.in_proj_{tail}"] = torch.cat(qkv)
            for theirs, ours in renames.items():
                new[f"{block}.{ours}.{tail}"] = state[f"{old}.{theirs}.{tail}"]
    return {prefix + name: tensor for name, tensor in new.items()}


def ldm_unet_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers module -> LDM module, by walking the UNet as the original constructor builds it.

    Independent of both the harness's and the core's arithmetic; covers res blocks, transformers
    and samplers (not the ends).
    """
    attends_down = ["CrossAttn" in name for name in config["down_block_types"]]
    attends_up = ["CrossAttn" in name for name in config["up_block_types"]]
    layers, levels = config["layers_per_block"], len(attends_down)
    names: dict[str, str] = {}
    block = 0  # input_blocks.0 is conv_in
    for level in range(levels):
        for layer in range(layers):
            block += 1
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{block}.0"
            if attends_down[level]:
                names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
        if level < levels - 1:
            block += 1
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
    for place, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        names[f"mid_block.{part}"] = f"middle_block.{place}"
    block = -1
    for level in range(levels):
        for layer in range(layers + 1):
            block += 1
            slots = [f"resnets.{layer}"]
            slots += [f"attentions.{layer}"] if attends_up[level] else []
            if layer == layers and level < levels - 1:
                slots.append("upsamplers.0")
            for slot, part in enumerate(slots):
                names[f"up_blocks.{level}.{part}"] = f"output_blocks.{block}.{slot}"
    return names
