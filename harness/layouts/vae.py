"""VAE weights: diffusers names and shapes -> those of the original single-file layout."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from crdiff_ext.errors import CRDiffError

VAE_PREFIX = "first_stage_model."

_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_LEVEL = re.compile(
    r"(?P<half>encoder|decoder)\.(?:down|up)_blocks\.(?P<level>\d+)\."
    r"(?P<part>resnets|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_MID = re.compile(
    r"(?P<half>encoder|decoder)\.mid_block\.(?P<part>resnets|attentions)\.(?P<index>\d+)\.(?P<rest>.+)"
)


def vae_to_ldm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a diffusers AutoencoderKL state dict; attention weights [C, C] become [C, C, 1, 1].

    The original decoder counts its levels from the last one. Raises CRDiffError for a weight that
    the original layout has no place for.
    """
    levels = 1 + max(int(m["level"]) for m in map(_LEVEL.fullmatch, state) if m)
    renamed = {}
    for name, tensor in state.items():
        new = _one(name, levels)
        if ".attn_1." in new and tensor.ndim == 2:
            # The original attention is made of 1x1 convolutions.
            tensor = tensor[:, :, None, None]
        renamed[new] = tensor
    return renamed


def _one(name: str, levels: int) -> str:
    if match := _MID.fullmatch(name):
        index, rest = int(match["index"]) + 1, match["rest"]
        if match["part"] == "resnets":
            return f"{match['half']}.mid.block_{index}.{_shortcut(rest)}"
        module, _, tail = rest.rpartition(".")
        return f"{match['half']}.mid.attn_{index}.{_ATTENTION[module]}.{tail}"
    if match := _LEVEL.fullmatch(name):
        level, rest = int(match["level"]), match["rest"]
        decoder = match["half"] == "decoder"
        base = f"decoder.up.{levels - 1 - level}" if decoder else f"encoder.down.{level}"
        if match["part"] == "resnets":
            return f"{base}.block.{match['index']}.{_shortcut(rest)}"
        return f"{base}.{'upsample' if decoder else 'downsample'}.{rest}"
    module, _, tail = name.rpartition(".")
    if module.endswith(".conv_norm_out"):
        return f"{module.removesuffix('conv_norm_out')}norm_out.{tail}"
    if module.split(".")[-1] in {"conv_in", "conv_out", "quant_conv", "post_quant_conv"}:
        return name
    raise CRDiffError(
        f"the VAE weight {name} has no place in the original single-file layout, "
        "so keep this model as a diffusers folder"
    )


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
