"""The Forge adapter against a Forge in miniature: what acts when.

Other scripts, errors and memory: test_forge_scripts.py. Weights: test_forge_weights.py.
"""

from __future__ import annotations

import copy

import pytest
import torch

from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.pruning import group_threshold
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.job import Job, ModelFacts
from tests.webui.fakes.forge_process import Processing
from tests.webui.fakes.forge_world import RATIOS, assert_same, masked, pattern, run, worlds


@pytest.fixture
def world(monkeypatch):
    return worlds(monkeypatch)


def test_each_call_is_a_dense_and_a_pruned_pass(world):
    host = world()
    off, _, passes = run(host, None)
    assert pattern(passes) == "dd"
    on, job, passes = run(host)
    assert pattern(passes) == "dpdp"
    assert_same(passes[1], masked(passes[0]))
    assert job.records[0].actor.stats.dense_passes == 2
    assert job.records[0].pruned_passes == 2
    assert not torch.equal(on, off)
    assert torch.equal(run(host)[0], on)
    assert torch.equal(run(host, None)[0], off)


def test_the_image_is_that_of_two_models_mixed_by_hand(world):
    host = world()
    on = run(host)[0]
    unet = host.data.sd_model.forge_objects.unet.model.diffusion_model
    pruned = copy.deepcopy(host.data.sd_model.forge_objects.unet.model)
    layers = [linear for block in pruned.diffusion_model.order for linear in block]
    dense = [linear.weight for block in unet.order for linear in block]
    for linear, weight in zip(layers, masked(dense), strict=True):
        linear.weight = torch.nn.Parameter(weight)

    def both(apply_model, args):
        c = {**args["c"], "transformer_options": dict(args["c"]["transformer_options"])}
        z_dense = apply_model(args["input"], args["timestep"], **c)
        z_pruned = pruned.apply_model(args["input"], args["timestep"], **args["c"])
        return 1.5 * z_pruned - 0.5 * z_dense

    base = host.data.sd_model.forge_objects_after_applying_lora.unet
    base.set_model_unet_function_wrapper(both)
    torch.testing.assert_close(on, run(host, None)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(mode="always", ratios=Ratios(0, 0, 0)),
        Settings(mode="always", ratios=Ratios(1e-6, 0, 0)),  # less than one weight
        Settings(mode="always", ratios=RATIOS, k=0),
        Settings(mode="auto", ratios=RATIOS),  # a model whose native size nobody knows
        Settings(mode="off", ratios=RATIOS),
    ],
)
def test_what_prunes_nothing_changes_no_bit(world, settings):
    host = world()
    off = run(host, None)[0]
    image, job, passes = run(host, settings)
    assert torch.equal(image, off)
    assert "p" not in pattern(passes)
    assert job.acted() == []


def test_without_a_job_nothing_is_installed(world):
    host = world()
    run(host, None)
    assert host.data.sd_model.forge_objects.unet is (
        host.data.sd_model.forge_objects_after_applying_lora.unet
    )


@pytest.mark.parametrize("together", [True, False])
def test_batched_or_split_conditions(world, together):
    host = world()
    _, job, passes = run(host, together=together)
    assert pattern(passes) == ("dpdp" if together else "dpdpdpdp")
    assert len(job.records) == 1


def test_cfg_1_calls_with_the_prompt_alone(world):
    assert pattern(run(world(), cfg=1.0)[2]) == "dpdp"


def test_the_window_goes_by_the_schedule(world):
    settings = Settings(mode="always", ratios=RATIOS, start=0.25, end=0.75)
    assert pattern(run(world(), settings, steps=4)[2]) == "ddpdpd"
    # Split conditions are two calls a step, which is no progress in the schedule.
    assert pattern(run(world(), settings, steps=4, together=False)[2]) == "dd" + "dpdp" * 2 + "dd"


def test_hires_fires_the_hook_twice(world):
    host = world()
    depth = []

    def look(p):
        wrapper = p.sd_model.forge_objects.unet.model_options["model_function_wrapper"]
        depth.append(getattr(wrapper, "crdiff_earlier", "not ours"))

    host.hooks.append(look)
    _, job, passes = run(host, hires=True)
    assert depth == [None] * 3
    assert pattern(passes) == "dp" * 4
    assert [(r.part, r.height, r.width) for r in job.records] == [
        ("first", 32, 64),
        ("hires", 64, 96),
    ]


def test_passes_and_ratios_of_the_hires_pass(world):
    host = world()
    only = Settings(mode="always", ratios=RATIOS, passes="hires")
    assert pattern(run(host, only, hires=True)[2]) == "dd" + "dpdp"
    own = Settings(mode="always", ratios=RATIOS, hires="set", hires_ratios=Ratios(0, 0.2, 0))
    passes = run(host, own, hires=True)[2]
    assert_same(passes[1], masked(passes[0]))
    assert_same(passes[5], masked(passes[4], Ratios(0, 0.2, 0)))


def test_stored_ratios_go_by_the_latents_size(world, monkeypatch):
    """img2img and hires sizes are not p.width and p.height: the denoiser's latent tells."""
    host = world()
    stored = [Preset("sd15", 32, 64, RATIOS, "test", "fake")]
    p = Processing(host)
    p.width = p.height = 512
    p.crdiff_job = Job(Settings(max_log_area=0.1), stored)
    facts = ModelFacts(FAMILIES["sd15"], "base")
    monkeypatch.setattr(host.adapter._models, "facts_of", lambda *_: facts)
    host.generate(p)
    assert p.crdiff_job.records[0].decision.code == "stored"


def test_thresholds_of_the_fake_are_the_cores():
    """The brute force of these tests means what the core means."""
    weights = [torch.randn(7, 9), torch.randn(5, 4)]
    threshold = group_threshold(weights, 0.37)
    flat = torch.cat([weight.abs().flatten() for weight in weights]).sort().values
    assert threshold == flat[int(83 * 0.37) - 1]
