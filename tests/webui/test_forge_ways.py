"""Folded and reused amplification in the Forge adapter: fewer passes, from the first call on."""

from __future__ import annotations

import types

import pytest
import torch

from crdiff_ext.pruning import prune
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.forge_online import PATCH
from crdiff_ext.webui.job import Job
from tests.webui.fakes.forge import CALCULATORS, UNet
from tests.webui.fakes.forge_process import (
    Engine,
    Interrupted,
    Processing,
    calc_cond_uncond_batch,
)
from tests.webui.fakes.forge_world import (
    RATIOS,
    assert_same,
    masked,
    pattern,
    run,
    state_of,
    worlds,
)
from tests.webui.test_forge_weights import LORA, layers_of, unet_of

NOTHING = Ratios(1e-9, 0, 0)


def ask(way, **more):
    return Settings(**{"mode": "always", "ratios": RATIOS, "amplification": way, **more})


@pytest.fixture
def world(monkeypatch):
    return worlds(monkeypatch)


def folded(weights, factor=-0.5):
    """Brute force: the small weights times ``factor``."""
    return [
        torch.where(kept == 0, w * factor, w)
        for w, kept in zip(weights, masked(weights), strict=True)
    ]


def made(job):
    """(dense, pruned) passes of each stretch."""
    return [
        (r.actor.stats.dense_passes, r.actor.stats.pruned_passes)
        for r in job.records
        if r.actor is not None
    ]


@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("cast", [False, True], ids=["plain", "cast"])
def test_folded_is_one_pass_from_the_first_call_on(world, memory, cast):
    dtype = torch.float16 if cast else torch.float32
    host = world(UNet(dtype=dtype, manual_cast=cast))
    off, _, (dense, _) = run(host, None)
    before = state_of(unet_of(host))
    image, job, passes = run(host, ask("folded", memory=memory))
    assert made(job) == [(0, 2)]
    assert len(passes) == 2
    for weights in passes:
        assert_same(weights, folded(dense))
    exact = run(host, ask("exact"))[0]
    assert (image - exact).norm() < (exact - off).norm()
    assert not torch.equal(image, exact)
    assert state_of(unet_of(host)) == before
    assert torch.equal(run(host, None)[0], off)


def test_k_of_one_is_a_single_pass(world):
    for way in ("exact", "folded", "reuse-2"):
        _, job, passes = run(world(), ask(way, k=1))
        assert made(job) == [(0, 2)]
        assert pattern(passes) == "pp"


def test_lora_on_off_and_changed(world):
    host = world()
    off = run(host, None)[0]
    before = state_of(unet_of(host))
    plain = run(host, ask("folded"))[0]
    half = {key: [0.5, *patch[1:]] for key, patch in LORA.items()}
    images = []
    for patches, file in ((LORA, "a"), (half, "b"), (LORA, "a")):
        host.data.sd_model.use_lora(patches, file)
        _, _, (dense, _) = run(host, None)
        image, job, passes = run(host, ask("folded"))
        assert made(job) == [(0, 2)]
        assert_same(passes[0], folded(dense))
        images.append(image)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host, ask("folded"))[0], plain)
    assert torch.equal(run(host, None)[0], off)
    assert state_of(unet_of(host)) == before


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_online_lora_is_folded_with_the_weight(world, dtype):
    host = world(UNet(dtype=dtype, manual_cast=True))
    host.data.sd_model.use_lora(LORA, online=True)
    _, _, (dense, _) = run(host, None)
    before = state_of(unet_of(host))
    _, job, passes = run(host, ask("folded"))
    assert made(job) == [(0, 2)]
    assert_same(passes[1], folded(dense))
    assert not torch.equal(dense[0], layers_of(unet_of(host))[0].weight.float())
    assert state_of(unet_of(host)) == before


def test_the_patch_scales_what_is_small(world):
    world()
    weight = torch.tensor([0.1, -0.2, 0.3])
    found = CALCULATORS[PATCH](weight.clone(), 1.0, (0.25, -0.5))
    assert torch.equal(found, prune(weight, 0.25, -0.5))
    assert torch.allclose(found, torch.tensor([-0.05, 0.1, 0.3]))


@pytest.mark.parametrize("way", ["folded", "reuse-2", "reuse-4"])
def test_what_prunes_nothing_changes_no_bit(world, way):
    host = world()
    off = run(host, None)[0]
    image, job, passes = run(host, ask(way, ratios=NOTHING))
    assert torch.equal(image, off)
    assert pattern(passes).strip("d") == ""
    assert job.acted() == []


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Interrupted()])
@pytest.mark.parametrize("cast", [False, True], ids=["plain", "cast"])
@pytest.mark.parametrize("memory", ["copy", "recompute"])
def test_an_error_in_a_folded_pass_leaves_nothing(world, error, cast, memory):
    host = world(UNet(dtype=torch.float16 if cast else torch.float32, manual_cast=cast))
    off = run(host, None)[0]
    before = state_of(unet_of(host))

    def strike(unet, index):
        if len(unet.passes) == 1 and index == 4:
            raise error

    unet_of(host).interrupt = strike
    with pytest.raises(type(error)):
        run(host, ask("folded", memory=memory))
    unet_of(host).interrupt = None
    assert state_of(unet_of(host)) == before
    assert torch.equal(run(host, None)[0], off)


def test_damaged_weights_give_a_dense_image(world):
    host = world()
    with torch.no_grad():
        layers_of(unet_of(host))[3].weight[0, 0] = float("nan")
    _, job, passes = run(host, ask("folded"))
    assert len(passes) == 2
    assert made(job) == [(2, 1)]  # one folded pass was begun, and its thresholds refused
    assert job.acted() == []
    assert "NaN" in job.said[0]


