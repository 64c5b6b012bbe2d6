"""The Forge adapter against a reForge in miniature: what it does differently from Forge 2."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.forge_models import _prediction
from crdiff_ext.webui.forge_online import CastFunctions, find_online
from tests.webui.fakes import reforge
from tests.webui.fakes.forge_world import (
    assert_same,
    attach,
    masked,
    pattern,
    run,
    unet_of,
)
from tests.webui.forge_checks import (
    a_lora_function_comes_before_ours,
    a_merged_lora_is_pruned_and_goes,
    casts_are_pruned_by_a_function,
    layers_of,
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


def test_its_way_to_change_weights_is_found_by_what_it_has(world):
    world()
    assert isinstance(find_online(), CastFunctions)
    del sys.modules["ldm_patched.modules.ops"].cast_bias_weight  # a later one
    assert find_online() is None


def test_plain_weights_and_a_merged_lora(world):
    host = world()
    passes = run(host)[2]
    assert pattern(passes) == "dpdp"
    assert_same(passes[1], masked(passes[0]))
    a_merged_lora_is_pruned_and_goes(host)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
@pytest.mark.parametrize("way", ["exact", "folded"])
def test_weights_that_are_cast_are_pruned_by_a_function(world, dtype, way):
    host = world(reforge.UNet(dtype=dtype, manual_cast=True))
    job = casts_are_pruned_by_a_function(host, way)
    assert job.records[0].actor.plan().dtypes["down"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_lora_on_swapped_weights_is_pruned_with_them(world, dtype):
    """Added at each forward by a function; its layer is cast, the others need not be."""
    a_lora_function_comes_before_ours(
        world(reforge.UNet(dtype=dtype, manual_cast=dtype != torch.float32))
    )


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
