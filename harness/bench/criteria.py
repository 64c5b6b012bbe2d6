"""How long each criterion takes to choose the weights of a pruned pass, calibration included."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import FAMILIES
from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.criteria.calibrate import Run, StepEnd
from harness.criteria.choose import choose_weights
from harness.criteria.settings import CRITERIA, criterion_for

log = logging.getLogger(__name__)

MAGNITUDE = "magnitude"
NAMES = (MAGNITUDE, *CRITERIA)
PAPER_SECONDS = {MAGNITUDE: 0.38, "wanda": 420.70}
"""Section 4.5: seconds a pruning pass on SDXL at 512x512; hardware and calibration not stated."""

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
TOKENS = 77


def measure(
    run: Run, names: tuple[str, ...], ratios: Ratios, prompts: int, family: str
) -> list[dict[str, Any]]:
    """Per criterion: wall ``seconds`` in all and of calibration, CPU seconds, the share pruned.

    CPU seconds are what other programs on the machine disturb least.
    """
    cases = []
    for name in names:
        criterion = None
        if name != MAGNITUDE:
            criterion = criterion_for(name, FAMILIES[family], prompts)
        started = time.process_time()
        choice = choose_weights(run, ratios, criterion)
        cpu_seconds = time.process_time() - started
        zeros = sum(int((weight == 0).sum()) for weight in choice.weights.values())
        total = sum(weight.numel() for weight in choice.weights.values())
        cases.append(
            {
                "criterion": name,
                "seconds": choice.seconds,
                "calibration_seconds": choice.calibration_seconds,
                "cpu_seconds": cpu_seconds,
                "pruned": zeros / total,
                "paper_seconds": PAPER_SECONDS.get(name),
            }
        )
        log.info("%s: %.2f s", name, choice.seconds)
    return cases


def embedded_run(size: Size, steps: int) -> Run:
    """The embedded model in fp32 on the CPU, drawing as images are drawn."""
    from harness.embedded.weights import embedded_model_dir
    from harness.generate import Painter
    from harness.pipelines import load_pipeline
    from harness.plan import Sampling

    loaded = load_pipeline(str(embedded_model_dir()), "fp32", "cpu")
    guidance = float(loaded.defaults["guidance"])
    sampling = Sampling("", steps, guidance, "", "", "", "fp32", "cpu", 0, 1)
    return Painter(loaded.pipe, sampling).calibration(size)


def random_sd15_run(size: Size, steps: int) -> Run:
    """A UNet of SD1.5's shape with random bf16 weights, and random text: times only.

    Takes 1.7 GB for the weights. There is no text encoder and no VAE: neither is timed, and
    neither counts beside the UNet.
    """
    import diffusers

    if size.height % 64 or size.width % 64:
        raise CRDiffError(f"size {size} does not fit SD1.5's levels: use multiples of 64")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(in_channels=4, out_channels=4, **SD15)
    unet = unet.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            spread = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.02
            parameter.normal_(0, spread, generator=generator)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )

    def draw(_text: str, seed: int, step_end: StepEnd) -> torch.Tensor:
        stream = torch.Generator().manual_seed(seed)
        shape = (1, 4, size.height // 8, size.width // 8)
        latents = torch.randn(shape, generator=stream).bfloat16()
        text = torch.randn((2, TOKENS, 768), generator=stream).bfloat16()
        scheduler.set_timesteps(steps)
        for step, moment in enumerate(scheduler.timesteps):
            both = torch.cat([latents, latents])
            output = unet(both, moment, encoder_hidden_states=text, return_dict=False)[0]
            without, towards = output.chunk(2)
            guided = without + 7.5 * (towards - without)
            latents = scheduler.step(guided, moment, latents, return_dict=False)[0].bfloat16()
            step_end(None, step, moment, {})
        return latents

    return Run(unet, scheduler, draw, steps, guided=True)
