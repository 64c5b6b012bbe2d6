"""SD3 and FLUX in the Forge adapter: what is pruned, by which thresholds, what is refused."""

from __future__ import annotations

import types

import pytest
import torch

from crdiff_ext import dit_shapes
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.forge_weights import copy_bytes
from crdiff_ext.webui.job import Job
from tests.core.dits import FLUX, SD3, SD35_MEDIUM, flux_original, sd3_original
from tests.webui.fakes import forge, neo, transformers
from tests.webui.fakes.forge_process import Engine, Host, Processing
from tests.webui.fakes.forge_world import assert_same, attach, run, state_of
from tests.webui.fakes.transformers import KINDS, WIDTH
from tests.webui.test_forge_weights import Packed, write_header

RATIO = 0.4
ON = Settings(mode="always", ratios=f"{RATIO}")
FAMILY_NAMES = list(KINDS)
ONE_CALL = {"steps": 1, "cfg": 1.0}
OTHER = (
    "CR-Diff: this model is not supported: it is a transformer of another structure than SD3, "
    "SD3.5, FLUX dev and FLUX schnell have"
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for family, fingerprint in transformers.FINGERPRINTS.items():
        monkeypatch.setitem(dit_shapes.KNOWN, fingerprint, family)
    PLANS.clear()
    yield
    assert neo.ForgeWeights.weight_function == [], "the list that all layers share was written to"


@pytest.fixture(params=["forge", "neo"])
def world(request, monkeypatch):
    """``make(kind, ...)`` gives a host with such a transformer loaded."""

    def make(kind, **more):
        made = KINDS[kind] if isinstance(kind, str) else kind
        host = hosts[request.param](made, more)
        attach(monkeypatch, host, host.modules())
        return host

    hosts = {
        "forge": lambda made, more: Host(Engine("base", made(**more))),
        "neo": lambda made, more: neo.NeoHost(
            neo.NeoEngine("base", made(layer_type=neo.Linear, **more))
        ),
    }
    make.name = request.param
    return make


def unet_of(host):
    return host.data.sd_model.forge_objects.unet.model.diffusion_model


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


# What is left alone, and what is refused


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (Settings(), "no-stored"),
        (Settings(mode="always"), "no-stored"),
        (Settings(mode="always", ratios="0"), "zero-ratios"),
        (Settings(mode="always", ratios="0.3", k=0), "zero-k"),
    ],
)
def test_nothing_is_stored_for_them(world, settings, code):
    host = world("flux-dev")
    off = run(host, None)[0]
    image, job, passes = run(host, settings)
    assert (job.records[0].decision.code, len(passes)) == (code, 2)
    assert torch.equal(image, off)
    if code == "no-stored":
        sentence = "32x64: no stored ratios for FLUX dev: search or set them"
        assert job.records[0].decision.sentence == sentence


def test_ratios_of_ones_own_can_be_stored(world):
    host = world("sd3")
    own = [Preset("sd3", 32, 64, Ratios(0.4, 0.4, 0.4), "me", "base")]
    by_hand = run(host, ON)[0]
    p = Processing(host)
    p.crdiff_job = Job(Settings(), own)
    assert torch.equal(host.generate(p), by_hand)
    sentence = p.crdiff_job.records[0].decision.sentence
    assert sentence == "SD3 32x64: stored ratio 0.4 (me)"


def test_unequal_ratios_are_told_and_leave_the_image_alone(world):
    host = world("flux-dev")
    off = run(host, None)[0]
    unequal = Settings(mode="always", ratios="0.4/0.3/0.4", memory="copy")
    image, job, passes = run(host, unequal)
    assert torch.equal(image, off)
    assert len(passes) == 2
    assert job.said == [
        "CR-Diff: FLUX dev has one ratio for all layers: give one number, such as 0.4 for down, "
        "mid and up alike, and not 0.4 / 0.3 / 0.4; this image is finished without CR-Diff"
    ]
    assert job.acted() == []


