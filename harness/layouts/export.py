"""Write a diffusers Stable Diffusion pipeline as the original single file, its yaml beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from crdiff_ext.errors import CRDiffError
from harness.clip_vocabulary import write_clip_tokenizer
from harness.layouts.schedule import schedule_buffers
from harness.layouts.unet import UNET_PREFIX, unet_to_ldm
from harness.layouts.vae import VAE_PREFIX, vae_to_ldm
from harness.layouts.webui_yaml import webui_config
from harness.store import write_atomically

TEXT_PREFIX = "cond_stage_model.transformer.text_model."
_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


def ldm_state_dict(pipe: Any) -> dict[str, torch.Tensor]:
    """Every weight of a StableDiffusionPipeline with a CLIPTextModel, under its original name.

    Dtypes and values are kept; the noise schedule's buffers (float32) and ``position_ids`` (int64
    [1, positions]) are added, as in the published files.
    """
    unet = pipe.unet.state_dict()
    names = unet_to_ldm(unet)
    state = {UNET_PREFIX + names[name]: tensor for name, tensor in unet.items()}
    vae = vae_to_ldm(pipe.vae.state_dict())
    state |= {VAE_PREFIX + name: tensor for name, tensor in vae.items()}
    state |= _text_state(pipe.text_encoder.state_dict())
    state |= schedule_buffers(pipe.scheduler.alphas_cumprod)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _text_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # transformers 5.6 dropped the `text_model.` level from CLIPTextModel; hosts still expect it.
    text = {TEXT_PREFIX + n.removeprefix("text_model."): tensor for n, tensor in state.items()}
    positions = text[TEXT_PREFIX + "embeddings.position_embedding.weight"].shape[0]
    text[TEXT_PREFIX + "embeddings.position_ids"] = torch.arange(positions)[None]
    return text


def export_ldm(pipe: Any, path: Path, clip_folder: Path | None = None) -> list[Path]:
    """Write PATH (safetensors), PATH's yaml, and the CLIP folder that the yaml names.

    ``clip_folder`` defaults to ``PATH without suffix-clip``. The yaml names it by its path as
    given, so give an absolute one if the host runs in another directory. Returns the files
    written. Raises CRDiffError when the original code cannot express the model.
    """
    path = Path(path)
    clip_folder = clip_folder or path.with_name(f"{path.stem}-clip")
    config = webui_config(pipe, str(clip_folder))
    _save(ldm_state_dict(pipe), path)
    yaml_path = path.with_suffix(".yaml")
    write_atomically(yaml_path, yaml.safe_dump(config, sort_keys=False).encode())
    return [path, yaml_path, *export_clip_folder(pipe, clip_folder)]


def export_clip_folder(pipe: Any, folder: Path) -> list[Path]:
    """Write the text encoder's configuration and vocabulary as transformers 4 reads them.

    A1111 builds its tokenizer from ``vocab.json`` and ``merges.txt`` and does not know the single
    ``tokenizer.json`` that transformers 5 writes; the encoder's weights come from the checkpoint.
    """
    folder = Path(folder)
    tokenizer = pipe.tokenizer
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("end_of_word_suffix") != "</w>":
        raise CRDiffError(
            "this pipeline's tokenizer is not a CLIP byte-pair tokenizer, which is the only one "
            "that the original layout can use"
        )
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    written = write_clip_tokenizer(
        folder,
        (model["vocab"] | tokenizer.get_added_vocab(), merges),
        length=pipe.text_encoder.config.max_position_embeddings,
        specials={name: getattr(tokenizer, name) for name in _SPECIALS},
    )
    config = pipe.text_encoder.config.to_dict() | {"architectures": ["CLIPTextModel"]}
    text = json.dumps(config, indent=2, default=str)
    write_atomically(folder / "config.json", text.encode())
    return [*written, folder / "config.json"]


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file whole or not at all, without a second copy in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    except SafetensorError as error:
        raise CRDiffError(
            f"{path} could not be written ({error}): free some space on its disk and try again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
