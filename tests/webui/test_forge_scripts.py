"""The Forge adapter beside other scripts; errors; and that nothing is left behind."""

from __future__ import annotations

import gc
import types
import weakref

import pytest
import torch

from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.job import Job
from tests.webui.fakes.forge import UNet
from tests.webui.fakes.forge_process import (
    ControlNet,
    Engine,
    Interrupted,
    Processing,
    UnetPatcher,
)
from tests.webui.fakes.forge_world import (
    ON,
    RATIOS,
    assert_same,
    masked,
    pattern,
    run,
    state_of,
    worlds,
)


@pytest.fixture
def world(monkeypatch):
    return worlds(monkeypatch)


def test_controlnet_keeps_its_effect_in_both_passes(world):
    host = world()
    without = run(host)[0]
    base = host.data.sd_model.forge_objects_after_applying_lora.unet
    base.controlnet = ControlNet()
    noop = Settings(mode="always", ratios=Ratios(0.9, 0, 0), k=1)
    seen = []

    def count(unet, index):
        seen.append(index)

    base.model.diffusion_model.interrupt = count
    with_control = run(host)[0]
    assert len(seen) == 4 * 7
    assert not torch.equal(with_control, without)
    # At k = 1 only the pruned pass counts: control must have been there.
    k1 = run(host, noop)[0]
    base.controlnet = None
    assert not torch.equal(k1, run(host, noop)[0])


class Tiled:
    """A wrapper as MultiDiffusion's: an object, with a buffer of its own that it answers with."""

    def __init__(self):
        self.buffer = None
        self.calls = 0
        self.moved_to = []

    def __call__(self, apply_model, args):
        self.calls += 1
        assert len(args["c"]["control"]["output"]) == 4
        output = apply_model(args["input"], args["timestep"], **args["c"])
        if self.buffer is None:
            self.buffer = torch.zeros_like(output)
        self.buffer.copy_(output).mul_(0.5)
        return self.buffer

    def to(self, target):
        self.moved_to.append(target)
        return self

    def __deepcopy__(self, memo):
        return self  # so that the test sees the calls


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_other_wrapper_is_called_inside_each_pass(world, when):
    """In whichever order the scripts come; the slot holds one wrapper."""
    host = world()
    tiled = Tiled()

    def other_script(p):
        unet = p.sd_model.forge_objects.unet.clone()
        unet.set_model_unet_function_wrapper(tiled)
        p.sd_model.forge_objects.unet = unet

    host.data.sd_model.forge_objects_after_applying_lora.unet.controlnet = ControlNet()
    host.hooks.insert(0 if when == "before" else 1, other_script)
    off = run(host, None)[0]
    tiled.calls = 0
    on, _, passes = run(host)
    assert pattern(passes) == "dpdp"
    assert tiled.calls == 4
    assert tiled.moved_to
    # Its buffer is the same tensor in both passes, so unless copied they would be equal.
    k1 = run(host, Settings(mode="always", ratios=RATIOS, k=1))[0]
    assert not torch.equal(on, k1)
    assert torch.equal(run(host, None)[0], off)


def test_a_script_that_wraps_our_wrapper(world):
    """Ours goes around it again, and acts once."""
    host = world()

    def chain(p):
        unet = p.sd_model.forge_objects.unet.clone()
        inner = unet.model_options["model_function_wrapper"]
        unet.set_model_unet_function_wrapper(lambda apply_model, args: inner(apply_model, args))
        p.sd_model.forge_objects.unet = unet

    host.hooks.append(chain)
    assert pattern(run(host)[2]) == "dpdp"


@pytest.mark.parametrize("refiner", [True, False])
def test_refiner_switch(world, refiner):
    """No hook is called for it; the first model is gone before the second is loaded."""
    host = world()
    info = types.SimpleNamespace(name_for_extra="refiner", filename="refiner.safetensors")
    second = UNet(seed=7)
    first = weakref.ref(host.data.sd_model.forge_objects.unet.model.diffusion_model.order[0][0])
    alive = []

    def load():
        alive.append(first() is not None)
        engine = Engine("refiner", second)
        engine.sd_checkpoint_info = info
        return engine

    host.loaders[id(info)] = load
    settings = Settings(mode="always", ratios=RATIOS, memory="copy", refiner=refiner)
    p = Processing(host, refiner=info, steps=4)
    p.crdiff_job = Job(settings, [])
    host.generate(p)
    assert alive == [False]
    assert pattern(second.passes) == ("dpdp" if refiner else "dd")
    if refiner:
        assert_same(second.passes[1], masked(second.passes[0]))
    codes = [(r.refiner, r.checkpoint, r.decision.code) for r in p.crdiff_job.records]
    assert codes == [
        (False, "base", "set"),
        (True, "refiner", "set" if refiner else "refiner-off"),
    ]


