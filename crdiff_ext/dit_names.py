"""Which weights of a diffusion transformer are pruned, by name: SD3 and FLUX, in either naming.

The authors' rule for transformers selects the names that end in ``attn1|attn2.to_q|to_k|to_v|
to_out.0``, ``ff.net.0.proj`` and ``ff.net.2``. In SD3 and FLUX these are the image stream's
feed-forward layers of the blocks that have two streams, and ``attn2`` of SD3.5's dual-attention
blocks. Nothing else ends so: joint attention is called ``attn``, the text stream's feed-forward
``ff_context``, and FLUX's single-stream blocks have ``proj_mlp`` and ``proj_out``; all that stays
dense.

In the original single files SD3 calls these layers ``joint_blocks.N.x_block.mlp.fc1|fc2``, FLUX
``double_blocks.N.img_mlp.0|2``. Both are stored as diffusers has them, row by row.
"""

from __future__ import annotations

import re

from .errors import CRDiffError

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "")
"""Where a transformer is in a larger checkpoint. No others: UNets have ``transformer_blocks`` too,
further down."""

_PREFIX = "(?P<prefix>" + "|".join(map(re.escape, PREFIXES)) + ")"
# ".base_layer" is where peft puts the original layer when it adds a LoRA beside it.
_END = r"(?:\.base_layer)?(?:\.weight)?"
_ATTENTION = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
_DIFFUSERS = re.compile(
    rf"{_PREFIX}transformer_blocks\.(?P<block>\d+)\.(?P<layer>{_ATTENTION}|ff\.net\.(?:0\.proj|2))"
    rf"{_END}"
)
_ORIGINAL = re.compile(
    rf"{_PREFIX}(?:joint_blocks\.(?P<joint>\d+)\.x_block\.mlp\.fc(?P<fc>[12])"
    rf"|double_blocks\.(?P<double>\d+)\.img_mlp\.(?P<mlp>[02])){_END}"
)
_FUSED = re.compile(rf"{_PREFIX}joint_blocks\.\d+\.x_block\.attn2\.qkv{_END}")
_FUSED_DIFFUSERS = re.compile(rf"{_PREFIX}transformer_blocks\.\d+\.attn[12]\.to_(?:qkv|kv){_END}")


def parse_dit(name: str) -> tuple[str, str] | None:
    """(prefix, canonical name) of a layer that the rule selects; None for any other name.

    >>> parse_dit("model.diffusion_model.double_blocks.3.img_mlp.2.weight")
    ('model.diffusion_model.', 'transformer_blocks.3.ff.net.2')
    """
    match = _DIFFUSERS.fullmatch(name)
    if match:
        return match["prefix"], f"transformer_blocks.{match['block']}.{match['layer']}"
    match = _ORIGINAL.fullmatch(name)
    if not match:
        return None
    block = match["joint"] or match["double"]
    first = "1" in (match["fc"] or "") or match["mlp"] == "0"
    return match["prefix"], f"transformer_blocks.{block}.ff.net.{'0.proj' if first else '2'}"


def refuse_fused(name: str) -> None:
    """Raises CRDiffError for a matrix in which several layers, each with its threshold, are one."""
    if _FUSED.fullmatch(name):
        raise CRDiffError(
            f"{name} holds query, key and value of attn2 in one matrix, where each has a threshold "
            "of its own: give the model as a diffusers folder"
        )
    if _FUSED_DIFFUSERS.fullmatch(name):
        raise CRDiffError(
            f"{name} fuses query, key and value: call unfuse_qkv_projections() before CR-Diff"
        )
