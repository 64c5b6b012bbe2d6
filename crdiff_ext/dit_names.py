"""Which weights of a diffusion transformer are pruned, by name: SD3 and FLUX, in either naming.

The authors' rule for transformers selects the names that end in ``attn1|attn2.to_q|to_k|to_v|
to_out.0``, ``ff.net.0.proj`` and ``ff.net.2``. In SD3 and FLUX these are the image stream's
feed-forward layers of the blocks that have two streams, and ``attn2`` of SD3.5's dual-attention
blocks. Nothing else ends so: joint attention is called ``attn``, the text stream's feed-forward
``ff_context``, and FLUX's single-stream blocks have ``proj_mlp`` and ``proj_out``; all that stays
dense.

In the original single files, and in the WebUIs, SD3 calls these layers
``joint_blocks.N.x_block.mlp.fc1|fc2``, FLUX ``double_blocks.N.img_mlp.0|2``. Both are stored as
diffusers has them, row by row. SD3.5's ``attn2`` has ``proj`` there, and one matrix ``qkv`` whose
rows are to_q's, to_k's and to_v's, a third each.
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
    rf"|joint_blocks\.(?P<dual>\d+)\.x_block\.attn2\.(?P<attn2>qkv|proj)"
    rf"|double_blocks\.(?P<double>\d+)\.img_mlp\.(?P<mlp>[02])){_END}"
)
_ATTN2 = {"qkv": "attn2.to_qkv", "proj": "attn2.to_out.0"}
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
    if match["attn2"]:
        return match["prefix"], f"transformer_blocks.{match['dual']}.{_ATTN2[match['attn2']]}"
    block = match["joint"] or match["double"]
    first = "1" in (match["fc"] or "") or match["mlp"] == "0"
    return match["prefix"], f"transformer_blocks.{block}.ff.net.{'0.proj' if first else '2'}"


def parts_of(canonical: str) -> tuple[str, ...]:
    """The layers that a matrix holds, top to bottom, in equal numbers of rows: mostly itself.

    >>> parts_of("transformer_blocks.0.attn2.to_qkv")[1:]
    ('transformer_blocks.0.attn2.to_k', 'transformer_blocks.0.attn2.to_v')
    """
    base = canonical.removesuffix("to_qkv")
    return (canonical,) if base == canonical else tuple(f"{base}to_{name}" for name in "qkv")


def refuse_fused(name: str) -> None:
    """Raises CRDiffError for diffusers' own fusing, which hides the layers behind others."""
    if _FUSED_DIFFUSERS.fullmatch(name):
        raise CRDiffError(
            f"{name} fuses query, key and value: call unfuse_qkv_projections() before CR-Diff"
        )
