"""Trains the embedded reward and its features on real renders, right and wrong captions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from harness.embedded.reward import ATTRIBUTES, GRID, RewardNet, resized, word_ids
from harness.embedded.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Layout,
    SceneSpec,
    Thing,
    caption,
    draw_layout,
    sample_layout,
    sample_spec,
)
from harness.embedded.swaps import swaps

CANVASES = ((64, 64), (64, 64), (64, 85), (85, 64))
BATCH = 32
WRONG = 4  # captions with one fact swapped that each image is held against, beside its own
_BROKEN = 0.15  # share of images whose objects are too many or too few for their caption


def attributes(layout: Layout) -> Tensor:
    """What the feature network is to name, 0/1 float [26]: coloured shapes, background, number."""
    target = torch.zeros(ATTRIBUTES)
    for o in layout.objects:
        target[kind_index(o.thing)] = 1
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


def kind_index(thing: Thing) -> int:
    """The number of a coloured shape, 0 to 19."""
    return list(COLOURS).index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape)


def cells(layout: Layout) -> Tensor:
    """What each cell of an 8x8 grid holds, int64 [8, 8]: 0-19 coloured shapes, then backgrounds."""
    background = len(COLOURS) * len(SHAPES) + list(BACKGROUNDS).index(layout.background)
    found = torch.full((GRID, GRID), background)
    for row, column in itertools.product(range(GRID), repeat=2):
        y, x = (row + 0.5) * layout.height / GRID, (column + 0.5) * layout.width / GRID
        for o in layout.objects:
            if max(abs(x - o.x), abs(y - o.y)) <= o.radius:
                found[row, column] = kind_index(o.thing)
    return found


def wrong_specs(spec: SceneSpec, rng: random.Random) -> list[SceneSpec]:
    """``WRONG`` neighbours of ``spec``, each with one fact swapped."""
    by_fact: dict[str, list[SceneSpec]] = {}
    for fact, other in swaps(spec):
        by_fact.setdefault(fact, []).append(other)
    for others in by_fact.values():
        rng.shuffle(others)
    # what is hard to see comes first: where and how many, then the shape
    order: list[str] = [
        f for f in ("relation", "relation", "count", "shape", "colour") if f in by_fact
    ]
    order.insert(3, "background" if "background" in by_fact and rng.random() < 0.5 else "colour")
    chosen = [by_fact[fact].pop() for fact in order[:WRONG] if by_fact[fact]]
    rest = [other for others in by_fact.values() for other in others]
    return chosen + rng.sample(rest, WRONG - len(chosen))


@dataclass(frozen=True)
class Example:
    """An image with what it holds, and its captions: the right one first, then the wrong ones."""

    image: Image.Image
    attributes: Tensor
    cells: Tensor
    captions: list[str]
    is_broken: bool  # an object is missing, or there is one too many


def example(height: int, width: int, rng: random.Random) -> Example:
    """A fresh scene, ``height`` x ``width`` pixels.

    The whole grammar is used: a measure has to know the captions that are held out from the model.
    """
    spec = sample_spec(rng, split=None)
    layout = sample_layout(spec, height, width, rng)
    is_broken = rng.random() < _BROKEN
    if is_broken:
        layout = broken(layout, rng)
    texts = [caption(spec), *map(caption, wrong_specs(spec, rng))]
    return Example(draw_layout(layout, rng), attributes(layout), cells(layout), texts, is_broken)


def word_table(examples: Sequence[Example]) -> Tensor:
    """Word ids int64 [n, 1 + WRONG, 18]; the right caption of each image comes first."""
    return torch.stack([word_ids(e.captions) for e in examples])


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
    """Which of the captions is the right one, whether each matches, and what the image holds."""

    def __init__(self) -> None:
        self.module = RewardNet()

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """Loss of a freshly drawn batch."""
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        canvas = CANVASES[step % len(CANVASES)]
        drawn = [example(*canvas, rng) for _ in range(BATCH)]
        batch = degraded(torch.stack([resized(e.image) for e in drawn]), generator)
        grid = self.module.grid(batch)
        with torch.autocast("cpu", enabled=False):  # attention this small is faster in float32
            logits = self.module.logits(grid.float(), word_table(drawn))
        whole = torch.tensor([not e.is_broken for e in drawn])
        truth = torch.zeros_like(logits)
        truth[:, 0] = whole
        match = F.binary_cross_entropy_with_logits(logits, truth)
        choice = F.cross_entropy(logits[whole], torch.zeros(int(whole.sum()), dtype=torch.long))
        guesses = self.module.attributes(self.module.features(grid))
        named = torch.stack([e.attributes for e in drawn])
        held = torch.stack([e.cells for e in drawn])
        what = F.binary_cross_entropy_with_logits(guesses, named)
        return choice + match + what + F.cross_entropy(self.module.cells(grid), held)


def standardisation(net: RewardNet, n: int = 512, seed: int = 3) -> tuple[float, float]:
    """(mean, deviation) of the logits of ``n`` native renders, right and swapped captions alike."""
    rng = random.Random(seed)
    drawn = [example(64, 64, rng) for _ in range(n)]
    with torch.no_grad():
        grid = net.eval().grid(torch.stack([resized(e.image) for e in drawn]))
        logits = net.logits(grid, word_table(drawn)[:, :2]).numpy()
    return float(np.mean(logits)), float(np.std(logits))
