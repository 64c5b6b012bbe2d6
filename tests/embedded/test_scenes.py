"""The grammar, its splits, and the renderer."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from harness.embedded.check import parse_caption
from harness.embedded.scenes import (
    KINDS,
    SPLITS,
    all_specs,
    caption,
    prompt_set,
    relation_offsets,
    render,
    sample_layout,
    sample_spec,
    split_of,
)
from harness.embedded.swaps import FACTS, swaps

SPECS = list(all_specs())


def test_every_caption_is_different_and_parses_back() -> None:
    texts = [caption(spec) for spec in SPECS]
    assert len(set(texts)) == len(texts) == 4 * (20 * 3 + 20 * 19 * 4)
    assert [parse_caption(text) for text in texts] == SPECS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red dog",
        "four red circles",
        "two red circle",
        "a red circle to the left of a red circle",
        "a red circle on a pink background",
        "a red circle on a black background at night",
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"caption|same"):
        parse_caption(text)


def test_splits_cover_every_kind_and_no_pair_crosses_them() -> None:
    count = Counter((split_of(spec), spec.kind) for spec in SPECS)
    assert set(count) == {(split, kind) for split in SPLITS for kind in KINDS}
    homes: dict = {}
    for spec in SPECS:
        if spec.relation is not None:
            homes.setdefault(replace(spec, background=None), set()).add(split_of(spec))
    assert all(len(home) == 1 for home in homes.values())


def test_prompt_sets_are_fixed_and_nested_and_disjoint() -> None:
    long, short = prompt_set("eval", 128), prompt_set("eval", 64)
    assert long[:64] == short
    assert len({caption(spec) for spec in long}) == 128
    assert long != prompt_set("eval", 128, seed=1)
    assert all(split_of(spec) == "eval" for spec in long)
    assert not {caption(s) for s in prompt_set("search", 200)} & {caption(s) for s in long}
    with pytest.raises(ValueError, match="only"):
        prompt_set("search", 100_000)


def test_training_never_samples_a_held_out_caption() -> None:
    rng = random.Random(0)
    assert all(split_of(sample_spec(rng)) == "train" for _ in range(2000))


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (96, 128), (192, 192)])
def test_layouts_obey_their_caption(size: tuple[int, int]) -> None:
    rng = random.Random(1)
    for _ in range(200):
        spec = sample_spec(rng, None)
        layout = sample_layout(spec, *size, rng)
        assert len(layout.objects) == (2 if spec.relation else spec.count)
        for o in layout.objects:
            assert o.radius <= o.x <= size[1] - o.radius
            assert o.radius <= o.y <= size[0] - o.radius
        if spec.relation:
            a, b = layout.objects
            along, across = relation_offsets(spec.relation, b.x - a.x, b.y - a.y)
            assert along > abs(across)


def test_renders_repeat_and_have_the_size_asked_for() -> None:
    spec = prompt_set("train", 1)[0]
    a, b = (render(spec, 96, 128, random.Random(7)) for _ in range(2))
    assert a.size == (128, 96)
    assert np.array_equal(np.asarray(a), np.asarray(b))


def test_swaps_change_one_fact_and_stay_in_the_grammar() -> None:
    known = set(SPECS)
    seen = set()
    for spec in random.Random(0).sample(SPECS, 200):
        for fact, other in swaps(spec):
            assert other in known
            assert other != spec
            seen.add(fact)
    assert seen == set(FACTS)
