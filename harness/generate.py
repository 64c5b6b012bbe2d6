"""Draw batches of images with a diffusers pipeline, densely or with CR-Diff attached to its UNet.

Every image's noise comes from a CPU generator of its own seed, in fp32 whatever the model's dtype,
and every prompt is encoded on its own: an image does not depend on its neighbours in a batch beyond
the last bits that the batch's size may change. The safety checker is never run.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from PIL import Image

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import make_plan
from harness.environment import repeatable
from harness.methods import Drawing
from harness.plan import Batch, Sampling

KEPT_PROMPTS = 512
"""Encoded prompts that are kept in memory: a few hundred kilobytes each for SDXL."""


class Painter:
    """A pipeline made ready to draw the batches of one plan.

    Args:
        pipe: a diffusers StableDiffusionPipeline or StableDiffusionXLPipeline on its device.
        sampling: steps, guidance, negative prompt; dtype and device are the pipeline's.
    """

    def __init__(self, pipe: Any, sampling: Sampling) -> None:
        channels = pipe.unet.config.in_channels
        if channels != pipe.vae.config.latent_channels:
            raise CRDiffError(
                f"the UNet takes {channels} channels: an inpainting model needs a picture and a "
                "mask, so it cannot be run here; use a text-to-image model"
            )
        self.pipe = pipe
        self.sampling = sampling
        self.pipe.set_progress_bar_config(disable=True)
        if hasattr(pipe, "watermark"):  # SDXL's, which comes and goes with an optional package
            self.pipe.watermark = None
        self._handles: dict[Drawing, CRDiff] = {}
        self._encoded: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()

    @torch.inference_mode()
    def draw(self, batch: Batch) -> tuple[list[Image.Image], float]:
        """The batch's images, RGB, and the seconds an image took. Raises CRDiffError on NaN."""
        started = time.perf_counter()
        with repeatable(self.sampling.device):
            if batch.drawing.kind == "dense":
                pixels = self._sample(batch)
            else:
                with self._handle(batch.drawing).attached():
                    pixels = self._sample(batch)
        if not np.isfinite(pixels).all():
            raise CRDiffError(
                f"the model gave pixels that are not numbers (NaN) at {batch.size}: try "
                "--dtype fp32 (or bf16); if it stays so, its weights are damaged"
            )
        eight_bit = (pixels * 255).round().astype(np.uint8)
        images = [Image.fromarray(image) for image in eight_bit]
        return images, (time.perf_counter() - started) / len(images)

    def _handle(self, drawing: Drawing) -> CRDiff:
        """The core's handle for a drawing's ratios; the last one is kept, thresholds and all."""
        if drawing not in self._handles:
            assert drawing.ratios is not None
            assert drawing.k is not None
            weights = prunable_parameters(self.pipe.unet)
            plan = make_plan(weights, drawing.ratios)
            handle = CRDiff(self.pipe.unet, plan, drawing.k, amplification=drawing.amplification)
            self._handles = {drawing: handle}
        return self._handles[drawing]

    def _sample(self, batch: Batch) -> np.ndarray:
        """One pipeline call. Returns float pixels [B, H, W, 3] in 0..1."""
        generators = [torch.Generator("cpu").manual_seed(item.seed) for item in batch.items]
        scale = self.pipe.vae_scale_factor
        shape = (
            1,
            self.pipe.unet.config.in_channels,
            batch.size.height // scale,
            batch.size.width // scale,
        )
        noise = torch.cat([torch.randn(shape, generator=one) for one in generators])
        output = self.pipe(
            **self._conditions([item.prompt.text for item in batch.items]),
            height=batch.size.height,
            width=batch.size.width,
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
            latents=noise.to(device=self.sampling.device, dtype=self.pipe.unet.dtype),
            generator=generators,  # samplers that add noise go on with each image's own stream
            output_type="np",
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
        guided = self.sampling.guidance > 1
        encoded = self.pipe.encode_prompt(
            prompt=text,
            device=self.sampling.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            # None where empty, as the pipelines' own default: SDXL then uses zeros.
            negative_prompt=(self.sampling.negative or None) if guided else None,
        )
        names = ["prompt_embeds", "negative_prompt_embeds"]
        if len(encoded) == 4:  # SDXL: also the pooled embeddings of its second text encoder
            names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        kept = {
            name: value for name, value in zip(names, encoded, strict=True) if value is not None
        }
        self._encoded[text] = kept
        if len(self._encoded) > KEPT_PROMPTS:
            self._encoded.popitem(last=False)
        return kept


def resized(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image scaled to a size with the filter of ``methods.RESIZE_FILTER``."""
    return image.resize((width, height), Image.Resampling.LANCZOS)
