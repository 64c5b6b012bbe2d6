"""`crdiff inspect`: the golden numbers in both layouts, the decision, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
CASES = [(entry, number) for entry in MANIFEST for number in range(len(entry["cases"]))]
IDS = [f"{entry['name']}-{number}" for entry, number in CASES]
GROUPS = ("down", "mid", "up")


def in_ldm_layout(entry: dict[str, Any], builders: ModuleType, prefix: str) -> dict[str, Any]:
    """A golden UNet's weights under the original layout's names (its ends keep theirs)."""
    modules = builders.ldm_unet_names(entry["config"])
    renamed = {}
    for name, tensor in load_file(GOLDEN / f"{entry['name']}.safetensors").items():
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            if (module := ".".join(parts[:cut])) in modules:
                name = ".".join([modules[module], *parts[cut:]])
                break
        renamed[prefix + name] = tensor
    assert sum(".transformer_blocks." in name for name in renamed) > 50
    assert not any("down_blocks" in name or "up_blocks" in name for name in renamed)
    return renamed


def as_text(ratios: dict[str, float]) -> str:
    return "/".join(repr(ratios[group]) for group in GROUPS)


def assert_golden(found: dict[str, Any], case: dict[str, Any]) -> None:
    assert {g: found["groups"][g]["threshold"] for g in GROUPS} == case["thresholds"]
    assert found["pruned_per_layer"] == case["pruned_per_layer"]
    assert found["mask_sha256"] == case["mask_sha256"]
    for group in GROUPS:
        layers = {n: c for n, c in case["pruned_per_layer"].items() if n.startswith(group)}
        assert found["groups"][group]["pruned"] == sum(layers.values())


@pytest.mark.parametrize(("entry", "number"), CASES, ids=IDS)
def test_golden_numbers_in_diffusers_layout(entry: Any, number: int, crdiff: Any) -> None:
    case = entry["cases"][number]
    path = GOLDEN / f"{entry['name']}.safetensors"
    outcome = crdiff("inspect", path, "--ratios", as_text(case["ratios"]), "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["layout"] == "diffusers"
    assert found["dtype"] == entry["dtype"]
    assert_golden(found, case)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("entry", MANIFEST, ids=[entry["name"] for entry in MANIFEST])
def test_golden_numbers_in_the_original_layout(
    entry: Any, prefix: str, crdiff: Any, builders: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "ldm.safetensors"
    save_file(in_ldm_layout(entry, builders, prefix), path)
    for case in entry["cases"]:
        outcome = crdiff("inspect", path, "--ratios", as_text(case["ratios"]), "--json")
        found = json.loads(outcome.out)
        assert found["layout"] == "ldm"
        assert_golden(found, case)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the names and shapes of SDXL's UNet, all zeros, sparse on disk."""
    from diffusers import UNet2DConditionModel

    from harness.layouts.unet import UNET_PREFIX, unet_to_ldm
    from harness.locate import read_json
    from harness.single_file import CONFIGS

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(CONFIGS / "sdxl.json")["unet"])
    state = unet.state_dict()
    names = unet_to_ldm(state)
    header, end = {}, 0
    for name, tensor in state.items():
        start, end = end, end + 2 * tensor.numel()
        described = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        header[UNET_PREFIX + names[name]] = described
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors"
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def test_the_decision_for_sdxl(sdxl: Path, crdiff: Any) -> None:
    found = json.loads(crdiff("inspect", sdxl, "--json").out)
    assert found["family"] == "sdxl"
    assert found["native"] == found["size"] == [1024, 1024]
    assert not found["decision"]["act"]
    assert found["decision"]["code"] == "native"
    assert found["ratios"] is None
    assert found["mask_sha256"] is None
    assert found["pruned_per_layer"] == {}
    counts = {g: found["groups"][g]["total"] / 1e6 for g in GROUPS}
    assert counts == pytest.approx({"down": 550.5, "mid": 262.1, "up": 825.8}, abs=0.05)
    assert all(found["groups"][g]["threshold"] is None for g in GROUPS)


