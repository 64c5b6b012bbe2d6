"""Trains the embedded reward and its features on real renders, right and wrong captions."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from harness.embedded.reward import ATTRIBUTES, RewardNet, resized, word_ids
from harness.embedded.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Layout,
    SceneSpec,
    caption,
    draw_layout,
    sample_layout,
    sample_spec,
)
from harness.embedded.swaps import swaps

CANVASES = ((64, 64), (64, 64), (64, 85), (85, 64))
BATCH = 48
_BROKEN = 0.15  # share of images whose objects are too many or too few for their caption


def attributes(layout: Layout) -> Tensor:
    """What the feature network is to name, 0/1 float [26]: coloured shapes, background, number."""
    target = torch.zeros(ATTRIBUTES)
    for o in layout.objects:
        target[list(COLOURS).index(o.thing.colour) * len(SHAPES) + SHAPES.index(o.thing.shape)] = 1
    kinds = len(COLOURS) * len(SHAPES)
    target[kinds + list(BACKGROUNDS).index(layout.background)] = 1
    target[kinds + len(BACKGROUNDS) + min(len(layout.objects), 3) - 1] = 1
    return target


def broken(layout: Layout, rng: random.Random) -> Layout:
    """The same scene with an object missing or with one too many, as a failing model draws it."""
    objects = list(layout.objects)
    if len(objects) > 1 and rng.random() < 0.5:
        objects.pop(rng.randrange(len(objects)))
    else:
        spec = SceneSpec((rng.choice(objects).thing,), 1, background=layout.background)
        objects.append(sample_layout(spec, layout.height, layout.width, rng).objects[0])
    return Layout(tuple(objects), layout.background, layout.height, layout.width)


def example(
    height: int, width: int, rng: random.Random
) -> tuple[Image.Image, Tensor, str, str, bool]:
    """(image, attributes, caption, caption with one fact swapped, whether the image is broken).

    The whole grammar is used: a measure has to know the captions that are held out from the model.
    """
    spec = sample_spec(rng, split=None)
    layout = sample_layout(spec, height, width, rng)
    is_broken = rng.random() < _BROKEN
    if is_broken:
        layout = broken(layout, rng)
    wrong = rng.choice(swaps(spec))[1]
    return draw_layout(layout, rng), attributes(layout), caption(spec), caption(wrong), is_broken


def degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """A little noise, and sometimes a loss of detail, so that drawn images are not out of range."""
    level = 0.1 * torch.rand(len(images), 1, 1, 1, generator=generator)
    images = images + level * torch.randn(images.shape, generator=generator)
    if torch.rand((), generator=generator) < 0.3:
        h, w = images.shape[-2:]
        coarse = F.interpolate(images, scale_factor=0.6, mode="bilinear", antialias=True)
        images = F.interpolate(coarse, (h, w), mode="bilinear")
    return images


class RewardTrainee:
    """Binary cross-entropy of right against swapped captions, plus the attributes."""

    def __init__(self) -> None:
        self.module = RewardNet()

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """Loss of a freshly drawn batch."""
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        canvas = CANVASES[step % len(CANVASES)]
        images, named, right, wrong, is_broken = zip(
            *(example(*canvas, rng) for _ in range(BATCH)), strict=True
        )
        batch = degraded(torch.stack([resized(i) for i in images]), generator)
        grid = self.module.grid(batch)
        logits = self.module.logits(torch.cat([grid, grid]), word_ids([*right, *wrong]))
        good = 1 - torch.tensor(is_broken, dtype=torch.float32)
        match = F.binary_cross_entropy_with_logits(logits, torch.cat([good, torch.zeros(BATCH)]))
        guesses = self.module.attributes(self.module.features(grid))
        return match + F.binary_cross_entropy_with_logits(guesses, torch.stack(named))


def standardisation(net: RewardNet, n: int = 512, seed: int = 3) -> tuple[float, float]:
    """(mean, deviation) of the logits of ``n`` native renders, right and swapped captions alike."""
    rng = random.Random(seed)
    images, _, right, wrong, _ = zip(*(example(64, 64, rng) for _ in range(n)), strict=True)
    with torch.no_grad():
        grid = net.eval().grid(torch.stack([resized(i) for i in images]))
        logits = net.logits(torch.cat([grid, grid]), word_ids([*right, *wrong])).numpy()
    return float(np.mean(logits)), float(np.std(logits))
