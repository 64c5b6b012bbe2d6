"""Which weights are pruned, by name, for LDM and diffusers naming.

Of a UNet: self-attention (``attn1``) and feed-forward (``ff``) matrices of every transformer block,
in three groups: down, mid, up. Cross-attention, convolutions, norms, biases, embeddings and
``proj_in``/``proj_out`` are not. Of a diffusion transformer (SD3, FLUX): what ``dit_names.py``
says, in one group.

Weights that share a threshold are a *pool*: a UNet's group, and in a transformer each layer by
itself.

Every layer has one *canonical* name, the one in diffusers. The original (LDM) layout numbers blocks
flatly: with L residual blocks a level, residual block j of level i is
``input_blocks.{1 + i(L+1) + j}`` on the way down, followed by a down-sampler, and
``output_blocks.{i(L+1) + j}`` on the way up, where a level has L + 1 of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from .dit_names import parse_dit, parts_of, refuse_fused
from .errors import CRDiffError
from .settings import ALL, GROUPS

_LAYER = r"(?P<layer>attn1\.(?:to_q|to_k|to_v|to_out\.0)|ff\.net\.(?:0\.proj|2))"
# ".base_layer" is where peft puts the original layer when it adds a LoRA beside it.
_TAIL = rf"transformer_blocks\.(?P<depth>\d+)\.{_LAYER}(?:\.base_layer)?(?:\.weight)?"
_DIFFUSERS = re.compile(
    rf"(?P<prefix>(?:.+\.)?)(?P<block>(?:down_blocks|up_blocks)\.\d+|mid_block)"
    rf"\.attentions\.(?P<slot>\d+)\.{_TAIL}"
)
_LDM = re.compile(
    rf"(?P<prefix>(?:.+\.)?)(?P<side>input_blocks|middle_block|output_blocks)"
    rf"(?P<index>(?:\.\d+)?)\.1\.{_TAIL}"
)
_LDM_ATTENTION = re.compile(r"(?:.+\.)?input_blocks\.(\d+)\.1\.transformer_blocks\..+")
_LDM_DOWNSAMPLER = re.compile(r"(?:.+\.)?input_blocks\.(\d+)\.0\.op(?:\..+)?")
_FUSED = re.compile(r"(?:.+\.)?transformer_blocks\.\d+\.attn1\.to_qkv(?:\.weight)?")

_GROUP_OF = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}
_UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
"""Where a UNet is in a larger checkpoint, best first (it may hold a ControlNet too)."""


Threshold = float | tuple[float, ...]
"""The largest magnitude to prune; or one for each equal part of a matrix' rows."""


@dataclass(frozen=True)
class BlockLayout:
    """How many residual blocks a level has in the LDM layout; 2 in all released SD models."""

    res_blocks: int = 2

    @classmethod
    def from_names(cls, names: Iterable[str]) -> BlockLayout:
        """Read the layout off the names present; names of the diffusers layout are ignored.

        The first down-sampler (``input_blocks.N.0.op``) gives it. Without one, the attention blocks
        do: a level's L consecutive indices hold a multiple of every number up to L, and never one
        of L + 1, which is the down-sampler's. Names with neither count as SD's own two a level.
        """
        names = list(names)
        samplers = [int(m[1]) for m in map(_LDM_DOWNSAMPLER.fullmatch, names) if m]
        if samplers:
            return cls(min(samplers) - 1)
        attended = {int(m[1]) for m in map(_LDM_ATTENTION.fullmatch, names) if m}
        if not attended:
            return cls()
        period = 2
        while any(index % period == 0 for index in attended):
            period += 1
        return cls(period - 1)


@dataclass(frozen=True)
class PrunableName:
    """A prunable layer's name, taken apart; no trailing ".weight".

    ``kind`` is "attn1", "attn2" or "ff". ``group`` is "down", "mid" or "up", or "all" in a
    diffusion transformer, which has one.
    """

    group: str
    kind: str
    canonical: str
    prefix: str