def test_text_says_the_decision_and_its_reason(sdxl: Path, crdiff: Any) -> None:
    text = crdiff("inspect", sdxl, "--size", "256x256").out
    assert "SDXL (sdxl)" in text
    assert "1024x1024" in text
    assert "do not act: no stored ratios for SDXL near 256x256" in text
    assert "550,502,400" in text


def test_stored_ratios_are_counted_where_the_decision_acts(crdiff: Any, tmp_path: Path) -> None:
    """The embedded shape, with the user's own stored entry."""
    from harness.embedded.architecture import make_unet

    unet = make_unet()
    path = tmp_path / "unet.safetensors"
    save_file(unet.state_dict(), path)
    entry = {
        "family": "embedded",
        "height": 64,
        "width": 64,
        "ratios": {"down": 0.5, "mid": 0.25, "up": 0.0},
        "source": "a test",
        "model": "random weights",
    }
    presets = tmp_path / "mine.json"
    presets.write_text(json.dumps({"version": 1, "presets": [entry]}))
    words = ("inspect", path, "--size", "64x64", "--presets", presets)
    found = json.loads(crdiff(*words, "--json").out)
    assert found["decision"]["act"]
    assert found["decision"]["preset"]["source"] == "a test"
    assert found["ratios"] == entry["ratios"]
    assert found["groups"]["up"]["threshold"] is None
    assert found["groups"]["down"]["pruned"] * 2 == found["groups"]["down"]["total"]
    text = crdiff(*words).out
    assert "act: " in text
    assert "0.5 / 0.25 / 0" in text
    assert "left alone" in text


# Errors


@pytest.fixture
def unet() -> Path:
    return GOLDEN / "sd15-float32.safetensors"


def test_a_size_that_is_no_multiple_of_the_step(sdxl: Path, refused: Any) -> None:
    sentence = refused("inspect", sdxl, "--size", "1020x1024")
    assert "multiples of 8" in sentence


@pytest.mark.parametrize("size", ["512", "0x512", "axb"])
def test_a_size_that_is_none(unet: Path, size: str, refused: Any) -> None:
    assert size in refused("inspect", unet, "--size", size)


@pytest.mark.parametrize("ratios", ["1", "-0.1/0/0", "0.1/0.2", "nan", "0.1/x/0.2"])
def test_ratios_that_are_none(unet: Path, ratios: str, refused: Any) -> None:
    assert "ratio" in refused("inspect", unet, f"--ratios={ratios}")


@pytest.mark.parametrize("k", ["-0.5", "3.5", "nan"])
def test_k_outside_its_range(unet: Path, k: str, refused: Any) -> None:
    assert "k is" in refused("inspect", unet, f"--k={k}")


def test_nan_names_the_layer(unet: Path, tmp_path: Path, refused: Any) -> None:
    state = load_file(unet)
    name = next(
        n
        for n in sorted(state)
        if n.endswith("mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight")
    )
    state[name].view(-1)[3] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(state, path)
    sentence = refused("inspect", path, "--ratios", "0.3")
    assert "NaN" in sentence
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_k" in sentence


def test_a_file_without_a_unet(tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "vae.safetensors"
    save_file({"encoder.conv_in.weight": torch.ones(3, 3)}, path)
    assert "holds no UNet" in refused("inspect", path)


def test_an_unknown_family_is_said_and_its_groups_are_shown(unet: Path, crdiff: Any) -> None:
    outcome = crdiff("inspect", unet, "--ratios", "0.3")
    assert outcome.code == 0
    assert "unknown" in outcome.out
    assert "do not act" in outcome.out
    assert "30.0%" in outcome.out


def test_a_prediction_type_that_is_none(unet: Path, refused: Any) -> None:
    assert "epsilon or v_prediction" in refused("inspect", unet, "--prediction", "sample")


def test_a_damaged_presets_file_is_reported_and_left_alone(
    unet: Path, tmp_path: Path, refused: Any
) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"version": 1, "presets": [')
    assert "damaged" in refused("inspect", unet, "--presets", path)
    assert path.read_text() == '{"version": 1, "presets": ['
