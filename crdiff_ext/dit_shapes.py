"""What tells diffusion transformers apart: widths, numbers of blocks, and what blocks have.

All of it must agree with a released model; anything else (Chroma, FLUX with fewer blocks, editing
models with more input channels, other architectures) is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .dit_names import parse_dit

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fingerprint:
    """A transformer's shapes in short.

    Attributes:
        embed: shape of the matrix that takes the image's patches: [width, 16, 2, 2] in SD3, which
            cuts them out itself, [width, 64] in FLUX.
        context, pooled: widths of the text's tokens and of its pooled embedding.
        double, single: blocks with two streams (image and text), and with one.
        normed: two-stream blocks that normalise queries and keys.
        dual: blocks with a second attention, of the image alone.
        guided: whether guidance is an input, as in FLUX dev.
    """

    embed: tuple[int, ...]
    context: int
    pooled: int
    double: int
    single: int = 0
    normed: int = 0
    dual: int = 0
    guided: bool = False


KNOWN: dict[Fingerprint, str] = {
    Fingerprint((1536, 16, 2, 2), 4096, 2048, 24): "sd3",
    Fingerprint((1536, 16, 2, 2), 4096, 2048, 24, normed=24, dual=13): "sd35-medium",
    Fingerprint((2432, 16, 2, 2), 4096, 2048, 38, normed=38): "sd35-large",
    Fingerprint((3072, 64), 4096, 768, 19, 38, normed=19, guided=True): "flux-dev",
    Fingerprint((3072, 64), 4096, 768, 19, 38, normed=19): "flux-schnell",
}
"""The released models' families, by name in ``families.FAMILIES``."""

_EMBED = r"pos_embed\.proj|x_embedder\.proj|x_embedder|img_in"
_CONTEXT = r"context_embedder|txt_in"
_POOLED = r"time_text_embed\.text_embedder\.linear_1|y_embedder\.mlp\.0|vector_in\.in_layer"
_SINGLE = r"single_transformer_blocks\.\d+\.proj_out|single_blocks\.\d+\.linear2"
_NORMED = (
    r"transformer_blocks\.\d+\.attn\.norm_q|joint_blocks\.\d+\.x_block\.attn\.ln_q"
    r"|double_blocks\.\d+\.img_attn\.norm\.query_norm"
)
_DUAL = r"transformer_blocks\.\d+\.attn2\.to_out\.0|joint_blocks\.\d+\.x_block\.attn2\.proj"
_GUIDED = r"time_text_embed\.guidance_embedder\.linear_1|guidance_in\.in_layer"


def fingerprint(shapes: Shapes) -> Fingerprint | None:
    """The fingerprint of a transformer in either naming; None without its three embeddings.

    ``shapes``: names without the network's prefix.
    """
    embed, context, pooled = (_named(shapes, names) for names in (_EMBED, _CONTEXT, _POOLED))
    if [len(found) for found in (embed, context, pooled)] != [1, 1, 1]:
        return None
    if len(context[0]) != 2 or len(pooled[0]) != 2:
        return None
    layers = {parsed[1] for parsed in map(parse_dit, shapes) if parsed}
    return Fingerprint(
        embed[0],
        context[0][1],
        pooled[0][1],
        sum(name.endswith(".ff.net.2") for name in layers),
        single=len(_named(shapes, _SINGLE)),
        normed=len(_named(shapes, _NORMED)),
        dual=len(_named(shapes, _DUAL)),
        guided=bool(_named(shapes, _GUIDED)),
    )


def _named(shapes: Shapes, names: str) -> list[tuple[int, ...]]:
    """The shapes of the weights that are called one of ``names``, a pattern."""
    pattern = re.compile(rf"(?:{names})(?:\.base_layer)?\.(?:weight|scale)")
    return [tuple(shape) for name, shape in shapes.items() if pattern.fullmatch(name)]
