"""The shipped model: what it is made of, and that it draws what captions say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from crdiff_ext.blocks import prunable_parameters
from harness.cli import main
from harness.embedded.architecture import SIZES
from harness.embedded.check import check
from harness.embedded.scenes import all_specs, caption, prompt_set
from harness.embedded.weights import embedded_model_dir
from harness.layouts.export import export_ldm, ldm_state_dict
from harness.pipelines import LoadedPipeline, load_pipeline

LARGEST = 40e6


def test_it_ships_as_safetensors_and_is_small() -> None:
    files = [path for path in embedded_model_dir().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    description = json.loads((embedded_model_dir() / "crdiff.json").read_text())
    assert description["sizes"] == ["{}x{}".format(*size) for size in SIZES]
    assert sum(description["core_seconds"].values()) <= 3 * 3600


def test_it_has_stable_diffusions_shape(embedded: LoadedPipeline) -> None:
    pipe = embedded.pipe
    assert embedded.family.name == "embedded"
    assert embedded.family.native == (128, 128)
    assert pipe.vae_scale_factor == 8
    assert pipe.tokenizer.model_max_length == 77
    ids = pipe.tokenizer([caption(spec) for spec in all_specs()]).input_ids
    assert max(map(len, ids)) <= 77
    assert pipe.tokenizer.unk_token_id not in {i for row in ids for i in row[1:-1]}
    groups = {weight.group for weight in prunable_parameters(pipe.unet)}
    assert groups == {"down", "mid", "up"}


def test_plain_diffusers_loads_it() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        embedded_model_dir(), safety_checker=None, local_files_only=True
    )
    assert pipe.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.slow
def test_it_draws_what_held_out_captions_say(embedded: LoadedPipeline) -> None:
    specs = prompt_set("eval", 32)
    noise = [
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(32)
    ]
    images = embedded.pipe(
        [caption(spec) for spec in specs],
        height=128,
        width=128,
        num_inference_steps=embedded.defaults["steps"],
        guidance_scale=embedded.defaults["guidance"],
        latents=torch.cat(noise),
    ).images
    own = [check(image, spec) for image, spec in zip(images, specs, strict=True)]
    others = [check(image, specs[i - 1]) for i, image in enumerate(images)]
    # README says how often exactly; chance is near zero.
    assert np.mean([result.all_right for result in own]) >= 0.35
    assert np.mean([result.facts for result in own]) >= 0.8
    assert np.mean([result.all_right for result in others]) <= 0.05


def test_it_comes_back_from_the_single_file_layout(
    embedded: LoadedPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "embedded.safetensors"
    written = export_ldm(embedded.pipe, path)
    assert (tmp_path / "embedded.yaml") in written
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert names == set(ldm_state_dict(embedded.pipe))
    assert any(name.startswith("model.diffusion_model.middle_block.1.") for name in names)
    again = load_pipeline(path, config=embedded_model_dir())
    ours, theirs = embedded.pipe.unet.state_dict(), again.pipe.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_inspect_says_what_run_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(embedded_model_dir())
    assert main(["inspect", folder, "--ratios", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "128x128 is native: inactive" in said
    assert "these ratios acts anyway" in said
    assert main(["inspect", folder, "--size", "64x64", "--ratios", "0.3"]) == 0
    assert "acts anyway" not in capsys.readouterr().out
