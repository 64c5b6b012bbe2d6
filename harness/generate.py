"""Draw batches of images with a diffusers pipeline, densely or with CR-Diff on its denoiser.

Every image's noise comes from a CPU generator of its own seed, in fp32 whatever the model's dtype,
and every prompt is encoded on its own: an image does not depend on its neighbours in a batch beyond
the last bits that the batch's size may change. The safety checker is never run.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import make_plan
from harness.config import Size
from harness.criteria.calibrate import Run, StepEnd
from harness.criteria.choose import Choice, choose_weights
from harness.criteria.replaced import ReplacedWeights
from harness.criteria.times import choice_key, note_time
from harness.denoisers import kind_of
from harness.environment import repeatable
from harness.methods import Drawing
from harness.plan import Batch, Sampling

log = logging.getLogger(__name__)

KEPT_PROMPTS = 512
"""Encoded prompts that are kept in memory: a few hundred kilobytes each for SDXL."""


class Painter:
    """A pipeline made ready to draw the batches of one plan.

    Args:
        pipe: a diffusers pipeline of one of ``pipelines.PIPELINES`` on its device.
        sampling: steps, guidance, negative prompt; dtype and device are the pipeline's.
        notes: a folder in which to write down how long choosing weights took (``times.py``).
    """

    def __init__(self, pipe: Any, sampling: Sampling, notes: Path | None = None) -> None:
        self._kind = kind_of(pipe)
        self._kind.check((), sampling.negative)
        self.pipe = pipe
        self.network = self._kind.network
        self.sampling = sampling
        self._notes = notes
        self.pipe.set_progress_bar_config(disable=True)
        if hasattr(pipe, "watermark"):  # SDXL's, which comes and goes with an optional package
            self.pipe.watermark = None
        self._handles: dict[Drawing, CRDiff] = {}
        self._choice: tuple[Any, Choice] | None = None
        self._encoded: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()

    def draw(self, batch: Batch) -> tuple[list[Image.Image], float]:
        """The batch's images, RGB, and the seconds an image took. Raises CRDiffError on NaN."""
        # Before the clock: finding weights is no image's own time (`crdiff bench criteria` tells).
        passes = self._passes(batch)
        started = time.perf_counter()
        with torch.inference_mode(), repeatable(self.sampling.device), passes:
            pixels = self._sample(batch)
        if not np.isfinite(pixels).all():
            raise CRDiffError(
                f"the model gave pixels that are not numbers (NaN) at {batch.size}: try "
                "--dtype fp32 (or bf16); if it stays so, its weights are damaged"
            )
        eight_bit = (pixels * 255).round().astype(np.uint8)
        images = [Image.fromarray(image) for image in eight_bit]
        return images, (time.perf_counter() - started) / len(images)

    def _passes(self, batch: Batch) -> AbstractContextManager[Any]:
        """Inside, the denoiser makes the passes of the batch's drawing."""
        drawing = batch.drawing
        if drawing.kind == "dense":
            return nullcontext()
        if drawing.criterion is None:
            started, known = time.perf_counter(), drawing in self._handles
            handle = self._handle(drawing)
            if not known:
                self._note(drawing, batch.size, time.perf_counter() - started, 0.0)
            return handle.attached()
        assert drawing.ratios is not None
        assert drawing.k is not None
        weights = self.chosen(drawing, batch.size).weights
        return ReplacedWeights(self.network, weights, drawing.k).attached()

    def chosen(self, drawing: Drawing, size: Size) -> Choice:
        """What the drawing's criterion leaves, calibrated at ``size``; the last one is kept."""
        assert drawing.ratios is not None
        key = (drawing.criterion, drawing.ratios, size, drawing.told_size)
        if self._choice is None or self._choice[0] != key:
            self._choice = None  # a copy of all prunable weights: not two at a time
            with repeatable(self.sampling.device):
                run = self.calibration(size, drawing.told_size)
                choice = choose_weights(run, drawing.ratios, drawing.criterion)
            self._choice = (key, choice)
            self._note(drawing, size, choice.seconds, choice.calibration_seconds)
        return self._choice[1]

    def _note(self, drawing: Drawing, size: Size, seconds: float, calibration: float) -> None:
        """Tell, and write down if there is a place for it, how long choosing weights took."""
        name = drawing.criterion.name if drawing.criterion else "magnitude"
        if drawing.criterion:
            log.info(
                "%s at %s: weights chosen in %.2f s, of which calibration %.2f s",
                *(name, size, seconds, calibration),
            )
        if self._notes is not None:
            key = choice_key(self.sampling, drawing, size)
            note_time(self._notes, key, name, seconds, calibration)

    def calibration(self, size: Size, told: Size | None = None) -> Run:
        """How calibration draws with this pipeline: as images are drawn, without decoding them."""

        def draw(text: str, seed: int, step_end: StepEnd) -> torch.Tensor:
            more = {"output_type": "latent", "callback_on_step_end": step_end}
            return self._call([text], [seed], size, told, **more)

        guided = self.sampling.guidance > 1
        return Run(self.network, self.pipe.scheduler, draw, self.sampling.steps, guided)

    def _handle(self, drawing: Drawing) -> CRDiff:
        """The core's handle for a drawing's ratios; the last one is kept, thresholds and all."""
        if drawing not in self._handles:
            assert drawing.ratios is not None
            assert drawing.k is not None
            weights = prunable_parameters(self.network)
            plan = make_plan(weights, drawing.ratios)
            handle = CRDiff(self.network, plan, drawing.k, amplification=drawing.amplification)
            self._handles = {drawing: handle}
        return self._handles[drawing]

    def _sample(self, batch: Batch) -> np.ndarray:
        """The batch's float pixels [B, H, W, 3] in 0..1."""
        texts, seeds = zip(*((item.prompt.text, item.seed) for item in batch.items), strict=True)
        told = batch.drawing.told_size
        return self._call(list(texts), list(seeds), batch.size, told, output_type="np")

    def _call(
        self, texts: list[str], seeds: list[int], size: Size, told: Size | None, **more: Any
    ) -> Any:
        """One pipeline call; its images, or latents. ``told``: see ``Drawing.told_size``."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        noise = self._kind.noise(size, generators)
        if told is not None:
            more |= {"original_size": tuple(told), "target_size": tuple(told)}
        output = self.pipe(
            **self._conditions(texts),
            height=size.height,
            width=size.width,
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
            latents=noise.to(device=self.sampling.device, dtype=self.network.dtype),
            generator=generators,  # samplers that add noise go on with each image's own stream
            **more,
        )
        return output.images

    def _conditions(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """The pipeline's embedding arguments for a batch of prompts."""
        parts = [self._encode(text) for text in texts]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _encode(self, text: str) -> dict[str, torch.Tensor]:
        """Embeddings of one prompt, and of the negative prompt where guidance needs it."""
        if text in self._encoded:
            self._encoded.move_to_end(text)
            return self._encoded[text]
        sampling = self.sampling
        kept = self._kind.encode(text, sampling.negative, sampling.guidance, sampling.device)
        self._encoded[text] = kept
        if len(self._encoded) > KEPT_PROMPTS:
            self._encoded.popitem(last=False)
        return kept


def resized(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image scaled to a size with the filter of ``methods.RESIZE_FILTER``."""
    return image.resize((width, height), Image.Resampling.LANCZOS)
