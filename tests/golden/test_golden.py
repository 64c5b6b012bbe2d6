"""Our numbers against those of the authors' own code; the README here says how they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import make_plan, report
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import pruned_weights

FOLDER = Path(__file__).parent
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(entry, index, id=f"{entry['name']}-{index}")
    for entry in MANIFEST
    for index in range(len(entry["cases"]))
]


def test_manifest_covers_what_we_claim():
    assert {entry["dtype"] for entry in MANIFEST} == {"float32", "float16", "bfloat16"}
    assert {entry["family"] for entry in MANIFEST} == {"sd15", "sdxl"}
    assert len(CASES) == 24


@pytest.mark.parametrize(("entry", "index"), CASES)
def test_thresholds_counts_and_masks(entry, index):
    case = entry["cases"][index]
    weights = prunable_parameters(load_file(FOLDER / f"{entry['name']}.safetensors"))
    plan = make_plan(weights, Ratios(**case["ratios"]))
    assert dict(plan.thresholds) == case["thresholds"]
    assert set(plan.dtypes.values()) == {entry["dtype"]}

    found = report(weights, plan).to_dict()
    assert found["pruned_per_layer"] == case["pruned_per_layer"]
    assert found["mask_sha256"] == case["mask_sha256"]
    for group, numbers in found["groups"].items():
        assert numbers["threshold"] == case["thresholds"][group]
    assert sum(group["pruned"] for group in found["groups"].values()) == sum(
        case["pruned_per_layer"].values()
    )


@pytest.mark.parametrize("entry", MANIFEST, ids=lambda entry: entry["name"])
def test_outputs_through_the_diffusers_unet(entry):
    """Dense, pruned and amplified, in fp32 from the weights upcast: equal to 1e-5."""
    diffusers = pytest.importorskip("diffusers")
    weights = load_file(FOLDER / f"{entry['name']}.safetensors")
    inputs = load_file(FOLDER / f"{entry['name']}-io.safetensors")
    unet = diffusers.UNet2DConditionModel(**entry["config"]).eval()
    unet.load_state_dict(weights)  # into fp32

    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    call = {
        "sample": inputs["sample"],
        "timestep": inputs["timestep"],
        "encoder_hidden_states": inputs["encoder_hidden_states"],
        "added_cond_kwargs": added or None,
    }
    with torch.no_grad():
        assert _far(unet(**call).sample, inputs["dense"]) < 1e-5
        for index, case in enumerate(entry["cases"]):
            # Thresholds come from the stored dtype, and prune the fp32 weights alike.
            plan = make_plan(prunable_parameters(weights), Ratios(**case["ratios"]))
            with pruned_weights(unet, plan, "copy" if index % 2 else "recompute"):
                assert _far(unet(**call).sample, inputs[f"pruned_{index}"]) < 1e-5
            for return_dict in (True, False):
                handle = CRDiff(unet, plan, case["k"], memory="recompute")
                with handle.attached():
                    output = unet(**call, return_dict=return_dict)
                assert _far(output[0], inputs[f"poa_{index}"]) < 1e-5
            assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (1, 1)
        assert _far(unet(**call).sample, inputs["dense"]) < 1e-5


@pytest.mark.parametrize("entry", MANIFEST, ids=lambda entry: entry["name"])
def test_the_same_weights_under_ldm_names(entry):
    """The golden UNets have one residual block a level, so two LDM indices each."""
    weights = load_file(FOLDER / f"{entry['name']}.safetensors")
    ldm = {_ldm_name(name): tensor for name, tensor in weights.items() if "attentions" in name}
    assert not any("attentions" in name for name in ldm)
    for case in entry["cases"]:
        found = prunable_parameters(ldm)
        plan = make_plan(found, Ratios(**case["ratios"]))
        assert dict(plan.thresholds) == case["thresholds"]
        assert report(found, plan).mask_sha256 == case["mask_sha256"]


def _ldm_name(name):
    parts = name.split(".")
    if parts[0] == "mid_block":
        return ".".join(["model.diffusion_model.middle_block.1", *parts[3:]])
    side, offset = ("input_blocks", 1) if parts[0] == "down_blocks" else ("output_blocks", 0)
    index = offset + 2 * int(parts[1]) + int(parts[3])
    return ".".join([f"model.diffusion_model.{side}.{index}.1", *parts[4:]])


def _far(found, expected):
    return float((found - expected).abs().max())
