"""Folded amplification: one pass with the small weights multiplied by 1 - k."""

from __future__ import annotations

import math

import pytest
import torch

from crdiff_ext.blocks import prunable_layers, prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import keep_mask, make_plan, prune
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import PrunedWeights, pruned_weights
from tests.core.tiny import LDM_BLOCKS, TinyUNet

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
K = 1.5


def plan_of(unet, ratio):
    return make_plan(prunable_parameters(unet), Ratios(ratio, ratio, ratio))


def outputs(unet, plan, k=K):
    """(exact, folded) of one call."""
    results = []
    for amplification in ("exact", "folded"):
        with CRDiff(unet, plan, k, amplification=amplification).attached():
            results.append(unet(X))
    return results


def scaled_small(ratio, factor):
    """A float64 UNet whose prunable weights below the threshold are multiplied by ``factor``."""
    unet = TinyUNet(dtype=torch.float64)
    # float64 throughout: TinyUNet's layers compute in fp32 otherwise
    for matrix in unet.modules():
        if isinstance(getattr(matrix, "weight", None), torch.Tensor):
            matrix.forward = lambda x, m=matrix: x @ m.weight.T
    plan = plan_of(unet, ratio)
    with torch.no_grad():
        for layer in prunable_layers(unet):
            weight = layer.module.weight
            weight.copy_(prune(weight, plan.thresholds[layer.group], factor))
    return unet, plan


def test_equals_exact_to_first_order():
    errors = []
    epsilons = [2.0**-power for power in range(2, 9)]
    for epsilon in epsilons:
        exact, folded = outputs(*scaled_small(0.3, epsilon))
        errors.append((folded - exact).norm().item())
    logs = [(math.log(e), math.log(error)) for e, error in zip(epsilons, errors, strict=True)]
    mean_x, mean_y = (sum(values) / len(values) for values in zip(*logs, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum(
        (x - mean_x) ** 2 for x, _ in logs
    )
    assert 1.8 < slope < 2.2


def test_is_an_approximation_and_no_more():
    exact, folded = outputs(*scaled_small(0.5, 1.0))
    assert (folded - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [-0.5, -0.25, -0.3, 0.0, 0.7])
def test_folded_weights(dtype, factor):
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(40, 30, generator=generator) / 5).to(dtype)
    threshold = 0.125
    folded = prune(weight, threshold, factor)
    kept = keep_mask(weight, threshold)
    assert folded.dtype == weight.dtype
    wide = weight.to(torch.float64)
    assert torch.equal(folded.to(torch.float64)[kept], wide[kept])
    # one rounding: half a unit in the last place
    assert torch.allclose(
        folded.to(torch.float64)[~kept],
        wide[~kept] * factor,
        rtol=max(torch.finfo(dtype).eps / 2, 1e-7),
        atol=float(torch.finfo(dtype).smallest_normal) * torch.finfo(dtype).eps,
    )
    assert 0 < kept.sum() < kept.numel()


def fingerprint(unet):
    return [
        (id(p), p.data_ptr(), p._version, p.detach().view(torch.uint8).clone())
        for p in unet.parameters()
    ]


def same(before, after):
    return all(
        a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in zip(before, after, strict=True)
    )


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", [None, ValueError, Interrupt])
def test_restored_to_the_bit(dtype, memory, end):
    unet = TinyUNet(LDM_BLOCKS, dtype=dtype)
    plan = plan_of(unet, 0.5)
    before = fingerprint(unet)
    handle = CRDiff(unet, plan, K, memory, amplification="folded")
    x = X.to(torch.float32)
    seen = []

    layer, own = unet.order[-1], unet.order[-1].weight

    def during(x):
        seen.append(layer.weight is not own)
        if end is not None:
            raise end("in the middle of a folded pass")
        return type(layer).forward(layer, x)

    layer.forward = during
    if end is None:
        with handle.attached():
            unet(x)
            assert same(before, fingerprint(unet))  # between calls too
    else:
        with pytest.raises(end), handle.attached():
            unet(x)
    assert seen == [True]
    assert same(before, fingerprint(unet))
    assert not any(module._forward_pre_hooks for module in unet.modules())
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (0, 1)


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_a_folded_pass_sees_folded_weights(memory):
    unet = TinyUNet(dtype=torch.float32)
    plan = plan_of(unet, 0.4)
    expected = [prune(m.weight, plan.thresholds["down"], 1 - K) for m in unet.order[:6]]
    with PrunedWeights(unet, plan, memory, 1 - K).active():
        seen = {}
        hooks = [
            m.register_forward_pre_hook(lambda m, _: seen.__setitem__(m, m.weight.clone()))
            for m in unet.order[:6]
        ]
        unet(X.float())
    for hook in hooks:
        hook.remove()
    for matrix, weight in zip(unet.order[:6], expected, strict=True):
        assert torch.equal(seen[matrix], weight)


def test_k_one_and_zero_and_ratio_zero():
    unet = TinyUNet()
    x, plan = X.float(), plan_of(unet, 0.4)
    dense = unet(x)
    with pruned_weights(unet, plan):
        pruned = unet(x)
    for k, ratio, expected in [(1.0, 0.4, pruned), (0.0, 0.4, dense), (K, 0.0, dense)]:
        handle = CRDiff(unet, plan_of(unet, ratio), k, amplification="folded")
        with handle.attached():
            assert torch.equal(unet(x), expected)
        assert handle.stats.dense_passes + handle.stats.pruned_passes == 1


def test_another_factor_inside_is_refused():
    unet = TinyUNet()
    plan = plan_of(unet, 0.4)
    with PrunedWeights(unet, plan, "copy", -0.5).active():
        with PrunedWeights(unet, plan, "copy", -0.5).active():
            pass
        with pytest.raises(CRDiffError, match="end that one first"), pruned_weights(unet, plan):
            pass
