"""What the panel's line says of the size on the page, the model and the values."""

from __future__ import annotations

import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.webui.arguments import DEFAULTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STORED = "SDXL 512x512: stored ratios 0.397 / 0.434 / 0.387 (paper, Figure 7a)"
NATIVE = "1024x1024 is native: inactive"
PAGE = {"width": 512, "height": 512}
HIRES = {"hires": True, "scale": 2.0, "resize_x": 0, "resize_y": 0}


def say(webui, library, family="sdxl", tab="txt2img", page=PAGE, **values):
    from tests.webui.fakes.gradio_host import FakeAdapter

    adapter = FakeAdapter.of(family) if family else FakeAdapter(None)
    asked = {**page, **DEFAULTS, **values}
    return webui.line.both(tab, adapter, library, tuple(asked), *asked.values())


@pytest.mark.parametrize(
    ("family", "page", "values", "head", "sentence"),
    [
        ("sdxl", PAGE, {}, "acts", STORED),
        ("sdxl", {"width": 1024, "height": 1024}, {}, "inactive", NATIVE),
        ("sdxl", {"width": 560, "height": 400}, {}, "acts", "SDXL 400x560: ratios 0.397"),
        ("sd15", {"width": 512, "height": 768}, {}, "inactive",
         "768x512: no stored ratios for SD1.5: search or set them"),
        ("sd15", {"width": 512, "height": 768}, {"ratios": "set", "mid": 0.25}, "acts",
         "SD1.5 768x512: ratios 0.3 / 0.25 / 0.3 (set by hand)"),
        ("flux-dev", PAGE, {}, "inactive",
         "512x512: no stored ratios for FLUX dev: search or set them"),
        ("flux-dev", PAGE, {"ratios": "set"}, "acts",
         "FLUX dev 512x512: ratio 0.3 (set by hand)"),
        ("sd3", {"width": 1024, "height": 1024}, {"ratios": "set"}, "inactive", NATIVE),
        ("sd3", PAGE, {"ratios": "set", "down": 0.2}, "inactive",
         "SD3 has one ratio for all layers: give one number, such as 0.2 for down, mid and up "
         "alike, and not 0.2 / 0.3 / 0.3"),
        ("sdxl", PAGE, {"mode": "off"}, "off", "CR-Diff is switched off"),
        ("sdxl", PAGE, {"enabled": False}, "off", "CR-Diff is switched off"),
        (None, PAGE, {"enabled": False}, "off", "CR-Diff is switched off"),
        (None, PAGE, {}, "no model yet", "no model is loaded yet"),
        ("sdxl", PAGE, {"k": 0}, "inactive", "k is 0"),
        ("sdxl", PAGE, {"passes": "hires"}, "inactive", "not in this pass, as set (passes: hires)"),
        ("sdxl", PAGE, {"start": 0.9, "end": 0.5}, "wrong value",
         "start is 0.9: it must be below end, 0.5; images will be made without CR-Diff"),
        ("sdxl", PAGE, {"k": None}, "wrong value", "k is None: a finite number is needed"),
        ("sdxl", {"width": None, "height": 512}, {}, "wrong value", "width is None"),
        ("sdxl", {"width": 512, "height": 0}, {}, "wrong value", "the size is 0x512"),
    ],
)  # fmt: skip
def test_what_the_line_says(webui, library, family, page, values, head, sentence):
    short, line = say(webui, library, family, page=page, **values)
    assert f"> {head}<" in short
    assert f"> {sentence}" in line
    assert ("crdiff-acts" in line) is (head == "acts")


@pytest.mark.parametrize(
    ("hires", "values", "head", "first", "second"),
    [
        ({}, {}, "acts / inactive", STORED, NATIVE),
        ({"resize_x": 512, "resize_y": 768}, {}, "acts / acts", STORED, "SDXL 768x512: ratios"),
        ({}, {"passes": "hires", "mode": "always"}, "inactive / acts", "not in this pass",
         "SDXL 1024x1024: stored"),
        ({}, {"mode": "always", "hires_ratios": "set", "hires_up": 0.5}, "acts / acts", STORED,
         "SDXL 1024x1024: ratios 0.3 / 0.3 / 0.5 (set by hand)"),
        ({"hires": False}, {}, "acts", STORED, None),
    ],
)  # fmt: skip
def test_the_second_pass_has_a_sentence_of_its_own(
    webui, library, hires, values, head, first, second
):
    short, line = say(webui, library, page={**PAGE, **HIRES, **hires}, **values)
    assert f"> {head}<" in short
    if second is None:
        assert "pass:" not in line
        return
    assert f"First pass: {first}" in line
    assert f"Hires pass: {second}" in line


@pytest.mark.parametrize(
    ("scale", "x", "y", "expected"),
    [
        (2.0, 0, 0, (1024, 768)),
        (1.55, 0, 0, (792, 592)),  # 793.6 x 595.2, whole latent pixels
        (2.0, 960, 0, (1280, 960)),
        (2.0, 0, 640, (640, 480)),
        (2.0, 1024, 1024, (1024, 1024)),
    ],
)
def test_the_second_pass_size_is_the_hosts(webui, scale, x, y, expected):
    asked = {"scale": scale, "resize_x": x, "resize_y": y}
    assert webui.line.hires_size((512, 384), asked) == expected
    with pytest.raises(CRDiffError, match="scale is None"):
        webui.line.hires_size((512, 384), {**asked, "scale": None})


def test_img2img_says_which_size_it_means(webui, library):
    line = say(webui, library, tab="img2img")[1]
    assert f"{STORED} (for the size under &quot;Resize to&quot;)" in line


def test_a_refused_model_is_said(webui, library):
    from tests.webui.fakes.gradio_host import FakeAdapter

    adapter = FakeAdapter.of("sdxl", refused="this model is not supported: <TensorRT>")
    asked = {**PAGE, **DEFAULTS}
    short, line = webui.line.both("txt2img", adapter, library, tuple(asked), *asked.values())
    assert "inactive" in short
    assert "this model is not supported: &lt;TensorRT&gt;" in line


def test_a_damaged_presets_file_is_said_beside_the_line(webui, library):
    library.path.write_text("{")
    line = say(webui, library)[1]
    assert STORED in line
    assert "is damaged" in line


def test_the_tolerance_of_native_is_an_option(webui, library):
    page = {"width": 560, "height": 512}
    assert "inactive" in say(webui, library, "sd15", page=page, ratios="set")[0]
    webui.shared.opts.crdiff_native_area_tolerance = 0.05
    assert "acts" in say(webui, library, "sd15", page=page, ratios="set")[0]


@pytest.mark.parametrize(
    ("values", "cost"),
    [
        ({}, "x2.0 UNet time while acting"),
        ({"amplification": "folded"}, "x1.0 folded, approximate"),
        ({"amplification": "reuse-2"}, "x1.5 approximate, dense pass at every 2nd step"),
        ({"amplification": "reuse-3"}, "x1.33 approximate, dense pass at every 3rd step"),
        ({"amplification": "reuse-4"}, "x1.25 approximate, dense pass at every 4th step"),
        ({"k": 1}, "x1.0 UNet time while acting"),
        ({"k": 1, "amplification": "reuse-2"}, "x1.0 UNet time while acting"),
        ({"mode": "off"}, None),
        ({"k": 0}, None),
        ({"passes": "hires"}, None),
    ],
)
def test_the_cost_is_told_where_it_acts(webui, library, values, cost):
    line = say(webui, library, **values)[1]
    assert ("crdiff-cost" in line) is (cost is not None)
    assert cost is None or f">{cost}<" in line