# Reuse


@pytest.mark.parametrize(("way", "expected"), [("reuse-2", "dppdpp"), ("reuse-4", "dpppp")])
def test_a_dense_pass_at_every_nth_step(world, way, expected):
    host = world()
    image, _, passes = run(host, ask(way), steps=4)
    assert pattern(passes) == expected
    assert not torch.equal(image, run(host, ask("exact"), steps=4)[0])


def test_differences_are_the_ones_by_hand(world):
    host = world()
    image = run(host, ask("reuse-2"), steps=3)[0]
    base = host.data.sd_model.forge_objects_after_applying_lora.unet
    outputs = []

    def record(apply_model, args):
        output = apply_model(args["input"], args["timestep"], **args["c"])
        outputs.append(output.clone())
        return output

    base.set_model_unet_function_wrapper(record)
    assert torch.equal(run(host, ask("reuse-2"), steps=3)[0], image)
    d0, p0, p1, d2, p2 = outputs
    mixes = [torch.lerp(d0, p0, 1.5), p1 + 0.5 * (p0 - d0), torch.lerp(d2, p2, 1.5)]
    x = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    for step, mix in enumerate(mixes):
        cond, uncond = mix.chunk(2)
        x = x + (uncond + (cond - uncond) * 7.0 - x) / (3 - step)
    torch.testing.assert_close(x, image, rtol=1e-4, atol=1e-5)


def test_split_conditions_keep_their_own_differences(world):
    together = run(world(), ask("reuse-4"), steps=4)[0]
    apart, _, passes = run(world(), ask("reuse-4"), steps=4, together=False)
    assert pattern(passes) == "dpdp" + "pp" * 3
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)


def test_guidance_that_calls_again_has_keys_of_its_own(world):
    """PAG and SAG: one more call of the UNet at the end of each denoiser call."""
    host = world()
    inner = host._denoise

    def denoise(p, x, step):
        found = inner(p, x, step)
        unet = p.sd_model.forge_objects.unet
        sigma = torch.full((len(x),), 14.0 / (step + 1))
        cond = [("cond", torch.full((1, 1, 1), 0.9))]
        return found + calc_cond_uncond_batch(unet, cond, x * 0.9, sigma)["cond"] * 0.1

    host._denoise = denoise
    _, job, passes = run(host, ask("reuse-4"), steps=4)
    assert pattern(passes) == "dpdp" + "pp" * 3
    (record,) = job.records
    job2 = run(host, ask("folded"), steps=4)[1]
    assert made(job2) == [(0, 8)]
    assert record.actor._amplifier._deltas._kept == {}  # let go of at the end


def test_which_conditions_are_in_a_call_is_part_of_the_key(world):
    """CFG 1 in some steps (NGMS): cond alone, in the shape that split conditions have too."""
    host = world()
    inner = host._denoise

    def denoise(p, x, step):
        p.cfg, p.together = (1.0, False) if step % 2 else (7.0, False)
        return inner(p, x, step)

    host._denoise = denoise
    _, _, passes = run(host, ask("reuse-4"), steps=4)
    # step 0: both, dense; 1: cond has its number and its kind, so its difference is there
    assert pattern(passes) == "dpdp" + "p" + "pp" + "p"


def test_the_hires_pass_begins_anew(world):
    _, job, passes = run(world(), ask("reuse-4"), hires=True)
    assert pattern(passes) == "dpp" * 2
    assert made(job) == [(1, 2), (1, 2)]


@pytest.mark.parametrize(("way", "expected"), [("reuse-4", "dpp"), ("folded", "ff")])
def test_the_refiner_begins_anew(world, way, expected):
    host = world()
    info = types.SimpleNamespace(name_for_extra="refiner", filename="refiner.safetensors")
    second = UNet(seed=7)
    engine = Engine("refiner", second)
    engine.sd_checkpoint_info = info
    host.loaders[id(info)] = lambda: engine
    p = Processing(host, refiner=info, steps=4)
    p.crdiff_job = Job(ask(way), [])
    host.generate(p)
    assert len(second.passes) == len(expected)
    if way == "folded":
        own = [linear.weight for linear in layers_of(second)]
        assert_same(second.passes[0], folded(own))
    else:
        assert pattern(second.passes) == expected


def test_sigma_is_read_only_where_it_is_needed(world):
    host = world()
    seen = []

    def look(p):
        seen.append(p)

    host.hooks.append(look)
    run(host, ask("folded"))
    assert seen[-1].crdiff_sampling.level is None
    run(host, ask("reuse-2"))
    assert seen[-1].crdiff_sampling.level == 7.0


def test_without_a_denoiser_call_reuse_is_refused(world):
    """No level: the image is dense, and says so."""
    host = world()
    host.callbacks.clear()
    off = run(host, None)[0]
    image, job, passes = run(host, ask("reuse-2"))
    assert torch.equal(image, off)
    assert pattern(passes) == "dd"
    assert "noise level" in job.said[0]


def test_hosts_without_online_patches_fold_too(world):
    host = world(UNet(dtype=torch.float16, manual_cast=True), online=False)
    off = run(host, None)[0]
    image, job, passes = run(host, ask("folded"))
    assert made(job) == [(0, 2)]
    stored = [linear.weight.float() for linear in layers_of(unet_of(host))]
    # rounded once to the stored type: halves of the smallest numbers
    assert_same(passes[0], [weight.half().float() for weight in folded(stored)])
    assert not torch.equal(image, off)
