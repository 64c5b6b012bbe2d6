"""UNet weights: diffusers names -> names of the original single-file layout.

The original layout numbers its blocks flatly: with L res blocks a level, level i's res block j is
``input_blocks.{1 + i(L+1) + j}`` on the way down and ``output_blocks.{i(L+1) + j}`` on the way up;
a block's slot 0 is the res block, slot 1 the transformer, and the last slot the up-sampler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from crdiff_ext.errors import CRDiffError

UNET_PREFIX = "model.diffusion_model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(
    r"(?P<side>down_blocks|up_blocks)\.(?P<level>\d+)\."
    r"(?P<part>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<rest>.+)"
)
_MID = re.compile(r"mid_block\.(?P<part>resnets|attentions)\.(?P<index>\d+)\.(?P<rest>.+)")


def unet_to_ldm(names: Iterable[str]) -> dict[str, str]:
    """Map every diffusers UNet name (without prefix) to its LDM name (without prefix).

    Raises CRDiffError for a name that the original layout has no place for.
    """
    names = list(names)
    layers = _layers_per_block(names)
    attended = {m["level"] for m in _blocks(names) if m["side"] == "up_blocks" and _attends(m)}
    return {name: _one(name, layers, attended) for name in names}


def _blocks(names: list[str]) -> list[re.Match[str]]:
    return [m for m in map(_BLOCK.fullmatch, names) if m]


def _attends(match: re.Match[str]) -> bool:
    return match["part"] == "attentions"


def _layers_per_block(names: list[str]) -> int:
    """Res blocks a level on the way down; the layout has one number for the whole UNet."""
    per_level: dict[str, set[str]] = {}
    for match in _blocks(names):
        if match["side"] == "down_blocks" and match["part"] == "resnets":
            per_level.setdefault(match["level"], set()).add(match["index"])
    counts = {len(found) for found in per_level.values()}
    if len(counts) != 1:
        raise CRDiffError(
            "these weights have no original-layout form: every level of the UNet needs the same "
            "number of res blocks, so keep them as a diffusers folder"
        )
    return counts.pop()


def _one(name: str, layers: int, attended: set[str]) -> str:
    module, _, tail = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{tail}"
    if match := _MID.fullmatch(name):
        index, rest = int(match["index"]), match["rest"]
        if match["part"] == "resnets":
            return f"middle_block.{2 * index}.{_resnet(rest)}"
        return f"middle_block.{2 * index + 1}.{rest}"
    if match := _BLOCK.fullmatch(name):
        return _block(match, layers, attended)
    raise CRDiffError(
        f"the UNet weight {name} has no place in the original single-file layout, "
        "so keep this model as a diffusers folder"
    )


def _block(match: re.Match[str], layers: int, attended: set[str]) -> str:
    """One weight of a down or up block; see the module's docstring for the numbering."""
    level, index, rest = int(match["level"]), int(match["index"]), match["rest"]
    first = level * (layers + 1)
    part = match["part"]
    if part == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv.', 'op.', 1)}"
    if part == "upsamplers":
        slot = 2 if match["level"] in attended else 1
        return f"output_blocks.{first + layers}.{slot}.{rest}"
    base = (
        f"input_blocks.{1 + first + index}"
        if match["side"] == "down_blocks"
        else f"output_blocks.{first + index}"
    )
    return f"{base}.1.{rest}" if part == "attentions" else f"{base}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    module, _, tail = rest.rpartition(".")
    return f"{_RESNET[module]}.{tail}"
