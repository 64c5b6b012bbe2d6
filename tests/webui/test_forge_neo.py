"""The Forge adapter against a Forge Neo in miniature: what Neo does differently from Forge 2."""

from __future__ import annotations

import logging
import sys
import types

import pytest
import torch

from crdiff_ext.settings import Settings
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.forge_online import WeightFunctions, find_online
from crdiff_ext.webui.forge_weights import _places
from crdiff_ext.webui.hosts import show_notices
from tests.webui.fakes import neo
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
    zeros,
)
from tests.webui.forge_checks import (
    a_lora_function_comes_before_ours,
    casts_are_pruned_by_a_function,
    layers_of,
)


@pytest.fixture
def world(monkeypatch):
    PLANS.clear()

    def make(unet=None, fast=False):
        host = neo.NeoHost(neo.NeoEngine("base", unet or neo.UNet()), fast)
        attach(monkeypatch, host, host.modules())
        return host

    yield make
    assert neo.ForgeWeights.weight_function == [], "the list that all layers share was written to"


def test_its_way_to_change_weights_is_found_by_what_it_has(world):
    world()
    assert isinstance(find_online(), WeightFunctions)
    del sys.modules["backend.operations"].weights_manual_cast  # a later one
    assert find_online() is None


def test_notices_are_printed_where_the_host_prints_errors_alone(monkeypatch):
    """modules/logging_config.py."""
    mine, root = logging.getLogger("crdiff"), logging.getLogger()
    monkeypatch.setattr(mine, "level", logging.NOTSET)
    monkeypatch.setattr(root, "level", logging.ERROR)
    mine.manager._clear_cache()
    assert not mine.isEnabledFor(logging.WARNING)
    show_notices()
    assert mine.isEnabledFor(logging.WARNING)
    assert not mine.isEnabledFor(logging.INFO)
    mine.setLevel(logging.NOTSET)
    root.setLevel(logging.DEBUG)
    show_notices()
    assert mine.isEnabledFor(logging.DEBUG), "a host that wants more is left alone"


def test_plain_weights_and_a_merged_lora(world):
    host = world()
    off = run(host, None)[0]
    before = state_of(unet_of(host))
    on, _, plain = run(host)
    assert pattern(plain) == "dpdp"
    assert_same(plain[1], masked(plain[0]))
    host.data.sd_model.use_lora(LORA)
    with_lora, _, passes = run(host)
    assert not torch.equal(passes[0][0], plain[0][0])
    assert_same(passes[1], masked(passes[0]))
    assert not torch.equal(with_lora, on)
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host)[0], on)
    assert len(PLANS) == 2  # the plan without LoRA was found again
    assert torch.equal(run(host, None)[0], off)
    layers = [state[:3] + state[4:] for state in state_of(unet_of(host))]
    assert layers == [state[:3] + state[4:] for state in before]


def test_a_merged_lora_that_no_sample_sees(world):
    host = world()
    run(host)
    diff = torch.full((64,), 0.25)
    diff[_places(64)] = 0
    host.data.sd_model.use_lora({TO_Q: [1.0, ("diff", (diff.reshape(8, 8),)), 1.0, None, None]})
    _, _, passes = run(host)
    assert_same(passes[1], masked(passes[0]))
    assert len(PLANS) == 2