@dataclass(frozen=True)
class PrunableWeight:
    """One weight matrix [out, in] to prune: its own name, its canonical name, its group."""

    name: str
    canonical: str
    group: str
    tensor: torch.Tensor

    @property
    def pool(self) -> str:
        """Its key in a plan's thresholds."""
        return pool_of(self.group, self.canonical)


@dataclass(frozen=True)
class PrunableLayer:
    """One layer of a live module with a prunable ``weight``; several if fused (``parts_of``)."""

    name: str
    canonical: str
    group: str
    module: torch.nn.Module

    def weights(self, tensor: torch.Tensor) -> list[PrunableWeight]:
        """What its weight, or the ``tensor`` that counts for it, holds; views if it is several."""
        return split(f"{self.name}.weight", self.canonical, self.group, tensor)

    def threshold(self, thresholds: Mapping[str, float | None]) -> Threshold | None:
        """Of a plan's thresholds the one for this layer, or one for each part of its rows."""
        parts = parts_of(self.canonical)
        found = [thresholds[pool_of(self.group, part)] for part in parts]
        limits = tuple(limit for limit in found if limit is not None)
        if len(limits) < len(parts):  # all or none: the parts are of one size
            return None
        return limits if len(parts) > 1 else limits[0]


def split(name: str, canonical: str, group: str, tensor: torch.Tensor) -> list[PrunableWeight]:
    """The prunable weights in a matrix [out, in]: itself, or views of its parts' rows."""
    parts = parts_of(canonical)
    tensors = tensor.detach().chunk(len(parts)) if len(parts) > 1 else (tensor,)
    return [
        PrunableWeight(name, part, group, rows) for part, rows in zip(parts, tensors, strict=True)
    ]


def pool_of(group: str, canonical: str) -> str:
    """The set of weights that a layer shares its threshold with: its group, or itself alone."""
    return group if group in GROUPS else canonical


def parse_name(name: str, layout: BlockLayout = BlockLayout()) -> PrunableName | None:
    """Group, kind and canonical name of a prunable layer; None for any other name.

    Prefixes ("model.diffusion_model.", "unet.", none) and ".weight" don't matter; ``layout`` only
    counts for LDM names. Raises CRDiffError for an LDM name that the layout has no place for.

    >>> parse_name("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight")
    PrunableName(group='down', kind='attn1', \
canonical='down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q', \
prefix='model.diffusion_model.')
    """
    match = _DIFFUSERS.fullmatch(name)
    if match:
        block, slot = match["block"], int(match["slot"])
    else:
        match = _LDM.fullmatch(name)
        if not match or (match["side"] == "middle_block") != (match["index"] == ""):
            return _parse_dit(name)
        block, slot = _ldm_block(match["side"], match["index"], layout)
    layer = match["layer"]
    return PrunableName(
        group=_GROUP_OF[block.partition(".")[0]],
        kind=layer.partition(".")[0],
        canonical=f"{block}.attentions.{slot}.transformer_blocks.{match['depth']}.{layer}",
        prefix=match["prefix"],
    )


def _parse_dit(name: str) -> PrunableName | None:
    parsed = parse_dit(name)
    if parsed is None:
        return None
    prefix, canonical = parsed
    return PrunableName(ALL, canonical.split(".")[2], canonical, prefix)


def _ldm_block(side: str, index: str, layout: BlockLayout) -> tuple[str, int]:
    """("input_blocks", ".4") -> ("down_blocks.1", 0), for two residual blocks a level."""
    if side == "middle_block":
        return "mid_block", 0
    period = layout.res_blocks + 1
    if side == "output_blocks":
        level, slot = divmod(int(index[1:]), period)
        return f"up_blocks.{level}", slot
    level, slot = divmod(int(index[1:]) - 1, period)
    if level < 0 or slot == layout.res_blocks:
        raise CRDiffError(
            f"input_blocks{index} can't hold attention with {layout.res_blocks} residual blocks a "
            "level: the checkpoint's layer names are damaged or of an unknown model"
        )
    return f"down_blocks.{level}", slot


