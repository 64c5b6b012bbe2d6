from __future__ import annotations

import pytest
import torch

from crdiff_ext.families import FAMILIES, identify, identify_module
from tests.core.tiny import (
    Matrix,
    TinyUNet,
    embedded_ldm_shapes,
    refiner_ldm_shapes,
    sd15_ldm_shapes,
    sdxl_ldm_shapes,
)

PREFIX = "model.diffusion_model."


def with_inputs(shapes, inputs):
    width = shapes["input_blocks.0.0.weight"][0]
    return shapes | {"input_blocks.0.0.weight": (width, inputs, 3, 3)}


def without(shapes, *parts):
    return {name: shape for name, shape in shapes.items() if not any(p in name for p in parts)}


V = {"prediction_type": "v_prediction"}
EPS = {"prediction_type": "epsilon"}
# SSD-1B has no transformers in the middle; BK-SDM leaves out one of each pair on the way down.
SSD_1B = without(sdxl_ldm_shapes(), "middle_block")
BK_SDM = without(sd15_ldm_shapes(), *(f"input_blocks.{n}.1" for n in (2, 5, 8)))


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize(
    ("shapes", "hints", "name"),
    [
        (sd15_ldm_shapes(), None, "sd15"),
        (sd15_ldm_shapes(), V, "sd15"),
        (sd15_ldm_shapes(1024), EPS, "sd2-base"),
        (sd15_ldm_shapes(1024), V, "sd2-v"),
        (sd15_ldm_shapes(1024), {"sample_size": 96}, "sd2-v"),
        (sd15_ldm_shapes(1024), {"sample_size": 64}, "sd2-base"),
        (sd15_ldm_shapes(1024), EPS | {"sample_size": 96}, "sd2-base"),
        (sd15_ldm_shapes(1024), V | {"sample_size": 64}, "sd2-v"),
        (sd15_ldm_shapes(1024), {"sample_size": None, "more": 1}, "sd2"),
        (sd15_ldm_shapes(1024), {"prediction_type": "sample"}, "sd2"),
        (sdxl_ldm_shapes(), None, "sdxl"),
        (refiner_ldm_shapes(), None, "sdxl-refiner"),
        (with_inputs(sd15_ldm_shapes(), 9), None, "sd15-inpaint"),
        (with_inputs(sd15_ldm_shapes(1024), 9), EPS, "sd2-inpaint"),
        (with_inputs(sdxl_ldm_shapes(), 9), None, "sdxl-inpaint"),
        (with_inputs(sd15_ldm_shapes(), 8), None, "unknown"),
        (with_inputs(sd15_ldm_shapes(1024), 5), None, "unknown"),
        (SSD_1B, None, "sdxl-distilled"),
        (BK_SDM, None, "sd15-distilled"),
        (sdxl_ldm_shapes() | {"label_emb.0.0.weight": (1280, 5632)}, None, "unknown"),  # Kolors
        (without(sdxl_ldm_shapes(), "label_emb"), None, "unknown"),
        (sd15_ldm_shapes(512), None, "unknown"),
        (embedded_ldm_shapes(), V, "embedded"),
        (with_inputs(embedded_ldm_shapes(), 9), None, "unknown"),
    ],
)
def test_identify(shapes, hints, name, prefix):
    checkpoint = {prefix + key: shape for key, shape in shapes.items()}
    checkpoint["first_stage_model.encoder.conv_in.weight"] = (128, 3, 3, 3)
    assert identify(checkpoint, hints).name == name


def test_sd2_inpaint_needs_no_hint():
    family = identify(with_inputs(sd15_ldm_shapes(1024), 9))
    assert (family.name, family.native) == ("sd2-inpaint", (512, 512))


@pytest.mark.parametrize("shapes", [{}, {"a.weight": (3, 3)}, {"model.layers.0.weight": (4,)}])
def test_not_a_unet(shapes):
    assert identify(shapes).name == "unknown"


def test_another_model_of_the_embedded_widths():
    shapes = embedded_ldm_shapes()
    shapes = {name: (192, *shape[1:]) if "middle" in name else shape
              for name, shape in shapes.items()}  # fmt: skip
    assert identify(shapes).name == "unknown"


def test_modules():
    unet = TinyUNet()
    assert identify_module(unet).name == "unknown"
    assert identify_module(Matrix(torch.eye(2))).name == "unknown"


def test_sample_size_comes_from_the_modules_own_configuration():
    class Config:
        sample_size = 96

    unet = torch.nn.Module()
    unet.config = Config()
    for name, shape in sd15_ldm_shapes(1024).items():
        node = unet
        *path, last = name.split(".")
        for part in path:
            if part not in node._modules:
                node.add_module(part, torch.nn.Module())
            node = node._modules[part]
        node.register_parameter(last, torch.nn.Parameter(torch.empty(shape, device="meta")))
    assert identify_module(unet).name == "sd2-v"
    assert identify_module(unet, sample_size=64).name == "sd2-base"
    assert identify_module(unet, prediction_type="epsilon").name == "sd2-base"


def test_the_table_of_families():
    native = {name: family.native for name, family in FAMILIES.items()}
    assert native["sd15"] == native["sd2-base"] == native["sd15-inpaint"] == (512, 512)
    assert native["sd2-v"] == (768, 768)
    assert native["sdxl"] == native["sdxl-refiner"] == native["sdxl-distilled"] == (1024, 1024)
    assert native["embedded"] == (128, 128)
    assert native["unknown"] is None
    assert native["sd2"] is None
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family.is_dit == name.startswith(("sd3", "flux"))
        assert family.aspect == ("sdxl" if name.startswith("sdxl") or family.is_dit else "sd")
        assert family.step == (16 if family.is_dit else 8)
        assert not family.is_dit or family.native == (1024, 1024)
    assert FAMILIES["sd15"].label == "SD1.5"
    assert FAMILIES["sdxl"].label == "SDXL"
