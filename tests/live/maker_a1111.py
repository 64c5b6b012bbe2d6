"""Run by the host's interpreter: tiny random checkpoints with a yaml beside each.

    python maker_a1111.py WEBUI_FOLDER FOLDER_TO_FILL

The nets are the published ones with fewer channels, so all block names are the real ones.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import os
import sys
import types
from pathlib import Path

WEBUI, OUT = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
os.environ["HF_HUB_OFFLINE"] = "1"
# What the host's modules/paths.py mutes: imports that nobody needs for sampling.
for name, attribute in (
    ("taming.modules.losses.lpips", "LPIPS"),
    ("sgm.data", "StableDataModuleFromConfig"),
):
    sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[name], attribute, None)
sys.path[:0] = [
    str(WEBUI / "repositories/stable-diffusion-stability-ai"),
    str(WEBUI / "repositories/generative-models"),
]

import open_clip  # noqa: E402
import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

CLIP = OUT / "tiny-clip"
WIDTH, LAYERS, HEADS = 64, 2, 4  # of the CLIP text encoder
SEED = 20240


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    text = make_clip_folder()
    config, state = sd1(text, "v1-inference.yaml")
    write("tiny-sd1", config, state)
    write("tiny-sd1-b", config, state)  # the same net, other weights
    config.model.params.parameterization = "v"
    write("tiny-sd1-v", config, state)
    write("tiny-sd1-inpaint", *sd1(text, "v1-inpainting-inference.yaml"))
    write("tiny-sdxl", *sdxl(text))


def make_clip_folder() -> CLIPTextConfig:
    """A small text encoder's configuration and CLIP's own vocabulary, from open_clip's copy."""
    CLIP.mkdir(exist_ok=True)
    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    base = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*base, *(c + "</w>" for c in base), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    specials = {
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    tokenizer = {
        **specials,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
    }
    for name, value in (
        ("vocab.json", vocabulary),
        ("tokenizer_config.json", tokenizer),
        ("special_tokens_map.json", specials),
    ):
        (CLIP / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    merged = "#version: 0.2\n" + "\n".join(merges) + "\n"
    (CLIP / "merges.txt").write_text(merged, encoding="utf-8")
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(CLIP)
    return config


def sd1(text: CLIPTextConfig, base: str) -> tuple:
    config = OmegaConf.load(WEBUI / "configs" / base)
    parameters = config.model.params
    parameters.unet_config.params.update(model_channels=32, num_heads=4, context_dim=WIDTH)
    parameters.first_stage_config.params.ddconfig.ch = 32
    parameters.cond_stage_config.params = {"version": str(CLIP)}
    vae = parameters.first_stage_config
    state = {
        **under("model.diffusion_model.", build(parameters.unet_config)),
        **under("first_stage_model.", build(vae, ddconfig=dict(vae.params.ddconfig))),
        **under("cond_stage_model.transformer.", CLIPTextModel(text).state_dict()),
    }
    return config, state


def sdxl(text: CLIPTextConfig) -> tuple:
    inference = WEBUI / "repositories/generative-models/configs/inference"
    config = OmegaConf.load(inference / "sd_xl_base.yaml")
    parameters = config.model.params
    parameters.network_config.params.update(
        model_channels=64,
        transformer_depth=[1, 2, 3],
        context_dim=WIDTH + 512,
        adm_in_channels=512 + 6 * 256,
    )
    parameters.first_stage_config.params.ddconfig.ch = 32
    embedders = parameters.conditioner_config.params.emb_models
    embedders[0].params.update(version=str(CLIP), layer_idx=LAYERS - 1)
    embedders[1].params.update(arch="ViT-B-32")
    second = open_clip.create_model("ViT-B-32", pretrained=None)
    del second.visual
    net = build(parameters.network_config, spatial_transformer_attn_type="softmax")
    state = {
        **under("model.diffusion_model.", net),
        **under("first_stage_model.", sgm_vae(parameters.first_stage_config.params)),
        **under("conditioner.embedders.0.transformer.", CLIPTextModel(text).state_dict()),
        **under("conditioner.embedders.1.model.", second.state_dict()),
    }
    return config, state


def sgm_vae(parameters: OmegaConf) -> dict:
    """The VAE's tensors, without the training class around it."""
    from sgm.modules.diffusionmodules.model import Decoder, Encoder

    shape = {**OmegaConf.to_container(parameters.ddconfig), "attn_type": "vanilla"}
    latent, embedded = shape["z_channels"], parameters.embed_dim
    return torch.nn.ModuleDict(
        {
            "encoder": Encoder(**shape),
            "decoder": Decoder(**shape),
            "quant_conv": torch.nn.Conv2d(2 * latent, 2 * embedded, 1),
            "post_quant_conv": torch.nn.Conv2d(embedded, latent, 1),
        }
    ).state_dict()


def build(node: OmegaConf, **override: object) -> dict:
    """The state dict of the class that a configuration's ``target`` names."""
    module, _, name = node.target.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    state: dict = made(**{**OmegaConf.to_container(node.params), **override}).state_dict()
    return state


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def write(name: str, config: OmegaConf, state: dict) -> None:
    path = OUT / f"{name}.safetensors"
    drawn = {key: draw(name, key, tensor) for key, tensor in state.items()}
    OmegaConf.save(config, path.with_suffix(".yaml"))
    save_file(drawn, path, metadata={"format": "pt"})


def draw(model: str, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Noise that keeps activations of about unit size; norms are 1, biases 0."""
    if not tensor.is_floating_point():
        return tensor.clone().contiguous()
    seed = int.from_bytes(hashlib.sha256(f"{SEED}|{model}|{key}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tensor.shape, generator=generator)
    if key.endswith("logit_scale"):
        value = tensor.clone()
    elif tensor.dim() >= 2:
        fan_in = tensor.shape[0] if key.endswith("text_projection") else tensor[0].numel()
        value = noise * (0.1 if "embedding" in key else fan_in**-0.5)
    elif key.endswith("weight"):
        value = torch.ones(tensor.shape)
    elif key.startswith(("cond_stage_model.", "conditioner.")):
        # Emphasis divides by the conditioning's mean (modules/sd_hijack_clip.py), which is exactly
        # 0 for a zero final_layer_norm.bias: NaN.
        value = noise * 0.1
    else:
        value = torch.zeros(tensor.shape)
    return value.to(torch.float16).contiguous()


main()
