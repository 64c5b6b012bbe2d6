"""Model families, told by the shapes of their weights, and the sizes each was trained for.

What shapes can't tell:
- SD2 base (512, epsilon) and SD2.1 v (768, v-prediction) are alike: the scheduler's prediction type
  decides, and without it the UNet's ``sample_size`` (it comes second because 512-base checkpoints
  are often given the 768 model's configuration). With neither the family is "sd2", without a
  native size.
- Turbo, Lightning and other re-trained weights of the same shape count as their parent.

Diffusion transformers are known only where all of ``dit_shapes.Fingerprint`` agrees. What is native
to them follows the same rule as for SDXL (they too were trained at many aspect ratios around 1024 x
1024); that some of them were also shown other areas is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .blocks import prunable_names, unet_prefix
from .dit_shapes import KNOWN, fingerprint
from .errors import CRDiffError
from .settings import Ratios

EMBEDDED_CHANNELS = (64, 128)
EMBEDDED_CONTEXT = 96
EMBEDDED_NATIVE = (128, 128)
"""Our own small model: channels of its two levels, cross-attention width, native size."""


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the key under which ratios are stored.
        label: the name for people.
        native: (height, width) in pixels; None when it is not known.
        step: both sides of an image must be multiples of this.
        aspect: "sd" or "sdxl": which limit of aspect ratio still counts as native.
        is_dit: a diffusion transformer: one ratio for all layers, and a threshold for each.
    """

    name: str
    label: str
    native: tuple[int, int] | None
    step: int = 8
    aspect: str = "sd"
    is_dit: bool = False

    def told(self, ratios: Ratios) -> str:
        """Such as "ratios 0.3 / 0.2 / 0.1", or "ratio 0.1" where there is one for all layers."""
        one = self.is_dit and ratios.shared is not None
        return f"ratio {ratios.shared:g}" if one else f"ratios {ratios}"

    def check(self, ratios: Ratios) -> None:
        """Refuse ratios that this family can't have. Raises CRDiffError."""
        if self.is_dit and ratios.shared is None:
            raise CRDiffError(
                f"{self.label} has one ratio for all layers: give one number, such as "
                f"{ratios.down:g} for down, mid and up alike, and not {ratios}"
            )


_BASES = (
    Family("sd15", "SD1.5", (512, 512)),
    Family("sd2-base", "SD2 base", (512, 512)),
    Family("sd2-v", "SD2.1 v", (768, 768)),
    Family("sd2", "SD2 (512 base or 768 v: not known which)", None),
    Family("sdxl", "SDXL", (1024, 1024), aspect="sdxl"),
    Family("sdxl-refiner", "SDXL refiner", (1024, 1024), aspect="sdxl"),
)
_EMBEDDED = Family("embedded", "embedded model", EMBEDDED_NATIVE)
_DITS = tuple(
    Family(name, label, (1024, 1024), step=16, aspect="sdxl", is_dit=True)
    for name, label in (
        ("sd3", "SD3"),
        ("sd35-medium", "SD3.5 medium"),
        ("sd35-large", "SD3.5 large"),
        ("flux-dev", "FLUX dev"),
        ("flux-schnell", "FLUX schnell"),
    )
)
UNKNOWN = Family("unknown", "an unknown model", None)


def _variant(base: Family, suffix: str, native: tuple[int, int] | None) -> Family:
    return Family(f"{base.name}-{suffix}", f"{base.label} {suffix}", native, base.step, base.aspect)


_ALL = [*_BASES, _EMBEDDED, *_DITS, UNKNOWN]
_ALL += [_variant(base, "distilled", base.native) for base in _BASES]
_ALL += [_variant(base, "inpaint", base.native) for base in _BASES if base.name[:4] != "sd2-"]
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""Every family by name.