@pytest.mark.parametrize("shape", [(320, 320), (12288, 3072), (3072, 12288), (1280, 5120)])
def test_samples_are_of_rows_and_columns_of_their_own(shape):
    places = _places(shape[0] * shape[1])
    assert len({place // shape[1] for place in places}) == len(places)
    assert len({place % shape[1] for place in places}) >= len(places) - 1
    assert all(0 <= place < shape[0] * shape[1] for place in places)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
@pytest.mark.parametrize("way", ["exact", "folded"])
def test_weights_that_are_cast_are_pruned_by_a_function(world, dtype, way):
    casts_are_pruned_by_a_function(world(neo.UNet(dtype=dtype, manual_cast=True)), way)


def test_an_online_lora_is_pruned_with_the_weight(world):
    a_lora_function_comes_before_ours(world(neo.UNet(dtype=torch.float8_e4m3fn, manual_cast=True)))


class Packed(torch.nn.Parameter):
    """backend/operations_gguf.py, ParameterGGUF."""

    gguf_cls = "Q8"


def test_gguf_is_pruned_after_unpacking(world):
    unet = neo.UNet()
    for linear in layers_of(unet):
        packed = (linear.weight * 64).round().clamp(-127, 127).to(torch.int8)
        linear.weight = Packed(packed, requires_grad=False)
    passes = run(world(unet))[2]
    assert zeros(passes[1]) > zeros(passes[0])
    assert_same(passes[1], masked(passes[0]))


def quantize(unet, full):
    for index, linear in enumerate(layers_of(unet)):
        linear.weight = neo.Quantized(linear.weight.data, requires_grad=False)
        linear.weight.scale = 0.5 + index % 3
        linear._full_precision_mm = full
    return unet


def test_quantized_weights_are_ranked_by_what_they_stand_for(world):
    passes = run(world(quantize(neo.UNet(), full=True)))[2]
    assert pattern(passes) == "dpdp"
    assert_same(passes[1], masked(passes[0]))


def spoil(host, how):
    model = host.data.sd_model.forge_objects.unet.model
    if how == "quantized":
        quantize(model.diffusion_model, full=False)
    elif how == "fast fp8":
        for linear in layers_of(model.diffusion_model):
            linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
            linear.parameters_manual_cast = True
            linear.__class__ = neo.FastLinear
    else:  # extensions-builtin/sd_forge_compile, between two images
        run(host)
        model._torch_compile_config = ("dynamic",)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("quantized", "this model is not supported: its layers multiply in 8 or 4 bits"),
        ("fast fp8", "this model is not supported: its layers multiply in 8 bits (--fast-fp8)"),
        ("compiled", "a compiled model (torch.compile) can't be pruned"),
    ],
)
def test_what_would_not_be_pruned_is_refused(world, how, sentence):
    host = world()
    spoil(host, how)
    off = run(host, None)[0]
    image, job, passes = run(host)
    assert torch.equal(image, off)
    assert len(passes) == 2
    assert job.said == [f"CR-Diff: {sentence}"]
    assert job.acted() == []


@pytest.mark.parametrize("refiner", [True, False])
def test_a_refiner_in_the_first_models_place(world, refiner):
    """The same module and tensors, without versions: only the host's note tells of the switch."""
    with torch.inference_mode():
        host = world(neo.UNet(), fast=True)
        info = types.SimpleNamespace(name_for_extra="refiner", filename="r", shorthash="abc")
        host.loaders[id(info)] = lambda: neo.NeoEngine("refiner", neo.UNet(seed=1))
        settings = Settings(mode="always", ratios=RATIOS, refiner=refiner)
        _, job, passes = run(host, settings, refiner=info)
    assert pattern(passes) == ("dpdp" if refiner else "dpd")
    assert_same(passes[1], masked(passes[0]))
    assert not torch.equal(passes[2][0], passes[0][0]), "no switch: this test tests nothing"
    if refiner:
        assert_same(passes[3], masked(passes[2]))
    assert [(record.checkpoint, record.refiner) for record in job.records] == [
        ("base", False),
        ("refiner", True),
    ]


def test_what_another_wrapper_wants_loaded_is_loaded(world):
    """backend/memory_management.py, load_models_gpu asks the wrapper for ``models``."""

    class Wrapper:
        def __call__(self, apply_model, args):
            return apply_model(args["input"], args["timestep"], **args["c"])

        def __deepcopy__(self, memo):
            return self  # backend/utils.py, deepcopy_

        def models(self):
            return ["its model"]

    host = world()
    asked = []
    prepare = host._prepare
    host._prepare = lambda unet: (
        asked.append(unet.model_options["model_function_wrapper"].models()),
        prepare(unet),
    )
    base = host.data.sd_model.forge_objects_after_applying_lora.unet
    base.set_model_unet_function_wrapper(Wrapper())
    run(host)
    assert asked == [["its model"]]
