"""The embedded reward and features, as shipped."""

from __future__ import annotations

import random

import numpy as np
import pytest

from harness.embedded.reward import (
    FEATURES,
    WORDS,
    EmbeddedReward,
    reference_images,
    word_ids,
)
from harness.embedded.scenes import all_specs, caption, prompt_set, render, sample_spec
from harness.embedded.swaps import random_swap
from harness.frechet import Frechet

LEAST = 0.95
"""Of each fact but relations, which it mistakes more often."""
LEAST_RELATIONS = 0.75


@pytest.fixture(scope="module")
def reward() -> EmbeddedReward:
    return EmbeddedReward.load()


def test_every_caption_is_read_whole() -> None:
    texts = [caption(spec) for spec in all_specs()]
    ids = word_ids(texts)
    assert int(ids.max()) == len(WORDS)
    assert all(int((row > 0).sum()) == len(t.split()) for row, t in zip(ids, texts, strict=True))


@pytest.mark.parametrize("size", [(128, 128), (96, 128), (64, 64), (192, 192)])
def test_it_prefers_the_right_caption(reward: EmbeddedReward, size: tuple[int, int]) -> None:
    rng = random.Random(6)
    facts, images, right, wrong = [], [], [], []
    for _ in range(150):
        spec = sample_spec(rng, None)
        fact, other = random_swap(spec, rng)
        facts.append(fact)
        images.append(render(spec, *size, rng))
        right.append(caption(spec))
        wrong.append(caption(other))
    better = reward.score(images, right) > reward.score(images, wrong)
    for fact in ("colour", "shape", "count", "background"):
        assert better[np.array(facts) == fact].mean() >= LEAST, fact
    assert better[np.array(facts) == "relation"].mean() >= LEAST_RELATIONS


def test_scores_do_not_depend_on_the_company(reward: EmbeddedReward) -> None:
    rng = random.Random(7)
    specs = prompt_set("eval", 6)
    images = [render(spec, 96, 128, rng) for spec in specs]
    texts = [caption(spec) for spec in specs]
    together = reward.score(images, texts)
    alone = [reward.score([i], [t])[0] for i, t in zip(images, texts, strict=True)]
    assert np.allclose(together, alone, atol=1e-5)
    assert reward.score([], []).shape == (0,)


def test_features_tell_good_renders_from_wrong_ones(reward: EmbeddedReward) -> None:
    specs = prompt_set("eval", 64)
    reference = Frechet(reward.features(reference_images(specs, 128, 128, n=512)))
    again = reward.features(reference_images(specs, 128, 128, n=256, seed=1))
    other = prompt_set("eval", 500, seed=1)
    strange = [s for s in other if s.things[0].colour == "red"][:64]
    off = reward.features(reference_images(strange, 128, 128, n=256, seed=1))
    assert again.shape == (256, FEATURES)
    assert reference.distance(again) < 0.5 * reference.distance(off)
