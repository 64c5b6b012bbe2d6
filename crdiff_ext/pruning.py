"""Block-wise magnitude pruning: one exact threshold a pool, the masks they give, and a report.

A pool is a set of weights that share a threshold: a block group of a UNet (down, mid, up), a single
layer of a diffusion transformer. Its threshold is the ``int(N * ratio)``-th smallest magnitude of
its N weights, in the weights' own type; a weight is pruned when ``|w| <= threshold`` (ties go
together); a pool with ``int(N * ratio) == 0`` is left alone. These are the rules of the paper's
Section 3.3 as the authors' code has them, for transformers too.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from .blocks import PrunableWeight, Threshold
from .counting import NotANumberError, chunks, common_dtype, dtype_name, kth_magnitude
from .errors import CRDiffError
from .settings import ALL, GROUPS, Ratios

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class PrunePlan:
    """What to prune: thresholds only, no tensors.

    Attributes:
        ratios: as asked for.
        thresholds: for each pool the largest magnitude to prune; None: the pool is left alone.
        totals: weights in each pool.
        dtypes: the type in which each pool was compared, such as "float16"; "mixed" pools are
            compared in the narrowest type that holds all their values; None: no weights.
    """

    ratios: Ratios
    thresholds: Mapping[str, float | None]
    totals: Mapping[str, int]
    dtypes: Mapping[str, str | None] = field(default_factory=lambda: dict.fromkeys(GROUPS))

    def __post_init__(self) -> None:
        for name in ("thresholds", "totals", "dtypes"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def is_noop(self) -> bool:
        """Whether no weight at all is pruned."""
        return all(threshold is None for threshold in self.thresholds.values())

    @property
    def why_noop(self) -> str | None:
        """A sentence when nothing is pruned, else None."""
        if not self.is_noop:
            return None
        if not any(self.totals.values()):
            return "the model has no prunable layer: one dense pass, nothing changed"
        if self.ratios.is_zero:
            return "all ratios are 0: one dense pass, nothing changed"
        return "the ratios are too small to prune a single weight: one dense pass, nothing changed"


@dataclass(frozen=True)
class GroupReport:
    """One pool: its threshold (None: left alone), pruned and total weights, and layers."""

    threshold: float | None
    pruned: int
    total: int
    layers: int


@dataclass(frozen=True)
class SparsityReport:
    """What a plan prunes, layer by layer; ``to_dict`` has the golden manifest's field names.

    ``mask_sha256`` runs over the masks of kept weights (one byte each, C order) of all layers in
    the order of canonical names; pools left alone are in neither it nor ``pruned_per_layer``.
    ``groups`` has every pool by its name.
    """

    groups: Mapping[str, GroupReport]
    pruned_per_layer: Mapping[str, int]
    mask_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "groups": {name: dict(vars(group)) for name, group in self.groups.items()},
            "pruned_per_layer": dict(self.pruned_per_layer),
            "mask_sha256": self.mask_sha256,
        }


def group_threshold(tensors: Sequence[torch.Tensor], ratio: float) -> float | None:
    """The ``int(N * ratio)``-th smallest |w| of all N weights; None when ``int(N * ratio) == 0``.

    The float is exactly that weight's magnitude, whatever its type. Tensors of different types are
    compared in fp32 (fp64 if one is), where each value is exact. Raises CRDiffError.
    """
    total = sum(tensor.numel() for tensor in tensors)
    n = int(total * ratio)
    return kth_magnitude(tensors, n) if n else None


def make_plan(weights: Iterable[PrunableWeight], ratios: Ratios) -> PrunePlan:
    """Thresholds for each pool. Reads the weights of pools with a ratio above 0, a chunk a time.

    Raises CRDiffError that names the layer for NaN, and for weights that are not there (meta
    device) or not floats (quantised); and for unequal ratios with a transformer, which has one.
    """
    thresholds: dict[str, float | None] = {}
    totals: dict[str, int] = {}
    dtypes: dict[str, str | None] = {}
    for pool in _pools(weights):
        ratio, members = ratios.of(pool.group), pool.members
        try:
            thresholds[pool.name] = group_threshold(_readable(members) if ratio else [], ratio)
        except NotANumberError as error:
            raise CRDiffError(
                f"layer {members[error.index].name} holds NaN: the weights are damaged, get the "
                "checkpoint again"
            ) from error
        tensors = [weight.tensor for weight in members]
        totals[pool.name] = sum(tensor.numel() for tensor in tensors)
        dtypes[pool.name] = _name_of(tensors)
    return PrunePlan(ratios, thresholds, totals, dtypes)


@dataclass(frozen=True)
class Pool:
    """Weights that share a threshold; ``group`` says which ratio is theirs."""

    name: str
    group: str
    members: list[PrunableWeight]


def by_pool(weights: Iterable[PrunableWeight]) -> list[Pool]:
    """The pools of one network, each with its weights in the given order.

    A UNet has its three groups, empty ones too; so has a network without prunable weights.
    """
    return list(_pools(weights))


def _pools(weights: Iterable[PrunableWeight]) -> Iterator[Pool]:
    """The same, each as soon as it is whole: a transformer's weights need not all be there at once.

    They may have been made for the purpose (cast, unpacked).
    """
    groups = {group: Pool(group, group, []) for group in GROUPS}
    is_dit = False
    for weight in weights:
        if weight.group == ALL:
            is_dit = True
            yield Pool(weight.pool, ALL, [weight])
        else:
            groups[weight.group].members.append(weight)
    if not is_dit:
        yield from groups.values()


def keep_mask(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """``|w| > threshold``, bool of the weight's shape: True where the weight stays.

    Compares the true values: in the weight's own type when that can hold the threshold, else in a
    wider one (rounding the threshold to a narrower type could move ties). NaN gives False.
    """
    magnitude = _comparable(weight.detach(), threshold).abs()
    return magnitude > threshold


def prune(weight: torch.Tensor, threshold: Threshold, factor: float = 0.0) -> torch.Tensor:
    """A new tensor: the weight, multiplied by ``factor`` where ``|w| <= threshold``.

    0 prunes; ``1 - k`` folds the amplification into the weights (see ``amplify.py``). Weights that
    are kept stay the same to the bit; products are rounded once, to the weight's type. Never
    tied to autograd. Several thresholds: one for each equal part of the rows.
    """
    weight = weight.detach()
    if isinstance(threshold, tuple):
        made = torch.empty_like(weight)
        parts = weight.chunk(len(threshold)), made.chunk(len(threshold)), threshold
        for rows, into, limit in zip(*parts, strict=True):
            into.copy_(prune(rows, limit, factor))
        return made
    if weight.dtype in _FP8:  # no arithmetic
        kept = keep_mask(weight, threshold)
        scaled = (weight.to(torch.float32) * factor).to(weight.dtype)
        bits = torch.where(kept, weight.view(torch.uint8), scaled.view(torch.uint8))
        # Plain zeros where pruned, also of negative weights.
        return (bits if factor else bits * kept).view(weight.dtype)
    if _comparable(weight, threshold) is weight:
        # x where x < -t or x > t, else 0, in one fused pass: 4 to 20 times faster than a mask.
        kept = torch.nn.functional.hardshrink(weight, threshold)
        if not factor:
            return kept
        small = weight - kept  # the weight or 0, without rounding
        if float(torch.tensor(factor, dtype=torch.float64).to(weight.dtype)) == factor:
            return kept.add_(small, alpha=factor)
        # torch rounds alpha to the tensor's type first: in bf16, -0.3 would be -0.30078.
        return kept.add_((small.to(torch.float64) * factor).to(weight.dtype))
    mask = keep_mask(weight, threshold)
    return torch.where(mask, weight, weight * factor) if factor else weight.masked_fill(~mask, 0)


def report(weights: Iterable[PrunableWeight], plan: PrunePlan) -> SparsityReport:
    """Count and hash what ``plan`` prunes of ``weights``, a chunk at a time."""
    pools = by_pool(weights)
    pruned: dict[str, int] = {}
    digest = hashlib.sha256()
    acting = [
        weight
        for pool in pools
        if plan.thresholds[pool.name] is not None
        for weight in _checked(pool.members)
    ]
    for weight in sorted(acting, key=lambda weight: weight.canonical):
        threshold = plan.thresholds[weight.pool]
        assert threshold is not None
        kept = 0
        for chunk in chunks(weight.tensor):
            mask = keep_mask(chunk, threshold).cpu()
            kept += int(torch.count_nonzero(mask))
            digest.update(_buffer(mask))
        pruned[weight.canonical] = weight.tensor.numel() - kept
    return SparsityReport(
        {
            pool.name: GroupReport(
                plan.thresholds[pool.name],
                sum(pruned.get(weight.canonical, 0) for weight in pool.members),
                sum(weight.tensor.numel() for weight in pool.members),
                len(pool.members),
            )
            for pool in pools
        },
        pruned,
        digest.hexdigest(),
    )


def _comparable(weight: torch.Tensor, threshold: float) -> torch.Tensor:
    """The weight itself, or its values in a wider type in which the threshold is exact."""
    if weight.dtype in _FP8:  # has no ">"
        weight = weight.to(torch.float16)  # holds every value of both fp8 types
    for wider in (weight.dtype, torch.float32):
        if float(torch.tensor(threshold, dtype=torch.float64).to(wider)) == threshold:
            return weight.to(wider)
    return weight.to(torch.float64)


def _readable(weights: Sequence[PrunableWeight]) -> list[torch.Tensor]:
    return [weight.tensor for weight in _checked(weights)]


def _checked(weights: Sequence[PrunableWeight]) -> Sequence[PrunableWeight]:
    """The same weights. Raises CRDiffError that names the layer for what can't be read."""
    for weight in weights:
        if weight.tensor.device.type == "meta":
            raise CRDiffError(
                f"layer {weight.name} has no data (it is on the meta device): load the model "
                "without sequential offloading"
            )
        try:
            common_dtype([weight.tensor])
        except CRDiffError as error:
            raise CRDiffError(f"layer {weight.name}: {error}") from error
    return weights


def _name_of(tensors: Sequence[torch.Tensor]) -> str | None:
    dtypes = {dtype_name(tensor.dtype) for tensor in tensors}
    if len(dtypes) > 1:
        return f"mixed ({', '.join(sorted(dtypes))})"
    return dtypes.pop() if dtypes else None


def _buffer(mask: torch.Tensor) -> ctypes.Array[ctypes.c_char]:
    """The bytes of a contiguous CPU bool tensor, without a copy and without numpy.

    Valid while the tensor lives.
    """
    return (ctypes.c_char * mask.numel()).from_address(mask.data_ptr())
