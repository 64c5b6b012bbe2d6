"""SD3 and FLUX in the Forge adapter: what is left alone, what is refused, what a file tells."""

from __future__ import annotations

import types

import pytest
import torch

from crdiff_ext import dit_shapes
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.job import Job
from tests.core.dits import FLUX, SD3, SD35_MEDIUM, flux_original, sd3_original
from tests.webui.fakes import forge, transformers
from tests.webui.fakes.forge_process import Processing
from tests.webui.fakes.forge_world import run, unet_of
from tests.webui.fakes.transformers import KINDS
from tests.webui.test_forge_weights import write_header
from tests.webui.transformer_worlds import ON, OTHER, known, world

__all__ = ["known", "world"]


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