def test_the_wrapper_is_a_function_and_keeps_nothing_alive(world):
    host = world()
    p = Processing(host)
    p.crdiff_job = Job(ON, [])
    host.generate(p)
    unet = host.data.sd_model.forge_objects.unet
    wrapper = unet.model_options["model_function_wrapper"]
    assert isinstance(wrapper, types.FunctionType)
    assert not hasattr(wrapper, "to")
    assert unet.clone().model_options["model_function_wrapper"] is wrapper
    died = weakref.ref(p)
    del p
    gc.collect()
    assert died() is None
    # Whatever calls it now gets the dense model.
    unet.model.diffusion_model.passes.clear()
    with torch.no_grad():
        c = {"c_crossattn": torch.ones(1, 1, 1), "transformer_options": {}}
        args = {"input": torch.ones(1, 4, 4, 8), "timestep": torch.ones(1), "c": c}
        wrapper(unet.model.apply_model, args)
    assert pattern(unet.model.diffusion_model.passes) == "d"


def test_an_inner_generation_without_a_job_stays_dense(world):
    """ADetailer's, between the passes of an outer one: guarded by the current p."""
    host = world()
    seen = []

    def inner(p):
        if p.crdiff_job is not None:
            q = Processing(host)
            unet = host.data.sd_model.forge_objects.unet.model.diffusion_model
            host.generate(q)
            seen.append(pattern(unet.passes))
            unet.passes.clear()
            host._reset(host.data.sd_model)
            host.adapter.before_sampling(p)

    host.hooks.append(inner)
    assert pattern(run(host)[2]) == "dpdp"
    assert seen == ["dd"]


def test_copies_are_announced_to_the_host_once(world):
    host = world()
    reserved = []

    def look(p):
        reserved.append(p.sd_model.forge_objects.unet.extra_preserved_memory_during_sampling)

    host.hooks += [host.adapter.before_sampling, look]
    settings = Settings(mode="always", ratios=Ratios(0, 0.5, 0), memory="copy")
    run(host, settings)
    unet = host.data.sd_model.forge_objects.unet.model.diffusion_model
    mid = unet.order[2]
    assert reserved == [sum(linear.weight.numel() * 4 for linear in mid)]
    reserved.clear()
    run(host)
    assert reserved == [0]
    assert host.data.sd_model.forge_objects_after_applying_lora.unet.clone() is not None
    base: UnetPatcher = host.data.sd_model.forge_objects_after_applying_lora.unet
    assert base.extra_preserved_memory_during_sampling == 0


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Interrupted()])
@pytest.mark.parametrize("cast", [False, True], ids=["plain", "cast"])
@pytest.mark.parametrize("memory", ["copy", "recompute"])
def test_an_error_in_a_pruned_pass_leaves_nothing(world, error, cast, memory):
    host = world(UNet(dtype=torch.float16 if cast else torch.float32, manual_cast=cast))
    off = run(host, None)[0]
    unet = host.data.sd_model.forge_objects.unet.model.diffusion_model
    before = state_of(unet)

    def strike(unet, index):
        if len(unet.passes) == 3 and index == 4:
            raise error

    unet.interrupt = strike
    settings = Settings(mode="always", ratios=RATIOS, memory=memory)
    with pytest.raises(type(error)):
        run(host, settings)
    assert pattern(unet.passes) == "dpd"  # it struck in the second pruned pass
    unet.interrupt = None
    assert state_of(unet) == before
    assert torch.equal(run(host, None)[0], off)
    assert pattern(run(host, settings)[2]) == "dpdp"


def test_installing_again_changes_nothing(world):
    host = world()
    host.adapter.install()
    assert len(host.callbacks) == 1
