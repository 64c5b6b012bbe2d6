"""From a criterion and block ratios to the weights of a pruned pass, with the time it took."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from crdiff_ext.blocks import PrunableLayer, prunable_layers, prunable_parameters
from crdiff_ext.settings import GROUPS, Ratios
from harness.criteria.calibrate import Run, gradients, hessians, input_norms
from harness.criteria.masks import Weights, allot, by_chance, by_magnitude, by_taylor, by_wanda
from harness.criteria.obs import PACKAGES, obs_prune
from harness.criteria.replaced import ReplacedWeights
from harness.criteria.settings import Criterion


@dataclass(frozen=True)
class Choice:
    """The weights of a pruned pass; wall seconds in all, and of these for calibration."""

    weights: Weights
    seconds: float
    calibration_seconds: float


def choose_weights(run: Run, ratios: Ratios, criterion: Criterion | None) -> Choice:
    """The weights that ``criterion`` (None: magnitude) leaves at ``ratios``. Raises CRDiffError."""
    started = time.perf_counter()
    if criterion is not None and criterion.name == "obs-diff":
        weights, calibrated = _obs(run, ratios, criterion)
        return Choice(weights, time.perf_counter() - started, calibrated)
    layers, all_weights = prunable_layers(run.unet), prunable_parameters(run.unet)
    acting = [layer for layer in layers if ratios.of(layer.group)]
    seen: dict[str, torch.Tensor] = {}
    if criterion is not None and criterion.name != "random":
        seen = {"taylor": gradients, "wanda": input_norms}[criterion.name](acting, run, criterion)
    calibrated = time.perf_counter() - started
    if criterion is None:
        weights, calibrated = by_magnitude(all_weights, ratios), 0.0
    elif criterion.name == "random":
        weights, calibrated = by_chance(all_weights, ratios, criterion.seed), 0.0
    elif criterion.name == "taylor":
        weights = by_taylor(all_weights, ratios, seen)
    else:
        weights = by_wanda(all_weights, ratios, seen)
    return Choice(weights, time.perf_counter() - started, calibrated)


def _obs(run: Run, ratios: Ratios, criterion: Criterion) -> tuple[Weights, float]:
    """OBS-Diff over ``PACKAGES`` packages of layers: (weights, seconds of calibration).

    Each package's Hessians are taken while the packages before it are pruned, as they will be.
    """
    counts = allot(prunable_parameters(run.unet), ratios)
    units = [unit for unit in in_order(prunable_layers(run.unet)) if _any(unit, counts)]
    weights: Weights = {}
    spent = 0.0
    for package in range(PACKAGES):
        members = units[package * len(units) // PACKAGES : (package + 1) * len(units) // PACKAGES]
        if not members:
            continue
        started = time.perf_counter()
        with ReplacedWeights(run.unet, weights, 1.0).attached():
            seen = hessians([unit[0] for unit in members], run, criterion)
        spent += time.perf_counter() - started
        for unit in members:
            hessian = seen.pop(unit[0].canonical)
            for layer in unit:
                weight = layer.module.weight
                assert isinstance(weight, torch.Tensor)
                weights[layer.canonical] = obs_prune(weight, hessian, counts[layer.canonical])
    return weights, spent


def _any(unit: list[PrunableLayer], counts: Mapping[str, int]) -> bool:
    return any(counts[layer.canonical] for layer in unit)


_KINDS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")


def in_order(layers: list[PrunableLayer]) -> list[list[PrunableLayer]]:
    """Layers in the order in which the UNet runs them; those that read one input are one unit."""
    units: dict[tuple[object, ...], list[PrunableLayer]] = {}
    for layer in sorted(layers, key=_place):
        group, numbers, kind = _place(layer)
        units.setdefault((group, numbers, max(kind, 2)), []).append(layer)  # q, k, v: one input
    return list(units.values())


def _place(layer: PrunableLayer) -> tuple[int, tuple[int, ...], int]:
    """(group, block and slot and depth, kind of layer)."""
    block, _, kind = layer.canonical.partition(".transformer_blocks.")
    depth, _, kind = kind.partition(".")
    numbers = tuple(int(number) for number in re.findall(r"\d+", f"{block}.{depth}"))
    return GROUPS.index(layer.group), numbers, _KINDS.index(kind)
