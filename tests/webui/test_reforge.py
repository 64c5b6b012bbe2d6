"""The Forge adapter against a reForge in miniature: what it does differently from Forge 2."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from crdiff_ext.settings import Settings
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.forge_models import _prediction
from crdiff_ext.webui.forge_online import CastFunctions, find_online
from tests.webui.fakes import reforge
from tests.webui.fakes.forge_world import (
    LORA,
    RATIOS,
    TO_Q,
    assert_same,
    attach,
    masked,
    pattern,
    run,
    state_of,
    unet_of,
)


@pytest.fixture
def world(monkeypatch):
    PLANS.clear()

    def make(unet=None, online=True):
        host = reforge.ReForgeHost(reforge.Engine("base", unet or reforge.UNet()))
        attach(monkeypatch, host, host.modules(online))
        return host

    yield make
    assert reforge.CastWeightBiasOp.weight_function == [], "the list that all share was written to"


def layers_of(unet):
    return [linear for block in unet.order for linear in block]


def test_its_way_to_change_weights_is_found_by_what_it_has(world):
    world()
    assert isinstance(find_online(), CastFunctions)
    del sys.modules["ldm_patched.modules.ops"].cast_bias_weight  # a later one
    assert find_online() is None


def test_plain_weights_and_a_merged_lora(world):
    host = world()
    off = run(host, None)[0]
    on, _, plain = run(host)
    assert pattern(plain) == "dpdp"
    assert_same(plain[1], masked(plain[0]))
    before = state_of(unet_of(host))
    host.data.sd_model.use_lora(LORA)
    with_lora, _, passes = run(host)
    assert not torch.equal(passes[0][0], plain[0][0])
    assert_same(passes[1], masked(passes[0]))
    assert not torch.equal(with_lora, on)
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host)[0], on)
    assert len(PLANS) == 2  # the plan without LoRA was found again
    assert torch.equal(run(host, None)[0], off)
    assert state_of(unet_of(host)) == before


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
@pytest.mark.parametrize("way", ["exact", "folded"])
def test_weights_that_are_cast_are_pruned_by_a_function(world, dtype, way):
    host = world(reforge.UNet(dtype=dtype, manual_cast=True))
    off = run(host, None)[0]
    before = state_of(unet_of(host))
    seen = []

    def look(unet, index):
        seen.append(len(unet.order[0][0].weight_function))

    unet_of(host).interrupt = look
    settings = Settings(mode="always", ratios=RATIOS, amplification=way)
    image, job, passes = run(host, settings)
    assert max(seen) == 1, "masked before the cast, outside of the host's stream"
    stored = [linear.weight.float() for linear in layers_of(unet_of(host))]
    if way == "exact":
        assert_same(passes[0], stored)
        assert_same(passes[1], masked(stored))
    else:
        expected = [
            torch.where(kept != 0, weight, weight * -0.5)
            for weight, kept in zip(stored, masked(stored), strict=True)
        ]
        assert_same(passes[0], expected)
    assert job.records[0].actor.plan().dtypes["down"] == str(dtype).removeprefix("torch.")
    assert not torch.equal(image, off)
    assert state_of(unet_of(host)) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_lora_on_swapped_weights_is_pruned_with_them(world, dtype):
    """Added at each forward by a function; its layer is cast, the others need not be."""
    host = world(reforge.UNet(dtype=dtype, manual_cast=dtype != torch.float32))
    plain = run(host)[0]
    host.data.sd_model.use_lora(LORA, online=True)
    with_lora, job, passes = run(host)
    assert job.acted()
    assert_same(passes[1], masked(passes[0]))
    first = layers_of(unet_of(host))[0]
    assert not torch.equal(passes[0][0], first.weight.float())
    functions, before = first.weight_function, state_of(unet_of(host))
    assert len(functions) == 1
    twice = {TO_Q: [2.0, *LORA[TO_Q][1:]]}
    host.data.sd_model.use_lora(twice, online=True)  # the stored weights are the same
    stronger, _, passes = run(host)
    assert_same(passes[1], masked(passes[0]))
    assert len(PLANS) == 3
    assert not torch.equal(stronger, with_lora)
    assert state_of(unet_of(host)) == before
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host)[0], plain)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_weights_with_a_scale_are_refused(world, scale):
    """ldm_patched/modules/ops.py: the scale comes after the functions (scaled_fp8_ops), or the
    weight is multiplied in 8 bits (fp8_ops)."""
    host = world(reforge.UNet(dtype=torch.float8_e4m3fn, manual_cast=True))
    for linear in layers_of(unet_of(host)):
        linear.scale_weight = None if scale is None else torch.nn.Parameter(torch.tensor(scale))
    off = run(host, None)[0]
    image, job, _ = run(host)
    assert torch.equal(image, off)
    assert job.acted() == []
    assert "in 8 bits" in job.said[0]


def test_prediction_is_told_by_a_class():
    unet = reforge.UNet()
    assert _prediction(reforge.BaseModel(unet)) == "epsilon"
    assert _prediction(reforge.BaseModel(unet, reforge.V_PREDICTION)) == "v_prediction"
    assert _prediction(types.SimpleNamespace()) is None


def test_what_a_refiner_left_in_memory_is_not_what_is_refined(world):
    host = world()
    info = types.SimpleNamespace(name_for_extra="refiner", filename="r", shorthash="abc")

    def load():
        engine = reforge.Engine("refiner", reforge.UNet(seed=1))
        engine.sd_checkpoint_info = info
        return engine

    host.loaders[id(info)] = load
    _, job, passes = run(host, refiner=info)
    assert [(record.checkpoint, record.refiner) for record in job.records] == [
        ("base", False),
        ("refiner", True),
    ]
    assert pattern(passes) == "dp"  # the first model's
    assert host.adapter.loaded_model().checkpoint == "refiner"
    host.adapter.settle()
    assert host.adapter.loaded_model().checkpoint == "base"
    host.data.sd_model = None  # nothing is loaded for its own sake
    host.adapter.settle()
    assert host.adapter.loaded_model() is None


def test_a_host_without_functions_masks_what_is_stored(world):
    """Forge Classic."""
    host = world(reforge.UNet(dtype=torch.float16, manual_cast=True), online=False)
    off = run(host, None)[0]
    image, _, passes = run(host)
    stored = [linear.weight.float() for linear in layers_of(unet_of(host))]
    assert_same(passes[1], masked(stored))
    assert not torch.equal(image, off)
