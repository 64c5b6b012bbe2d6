"""The embedded model in AUTOMATIC1111, beside the harness' diffusers pipeline of the same weights.

Both start from the same latent, with the same sampler and sigmas; whatever differs is rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.patch import CRDiff
from crdiff_ext.presets import builtin_presets
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from harness.cli import main
from harness.embedded.weights import embedded_model_dir
from harness.pipelines import load_pipeline
from tests.live.client import OFF, Client, on
from tests.live.conftest import Draw

HOST = "a1111"
STEPS, GUIDANCE, SEED = 20, 3.0, 11
BODY = {
    "prompt": "a red circle to the left of a blue square, white background",
    "negative_prompt": "",
    "steps": STEPS,
    "cfg_scale": GUIDANCE,
    "seed": SEED,
}
LEVELS = 2  # of 255 that a pixel may differ by


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The harness' pipeline with the host's sampler: Euler over k-diffusion's sigmas."""
    from diffusers import EulerDiscreteScheduler

    made = load_pipeline(embedded_model_dir(), "fp32").pipe
    made.scheduler = EulerDiscreteScheduler.from_config(
        made.scheduler.config, timestep_spacing="linspace"
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def exported(models: Path, server: Any) -> str:
    """The file that ``crdiff export`` writes, known to the host."""
    path = models / "embedded.safetensors"
    assert main(["export", str(path), "--dtype", "fp32"]) == 0
    server.client.post("/sdapi/v1/refresh-checkpoints")
    return path.name


@pytest.fixture
def embedded(client: Client, exported: str, draw: Draw) -> Draw:
    """Draws with the embedded model."""
    client.set_model(exported)
    return draw


def sigmas(pipe: Any) -> list[float]:
    """k_diffusion/external.py, DiscreteSchedule.get_sigmas: log sigmas at even times, then 0."""
    cumulative = pipe.scheduler.alphas_cumprod.double()
    logs = ((1 - cumulative) / cumulative).sqrt().log()
    times = torch.linspace(len(logs) - 1, 0, STEPS, dtype=torch.float64)
    low = times.floor().long()
    part = times - low
    high = times.ceil().long()
    return [*((1 - part) * logs[low] + part * logs[high]).exp().tolist(), 0.0]


def draw_with_diffusers(pipe: Any, height: int, width: int, ratios: Ratios | None) -> np.ndarray:
    """uint8 [height, width, 3]."""
    noise = torch.randn(
        1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(SEED)
    )
    call = {
        "prompt": BODY["prompt"],
        "height": height,
        "width": width,
        "sigmas": sigmas(pipe),
        "guidance_scale": GUIDANCE,
        "latents": noise,
        "output_type": "np",
    }
    with torch.inference_mode():
        if ratios is None:
            pixels = pipe(**call).images[0]
        else:
            plan = make_plan(prunable_parameters(pipe.unet), ratios)
            with CRDiff(pipe.unet, plan).attached():
                pixels = pipe(**call).images[0]
    return (pixels * 255).astype(np.uint8)  # cut off, as modules/processing.py does


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, float]:
    apart = np.abs(ours.astype(int) - theirs.astype(int))
    return int(apart.max()), round(float(apart.mean()), 4)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 128)])
def test_the_host_draws_what_the_harness_draws(
    embedded: Draw, pipe: Any, note: Any, height: int, width: int
) -> None:
    size = {**BODY, "height": height, "width": width}
    ratios = Ratios(0.3, 0.35, 0.3)
    images = {}
    for label, args, asked in (("off", OFF, None), ("on", on(**ratios.as_dict()), ratios)):
        drawn = embedded(label, args, **size)
        assert drawn.passes == (STEPS, STEPS if asked else 0)
        images[label] = drawn.pixels[0]
        most, mean = differences(drawn.pixels[0], draw_with_diffusers(pipe, height, width, asked))
        note(**{f"{label} against the harness": {"max": most, "mean": mean}})
        assert most <= LEVELS
    assert differences(images["on"], images["off"])[0] > 10 * LEVELS


def test_auto_leaves_the_native_size_alone(embedded: Draw) -> None:
    size = {**BODY, "height": 128, "width": 128}
    off, auto = embedded("off", OFF, **size), embedded("auto", {}, **size)
    assert (auto.hash, auto.passes) == (off.hash, (STEPS, 0))
    assert "CR-Diff" not in auto.infotext
    always = embedded("always", {"mode": "always"}, **size)
    assert always.hash != off.hash
    assert always.passes == (STEPS, STEPS)


def test_auto_acts_at_a_stored_size_with_its_ratios(embedded: Draw, client: Client) -> None:
    size = {**BODY, "height": 96, "width": 128}
    stored = next(
        preset
        for preset in builtin_presets()
        if (preset.family, preset.height, preset.width) == ("embedded", 96, 128)
    )
    said = client.post("/crdiff/v1/resolve", {"height": 96, "width": 128})
    assert said["act"] is True
    assert said["ratios"] == stored.ratios.as_dict()
    off, auto = embedded("off", OFF, **size), embedded("auto", {}, **size)
    assert auto.hash != off.hash
    assert auto.passes == (STEPS, STEPS)
    assert "CR-Diff preset" in auto.infotext
    by_hand = embedded("the same by hand", on(**stored.ratios.as_dict()), **size)
    assert by_hand.hash == auto.hash


def test_auto_judges_each_pass_by_its_own_size(embedded: Draw) -> None:
    """Hires: the first pass at the native size is left alone, the second acts or not by itself."""
    body = {
        **BODY,
        "enable_hr": True,
        "hr_resize_x": 192,
        "hr_resize_y": 192,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.7,
    }
    off, auto = embedded("off", OFF, **body), embedded("auto", {}, **body)
    assert auto.hash != off.hash
    assert auto.dense == off.dense
    assert auto.pruned == off.dense - STEPS
    first = embedded("first only", {"passes": "first"}, **body)
    assert (first.hash, first.pruned) == (off.hash, 0)