def ldm_to_diffusers(name: str, layout: BlockLayout) -> str | None:
    """The canonical name (without ".weight") of a prunable LDM name; None for any other name."""
    parsed = parse_name(name, layout) if _LDM.fullmatch(name) else None
    return parsed.canonical if parsed else None


def unet_prefix(names: Iterable[str]) -> str | None:
    """The prefix of the UNet's (or transformer's) names; None when no name is prunable.

    Raises CRDiffError when several networks are there and none has a usual UNet prefix.
    """
    found = sorted({prefix for prefix in map(_prefix_of, names) if prefix is not None})
    if len(found) <= 1:
        return found[0] if found else None
    for usual in _UNET_PREFIXES:
        if usual in found:
            return usual
    raise CRDiffError(
        f"the checkpoint holds several networks ({', '.join(found)}): give the UNet alone"
    )


def _prefix_of(name: str) -> str | None:
    match = _DIFFUSERS.fullmatch(name) or _LDM.fullmatch(name)
    if match:
        return str(match["prefix"])
    parsed = parse_dit(name)
    return parsed[0] if parsed else None


def prunable_names(names: Iterable[str]) -> dict[str, PrunableName]:
    """Each prunable name of the one network among ``names``, in the order of canonical names.

    Raises CRDiffError when two names mean the same layer, or when q, k and v are fused.
    """
    names = list(names)
    prefix = unet_prefix(names)
    layout = BlockLayout.from_names(name for name in names if name.startswith(prefix or ""))
    found: dict[str, tuple[str, PrunableName]] = {}
    for name in names:
        if _FUSED.fullmatch(name):
            raise CRDiffError(
                f"{name} fuses query, key and value: call unfuse_qkv_projections() before CR-Diff"
            )
        refuse_fused(name)
        parsed = parse_name(name, layout)
        if parsed is None or parsed.prefix != prefix:
            continue
        if parsed.canonical in found:
            raise CRDiffError(
                f"{name} and {found[parsed.canonical][0]} are the same layer: give one UNet alone"
            )
        found[parsed.canonical] = (name, parsed)
    return dict(found[canonical] for canonical in sorted(found))


def prunable_layers(module: torch.nn.Module) -> list[PrunableLayer]:
    """The prunable layers of a network, sorted by canonical name: by name and a ``weight`` tensor.

    Never by type: hosts have Linear classes of their own. An empty list when there are none.
    """
    modules = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(getattr(layer, "weight", None), torch.Tensor)
    }
    return [
        PrunableLayer(name, parsed.canonical, parsed.group, modules[name])
        for name, parsed in prunable_names(modules).items()
    ]


def unet_layers(module: torch.nn.Module) -> list[PrunableLayer]:
    """``prunable_layers`` of a UNet; none of a transformer, for hosts where these aren't pruned."""
    return [layer for layer in prunable_layers(module) if layer.group in GROUPS]


def prunable_parameters(
    source: torch.nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
) -> list[PrunableWeight]:
    """The prunable weights of a module, a state dict or (name, tensor) pairs.

    Sorted by canonical name, so that one set of weights gives one list in either naming. Tensors
    are the very objects of the source, or views where one matrix holds several: nothing is copied.
    """
    return sorted(_weights(source), key=lambda weight: weight.canonical)


def _weights(
    source: torch.nn.Module | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
) -> Iterator[PrunableWeight]:
    if isinstance(source, torch.nn.Module):
        for layer in prunable_layers(source):
            weight = layer.module.weight
            assert isinstance(weight, torch.Tensor)
            yield from layer.weights(weight)
        return
    tensors = dict(source)
    for name, parsed in prunable_names(tensors).items():
        yield from split(name, parsed.canonical, parsed.group, tensors[name])