"-distilled" are models with a parent's widths and fewer transformer blocks (SSD-1B, Segmind-Vega,
BK-SDM): they are native at their parent's size but keep ratios of their own, because a group's
ratio belongs to the blocks in it. "-inpaint" models take 9 channels and do the same.
"""
# SD2's only inpainting model is the 512-base one, so there is no doubt about its native size.
FAMILIES["sd2-inpaint"] = Family("sd2-inpaint", "SD2 inpaint", (512, 512))


@dataclass(frozen=True)
class _Shape:
    """A family's fingerprint; ``added`` is the width of SDXL's pooled text and size embedding."""

    family: str
    channels: int
    context: int
    transformers: int
    added: int | None = None


_SHAPES = (
    _Shape("sd15", 320, 768, 16),
    _Shape("sd2", 320, 1024, 16),
    _Shape("sdxl", 320, 2048, 70, 2816),
    _Shape("sdxl-refiner", 384, 1280, 44, 2560),
)

_CONV_IN = re.compile(r"(?:input_blocks\.0\.0|conv_in)\.weight")
_CROSS = re.compile(r".+\.transformer_blocks\.\d+\.attn2\.to_k(?:\.base_layer)?\.weight")
_ADDED = re.compile(r"(?:label_emb\.0\.0|add_embedding\.linear_1)\.weight")


def identify(shapes: Mapping[str, Sequence[int]], hints: Mapping[str, Any] | None = None) -> Family:
    """The family of a UNet, transformer or whole checkpoint, from its tensors' names and shapes.

    Args:
        shapes: LDM or diffusers names, with any prefix, to shapes.
        hints: what only SD2 needs: ``prediction_type``, the scheduler's, "epsilon" or
            "v_prediction"; ``sample_size``, the UNet's latent side length. Others are ignored.

    Returns FAMILIES["unknown"] for anything not recognised, never raises for it.
    """
    prefix = unet_prefix(shapes)
    if prefix is None:
        return UNKNOWN
    unet = {
        name[len(prefix) :]: tuple(shape)
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
    found = fingerprint(unet)
    if found is not None:
        return FAMILIES[KNOWN.get(found, "unknown")]
    conv_in = _first(unet, _CONV_IN)
    cross = _first(unet, _CROSS)
    if conv_in is None or cross is None or len(conv_in) != 4:
        return UNKNOWN
    channels, inputs, context = conv_in[0], conv_in[1], cross[1]
    widths = _attention_widths(unet)
    if (channels, context, inputs) == (EMBEDDED_CHANNELS[0], EMBEDDED_CONTEXT, 4):
        return _EMBEDDED if tuple(widths) == EMBEDDED_CHANNELS else UNKNOWN
    added = _first(unet, _ADDED)
    for shape in _SHAPES:
        if (shape.channels, shape.context, shape.added) == (channels, context, added and added[1]):
            count = sum(name.partition(".attn1.to_q")[1] != "" for name in prunable_names(unet))
            return _variant_of(shape, inputs, count, _is_v(hints or {}))
    return UNKNOWN


def identify_module(
    module: torch.nn.Module,
    prediction_type: str | None = None,
    sample_size: int | None = None,
) -> Family:
    """The family of a live UNet or transformer; ``sample_size`` None: its own config's."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    if sample_size is None:
        found = getattr(getattr(module, "config", None), "sample_size", None)
        sample_size = found if isinstance(found, int) else None
    return identify(shapes, {"prediction_type": prediction_type, "sample_size": sample_size})


def _variant_of(shape: _Shape, inputs: int, transformers: int, is_v: bool | None) -> Family:
    """The member of a fingerprint's family; ``is_v`` as from ``_is_v``, only for SD2."""
    if inputs == 9 and transformers == shape.transformers:
        return FAMILIES[f"{shape.family}-inpaint"]
    if inputs != 4:  # depth, pix2pix, upscalers, and what nobody published
        return UNKNOWN
    name = shape.family
    if name == "sd2" and is_v is not None:
        name = "sd2-v" if is_v else "sd2-base"
    return FAMILIES[name if transformers == shape.transformers else f"{name}-distilled"]


def _is_v(hints: Mapping[str, Any]) -> bool | None:
    """Whether an SD2 model is the 768 v one; None when nothing tells."""
    by_prediction = {"v_prediction": True, "epsilon": False}.get(hints.get("prediction_type") or "")
    by_size = {96: True, 64: False}.get(hints.get("sample_size") or 0)
    return by_size if by_prediction is None else by_prediction


def _first(unet: Mapping[str, tuple[int, ...]], pattern: re.Pattern[str]) -> tuple[int, ...] | None:
    return next((shape for name, shape in unet.items() if pattern.fullmatch(name)), None)


def _attention_widths(unet: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The distinct widths of self-attention, small to large."""
    return sorted(
        {unet[name][0] for name in prunable_names(unet) if ".attn1.to_q" in name and name in unet}
    )
