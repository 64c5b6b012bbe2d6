"""The caption check tells right from wrong on real renders, over the whole grammar."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image, ImageFilter

from harness.embedded.check import check, detect
from harness.embedded.scenes import Thing, all_specs, render, sample_spec
from harness.embedded.swaps import FACTS, swaps


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (96, 128), (192, 192)])
def test_real_renders_are_right_and_swapped_captions_wrong(size: tuple[int, int]) -> None:
    rng = random.Random(2)
    right, told = [], defaultdict(list)
    for _ in range(120):
        spec = sample_spec(rng, None)
        image = render(spec, *size, rng)
        right.append(check(image, spec).all_right)
        for fact, other in rng.sample(swaps(spec), 2):
            told[fact].append(not check(image, other).all_right)
    assert np.mean(right) >= 0.95
    assert set(told) == set(FACTS)
    assert all(np.mean(values) >= 0.95 for values in told.values())


def test_every_thing_of_the_grammar_is_told() -> None:
    rng = random.Random(3)
    singles = [s for s in all_specs() if s.kind == "one" and s.background is not None]
    for spec in singles:
        background, found = detect(render(spec, 128, 128, rng))
        assert background == spec.background
        assert [o.thing for o in found] == list(spec.things)


def test_partial_truth_scores_in_between() -> None:
    rng = random.Random(4)
    spec = next(s for s in all_specs() if s.relation == "left" and s.background == "gray")
    result = check(render(spec, 128, 128, rng), spec)
    assert result.all_right
    assert result.facts == 1
    mirrored = render(spec, 128, 128, rng).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    result = check(mirrored, spec)
    assert result.details["relation"] == 0
    assert result.facts == pytest.approx(0.8)


def test_an_empty_or_noisy_image_is_wrong() -> None:
    spec = next(s for s in all_specs() if s.kind == "one" and s.background == "black")
    blank = check(Image.new("RGB", (128, 128), (12, 12, 12)), spec)
    assert not blank.all_right
    assert blank.objects == 0
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not check(Image.fromarray(noise), spec).all_right


def test_a_blurred_render_is_still_read() -> None:
    rng = random.Random(5)
    right = []
    for _ in range(40):
        spec = sample_spec(rng, None)
        image = render(spec, 128, 128, rng).filter(ImageFilter.GaussianBlur(1.2))
        right.append(check(image, spec).all_right)
    assert np.mean(right) >= 0.9


def test_touching_objects_of_two_colours_are_two() -> None:
    image = Image.new("RGB", (128, 128), (245, 245, 245))
    image.paste((220, 40, 40), (30, 40, 60, 70))
    image.paste((45, 80, 220), (60, 40, 90, 70))
    _, found = detect(image)
    assert {o.thing for o in found} == {Thing("red", "square"), Thing("blue", "square")}