def test_unequal_ratios_are_an_error_through_the_api(world):
    host = world("sd3")
    p = Processing(host)
    asked = []

    def fail(sentence):
        asked.append(sentence)
        raise RuntimeError("HTTP 422")

    p.crdiff_job = Job(Settings(mode="always", ratios="0.4/0.3/0.4"), [], fail=fail)
    with pytest.raises(RuntimeError, match="422"):
        host.generate(p)
    assert asked[0].startswith("SD3 has one ratio for all layers")
    assert asked[0].endswith("and not 0.4 / 0.3 / 0.4")


@pytest.mark.parametrize(
    "change", [{"double": 3}, {"channels": 96}, {"pooled": False}], ids=["depth", "fill", "chroma"]
)
def test_another_structure_is_refused(world, change):
    host = world(lambda **more: transformers.Flux(**change, **more))
    off = run(host, None)[0]
    image, job, passes = run(host, ON)
    assert torch.equal(image, off)
    assert len(passes) == 2
    assert job.said == [OTHER]
    assert job.acted() == []


@pytest.mark.parametrize("place", ["flux1-dev-KONTEXT_fp8.safetensors", "Kontext/dev.safetensors"])
def test_kontext_is_known_by_its_path_alone(world, place):
    host = world("flux-dev")
    host.data.sd_model.sd_checkpoint_info.filename = f"/models/{place}"
    off = run(host, None)[0]
    image, job, _ = run(host, ON)
    assert torch.equal(image, off)
    assert job.said == ["CR-Diff: this model is not supported: FLUX Kontext edits images"]
    assert host.adapter.loaded_model().refused == job.said[0].removeprefix("CR-Diff: ")


def test_four_bits_are_refused_as_such(world, monkeypatch):
    """nf4's packed matrices [N / 2, 1] hide the family too: the reason told is the bits."""
    monkeypatch.delitem(dit_shapes.KNOWN, transformers.FINGERPRINTS["flux-dev"])
    host = world("flux-dev")
    off = run(host, None)[0]
    for layer in unet_of(host).layers.values():
        layer.weight.bnb_quantized = True
    image, job, _ = run(host, ON)
    assert torch.equal(image, off)
    assert job.said == [
        "CR-Diff: this model is not supported: its weights are in 4 bits (nf4 or fp4)"
    ]


def test_damaged_weights_name_the_layer(world):
    host = world("sd3")
    with torch.no_grad():
        unet_of(host).layers["joint_blocks.1.x_block.mlp.fc2"].weight[0, 0] = float("nan")
    _, job, passes = run(host, ON)
    assert len(passes) == 2
    assert "joint_blocks.1.x_block.mlp.fc2.weight holds NaN" in job.said[0]


# The chosen file, before it is loaded

PREFIX = "model.diffusion_model."
CUT = FLUX | {"double": 8}
NF4 = {n: (s[0] * s[1] // 2, 1) if len(s) == 2 else s for n, s in flux_original(**FLUX)}


@pytest.mark.parametrize(
    ("shapes", "family", "refused"),
    [
        (dict(sd3_original(**SD3)), "sd3", None),
        (dict(sd3_original(**SD35_MEDIUM)), "sd35-medium", None),
        (dict(flux_original(**FLUX)), "flux-dev", None),
        (dict(flux_original(guided=False, **FLUX)), "flux-schnell", None),
        (dict(flux_original(**CUT)), "unknown", OTHER),
        (NF4, "unknown", OTHER),
    ],
    ids=["sd3", "sd35-medium", "flux-dev", "flux-schnell", "cut", "nf4"],
)
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_a_chosen_file(world, tmp_path, shapes, family, refused, prefix):
    host = world("sd3")
    path = tmp_path / "chosen.safetensors"
    write_header(path, {prefix + name: shape for name, shape in shapes.items()})
    info = types.SimpleNamespace(filename=str(path), shorthash=None)
    host.data.forge_loading_parameters = {"checkpoint_info": info}
    facts = host.adapter.loaded_model()
    assert facts.family.name == family
    assert facts.refused == (refused and refused.removeprefix("CR-Diff: "))


def test_the_fakes_have_the_names_of_the_core():
    """Each fake's fingerprint is the released model's, but for widths and numbers of blocks."""
    for kind, make in KINDS.items():
        unet = make(layer_type=forge.Linear)
        shapes = {name: tuple(p.shape) for name, p in unet.named_parameters()}
        assert dit_shapes.fingerprint(shapes) == transformers.FINGERPRINTS[kind]
