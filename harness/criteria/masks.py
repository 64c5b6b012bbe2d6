"""Which weights go, from a layer's weight and what calibration saw: pure functions of tensors.

How many go: with ratio r, ``int(N r)`` of a group's N weights, as with CR-Diff's magnitudes. The
magnitude and Taylor's criterion rank all weights of a group together; Wanda and OBS-Diff compare
within a layer, so there each layer gets its share of the group's number (``allot``), to the last
weight. The random mask takes in every layer exactly as many as the magnitude does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from crdiff_ext.blocks import PrunableWeight
from crdiff_ext.pruning import by_pool, group_threshold, keep_mask, make_plan, prune, report
from crdiff_ext.settings import Ratios

Weights = dict[str, torch.Tensor]
"""Canonical layer name -> weight [out, in] for the pruned pass; dense layers are left out."""


def allot(weights: Sequence[PrunableWeight], ratios: Ratios) -> dict[str, int]:
    """How many weights go in each layer: in a group they sum to ``int(N r)``, in equal shares.

    Shares are rounded on the running sum, so a layer is at most one weight off its own share.
    """
    counts: dict[str, int] = {}
    for pool in by_pool(weights):
        ratio, seen, given = ratios.of(pool.group), 0, 0
        for weight in pool.members:
            seen += weight.tensor.numel()
            counts[weight.canonical] = int(seen * ratio) - given
            given = int(seen * ratio)
    return counts


def by_magnitude(weights: Sequence[PrunableWeight], ratios: Ratios) -> Weights:
    """CR-Diff's own criterion as replaced weights: smallest |w| of a group, ties together."""
    plan = make_plan(weights, ratios)
    pruned = {}
    for weight in weights:
        threshold = plan.thresholds[weight.pool]
        if threshold is not None:
            pruned[weight.canonical] = prune(weight.tensor, threshold)
    return pruned


def by_chance(weights: Sequence[PrunableWeight], ratios: Ratios, seed: int) -> Weights:
    """Random weights set to zero: in each layer as many as the magnitude takes there.

    So only the choice within a layer differs. Drawn on the CPU by a generator of each layer's own,
    from ``seed`` and the layer's name: the same in every process and on every device.
    """
    counts = report(weights, make_plan(weights, ratios)).pruned_per_layer
    pruned = {}
    for weight in weights:
        count = counts.get(weight.canonical, 0)
        if count:
            digest = hashlib.sha256(f"{seed}/{weight.canonical}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            chosen = torch.randperm(weight.tensor.numel(), generator=generator)[:count]
            flat = weight.tensor.detach().clone().view(-1)
            flat[chosen.to(flat.device)] = 0
            pruned[weight.canonical] = flat.view_as(weight.tensor)
    return pruned


def by_taylor(
    weights: Sequence[PrunableWeight], ratios: Ratios, gradients: Mapping[str, torch.Tensor]
) -> Weights:
    """Smallest |g w| of a group set to zero, ties together; g is the loss' gradient [out, in]."""
    pruned = {}
    for pool in by_pool(weights):
        ratio, members = ratios.of(pool.group), pool.members
        if not ratio:
            continue
        scores = [taylor_score(weight.tensor, gradients[weight.canonical]) for weight in members]
        threshold = group_threshold(scores, ratio)
        if threshold is None:
            continue
        for weight, score in zip(members, scores, strict=True):
            gone = ~keep_mask(score, threshold)
            pruned[weight.canonical] = weight.tensor.detach().masked_fill(gone, 0)
    return pruned


def taylor_score(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """|g w| in fp32: how much the loss changes to first order when a weight is set to zero."""
    return (weight.detach().float() * gradient.to(weight.device)).abs()


def by_wanda(
    weights: Sequence[PrunableWeight], ratios: Ratios, norms: Mapping[str, torch.Tensor]
) -> Weights:
    """Smallest |W_ij| ||X_j||_2 of each output row set to zero; ``norms``: ||X_j||_2 [in]."""
    pruned, counts = {}, allot(weights, ratios)
    for weight in weights:
        count = counts[weight.canonical]
        if count:
            gone = wanda_mask(weight.tensor, norms[weight.canonical], count)
            pruned[weight.canonical] = weight.tensor.detach().masked_fill(gone, 0)
    return pruned


def wanda_mask(weight: torch.Tensor, norms: torch.Tensor, count: int) -> torch.Tensor:
    """True where a weight goes: ``count`` in all, the smallest scores of each row [out, in].

    Every row loses ``count // rows``; what is left over comes from the rows whose next score is
    smallest, one each. (The reference code rounds down in every row, which would take fewer.)
    """
    scores = weight.detach().float().abs() * norms.to(weight.device, torch.float32)
    each, left = divmod(count, len(scores))
    order = torch.argsort(scores, dim=1, stable=True)
    gone = torch.zeros_like(scores, dtype=torch.bool)
    gone.scatter_(1, order[:, :each], True)
    if left:
        following = order[:, each]
        chosen = torch.argsort(scores.gather(1, following[:, None])[:, 0], stable=True)[:left]
        gone[chosen, following[chosen]] = True
    return gone
