"""Replaced weights: seen by the pruned pass alone, combined as CR-Diff does, and put back."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext.amplify import combine
from crdiff_ext.blocks import prunable_layers, prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import keep_mask, make_plan, report
from crdiff_ext.settings import Ratios
from harness.criteria.masks import by_chance, by_magnitude
from harness.criteria.replaced import ReplacedWeights
from tests.core.tiny import TinyUNet

RATIOS = Ratios(0.4, 0.3, 0.25)
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def state(unet: torch.nn.Module) -> dict[str, tuple]:
    return {
        layer.name: (id(layer.module.weight), layer.module.weight._version, hash_of(layer))
        for layer in prunable_layers(unet)
    }


def hash_of(layer) -> bytes:
    return layer.module.weight.detach().numpy().tobytes()


@pytest.mark.parametrize("k", [0.0, 1.0, 1.5, 2.0])
def test_magnitudes_replaced_are_crdiff_to_the_bit(k: float) -> None:
    unet = TinyUNet()
    weights = by_magnitude(prunable_parameters(unet), RATIOS)
    with CRDiff(unet, make_plan(prunable_parameters(unet), RATIOS), k).attached():
        expected = unet(X)
    handle = ReplacedWeights(unet, weights, k)
    with handle.attached():
        found = unet(X)
    assert torch.equal(found, expected)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (k != 1, k != 0)


def test_both_passes_by_hand() -> None:
    unet, other = TinyUNet(), TinyUNet()
    weights = {
        layer.canonical: torch.full_like(layer.module.weight, 0.1)
        for layer in prunable_layers(unet)[:5]
    }
    dense = unet(X)
    with torch.no_grad():
        for layer in prunable_layers(other)[:5]:
            layer.module.weight.fill_(0.1)
    with ReplacedWeights(unet, weights, 1.5).attached():
        assert torch.equal(unet(X), combine(dense, other(X), 1.5))
    assert torch.equal(unet(X), dense)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_weights_are_back_whatever_happens(error: type[BaseException]) -> None:
    unet = TinyUNet()
    before = state(unet)
    handle = ReplacedWeights(unet, by_chance(prunable_parameters(unet), RATIOS, 0), 1.0)
    with handle.attached():
        unet(X)
    assert state(unet) == before

    def fail(*_: object) -> None:
        raise error

    hook = unet.order[20].register_forward_pre_hook(fail)
    with pytest.raises(error), handle.attached():
        unet(X)
    hook.remove()
    assert state(unet) == before
    assert "forward" not in unet.__dict__


def test_replaced_weights_do_not_nest_and_must_fit() -> None:
    unet = TinyUNet()
    weights = by_chance(prunable_parameters(unet), RATIOS, 0)
    handle = ReplacedWeights(unet, weights, 1.5)
    with handle.attached(), pytest.raises(CRDiffError, match="leave these first"):
        handle.attached().__enter__()
    assert "forward" not in unet.__dict__
    with pytest.raises(CRDiffError, match="for another UNet"):
        ReplacedWeights(TinyUNet(width=16), weights, 1.5)
    with pytest.raises(CRDiffError, match="for another UNet"):
        ReplacedWeights(unet, {"mid_block.no.such": X}, 1.5)
    with pytest.raises(CRDiffError, match="between 0 and 3"):
        ReplacedWeights(unet, weights, 4)


def test_random_masks_are_seeded_and_as_sparse_as_magnitudes_in_every_layer() -> None:
    weights = prunable_parameters(TinyUNet())
    plan = make_plan(weights, RATIOS)
    counts = report(weights, plan).pruned_per_layer
    chosen = by_chance(weights, RATIOS, 3)
    assert {name: int((w == 0).sum()) for name, w in chosen.items()} == counts
    assert all(torch.equal(w, by_chance(weights, RATIOS, 3)[name]) for name, w in chosen.items())
    other = by_chance(weights, RATIOS, 4)
    assert any(not torch.equal(w, other[name]) for name, w in chosen.items())
    for weight in weights:
        kept = chosen[weight.canonical] != 0
        assert torch.equal(chosen[weight.canonical][kept], weight.tensor[kept])
    # Not by size: about as many of the large weights go as of all.
    large = torch.cat([chosen[w.canonical][w.tensor.abs() > 0.4] == 0 for w in weights])
    assert 0.2 < float(large.float().mean()) < 0.5
    thresholds = [plan.thresholds[w.group] for w in weights]
    by_size = torch.cat([
        ~keep_mask(w.tensor, float(t or 0))[w.tensor.abs() > 0.4]
        for w, t in zip(weights, thresholds, strict=True)
    ])  # fmt: skip
    assert float(by_size.float().mean()) < 0.05


def test_a_group_without_a_ratio_is_left_out() -> None:
    weights = prunable_parameters(TinyUNet())
    for chosen in (
        by_chance(weights, Ratios(0.3, 0, 0), 0),
        by_magnitude(weights, Ratios(0.3, 0, 0)),
    ):
        assert {name.partition("_")[0] for name in chosen} == {"down"}
