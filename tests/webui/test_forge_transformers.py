"""SD3 and FLUX in the Forge adapter: what is pruned, by which thresholds, and how."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext.families import FAMILIES
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.forge_weights import copy_bytes
from tests.webui.fakes.forge_world import assert_same, run, state_of, unet_of
from tests.webui.fakes.transformers import WIDTH
from tests.webui.test_forge_weights import Packed
from tests.webui.transformer_worlds import FAMILY_NAMES, ON, ONE_CALL, RATIO, known, world

__all__ = ["known", "world"]


def parts(name, weight):
    """The matrices that have a threshold of their own."""
    return weight.chunk(3) if name.endswith("attn2.qkv") else (weight,)


def pruned_one(weight, factor=0.0, ratio=RATIO):
    """Brute force, of one matrix: all up to the int(N * ratio)-th smallest magnitude."""
    magnitudes = weight.abs().double().flatten()
    limit = magnitudes.kthvalue(int(len(magnitudes) * ratio)).values
    return torch.where(weight.abs().double() <= limit, weight * factor, weight)


def expected(unet, dense, factor=0.0):
    """What a pruned (or folded) pass has to see, of the effective weights of a dense one."""
    return [
        torch.cat([pruned_one(part, factor) for part in parts(name, weight)])
        if unet.is_pruned(name)
        else weight
        for name, weight in zip(unet.layers, dense, strict=True)
    ]


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_each_layer_has_its_own_threshold_and_the_rest_stays_dense(world, kind):
    host = world(kind)
    unet = unet_of(host)
    before = state_of(unet)
    off = run(host, None)[0]
    image, job, passes = run(host, ON)
    stored = [layer.weight for layer in unet.layers.values()]
    assert len(passes) == 4  # two steps, cond and uncond in one batch
    assert_same(passes[0], stored)
    assert_same(passes[1], expected(unet, stored))
    assert len(unet.pruned) == {"sd35-medium": 6}.get(kind, 4)
    plan = job.records[0].actor.plan()
    assert len(plan.thresholds) == {"sd35-medium": 8}.get(kind, 4)
    assert all(type(threshold) is float for threshold in plan.thresholds.values())
    assert len(set(plan.thresholds.values())) == len(plan.thresholds)
    assert not torch.equal(image, off)
    assert job.said == []
    assert state_of(unet) == before
    assert torch.equal(run(host, ON)[0], image)
    assert torch.equal(run(host, None)[0], off)


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_the_mix_is_that_of_a_dense_and_a_pruned_model(world, kind):
    """One step without guidance gives x0 itself: what FLUX dev and schnell are called with."""
    host = world(kind)
    unet = unet_of(host)
    dense = run(host, None, **ONE_CALL)[0]
    mixed, _, passes = run(host, ON, **ONE_CALL)
    assert len(passes) == 2
    weights = [layer.weight for layer in unet.layers.values()]
    for layer, weight in zip(unet.layers.values(), expected(unet, weights), strict=True):
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    pruned = run(host, None, **ONE_CALL)[0]
    difference = (pruned - dense).abs().max()
    assert (mixed - torch.lerp(dense, pruned, 1.5)).abs().max() < 1e-5 * difference


def test_mixing_x0_is_mixing_the_raw_output():
    """calculate_denoised of backend/modules/k_prediction.py, "const": x - sigma F."""
    x, dense, pruned = torch.randn(3, 1, 16, 4, 8, dtype=torch.float64)
    for sigma in (1.0, 0.3):
        mixed = torch.lerp(x - sigma * dense, x - sigma * pruned, 1.5)
        assert torch.allclose(mixed, x - sigma * torch.lerp(dense, pruned, 1.5), atol=1e-12)


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_the_decision_names_family_size_and_the_one_ratio(world, kind):
    host = world(kind)
    _, job, _ = run(host, ON, hires=True)
    label = FAMILIES[kind].label
    assert [(r.height, r.width, r.decision.sentence) for r in job.records] == [
        (32, 64, f"{label} 32x64: ratio 0.4 (set by hand)"),
        (64, 96, f"{label} 64x96: ratio 0.4 (set by hand)"),
    ]
    assert {r.native for r in job.records} == {(1024, 1024)}


@pytest.mark.parametrize("kind", FAMILY_NAMES)
@pytest.mark.parametrize(("way", "calls"), [("folded", 2), ("reuse-2", 3)])
def test_cheaper_ways(world, kind, way, calls):
    host = world(kind)
    unet = unet_of(host)
    stored = [layer.weight for layer in unet.layers.values()]
    before = state_of(unet)
    off = run(host, None)[0]
    settings = Settings(mode="always", ratios=f"{RATIO}", amplification=way)
    image, job, passes = run(host, settings)
    assert len(passes) == calls
    if way == "folded":
        assert_same(passes[0], expected(unet, stored, -0.5))
        assert_same(passes[1], expected(unet, stored, -0.5))
    else:
        assert_same(passes[-1], expected(unet, stored))
    assert job.records[0].pruned_passes == 2
    assert not torch.equal(image, off)
    assert state_of(unet) == before
    assert torch.equal(run(host, None)[0], off)


@pytest.mark.parametrize("memory", ["copy", "recompute"])
@pytest.mark.parametrize("kind", ["sd35-medium", "flux-dev"])
def test_copies_and_recomputing_are_the_same(world, kind, memory):
    host = world(kind)
    exact = run(host, ON)[0]
    assert torch.equal(run(host, Settings(mode="always", ratios="0.4", memory=memory))[0], exact)


def test_copies_count_what_is_pruned(world):
    unet = unet_of(world("sd35-medium"))
    each = 4 * WIDTH * WIDTH
    assert copy_bytes(unet, Ratios(0.1, 0.1, 0.1)) == 4 * (4 * each + each)  # fp32
    assert copy_bytes(unet, Ratios(0, 0, 0)) == 0


@pytest.mark.parametrize("kind", ["sd35-medium", "flux-dev"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16])
def test_weights_that_are_cast(world, kind, dtype):
    host = world(kind, dtype=dtype, manual_cast=True)
    unet = unet_of(host)
    before = state_of(unet)
    passes = run(host, ON)[2]
    stored = [layer.weight.float() for layer in unet.layers.values()]
    assert_same(passes[0], stored)
    assert_same(passes[1], expected(unet, stored))
    assert state_of(unet) == before


LORA_ON = {
    "sd35-medium": "joint_blocks.0.x_block.attn2.qkv",
    "flux-dev": "double_blocks.1.img_mlp.2",
}


@pytest.mark.parametrize("kind", list(LORA_ON))
@pytest.mark.parametrize("online", [False, True])
def test_a_lora_is_pruned_with_the_weight(world, kind, online):
    host = world(kind, dtype=torch.float16, manual_cast=True)
    unet = unet_of(host)
    plain = run(host, ON)[0]
    name = LORA_ON[kind]
    more = torch.linspace(-0.5, 0.5, unet.layers[name].weight.numel())
    patch = [1.0, ("diff", (more.reshape(unet.layers[name].weight.shape),)), 1.0, None, None]
    host.data.sd_model.use_lora({f"diffusion_model.{name}": patch}, online=online)
    image, _, passes = run(host, ON)
    assert_same(passes[1], expected(unet, passes[0]))
    assert not torch.equal(image, plain)
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host, ON)[0], plain)


@pytest.mark.parametrize("kind", ["sd35-medium", "flux-dev"])
def test_gguf_is_known_by_its_logical_shapes_and_pruned_after_unpacking(world, kind):
    host = world(kind)
    unet = unet_of(host)
    for layer in unet.layers.values():
        packed = (layer.weight * 64).round().clamp(-127, 127).to(torch.int8)
        layer.weight = Packed(packed, requires_grad=False)
    _, job, passes = run(host, ON)
    assert job.said == []
    assert_same(passes[1], expected(unet, passes[0]))
