"""Captions with exactly one fact changed: what the caption check and the reward are tested on."""

from __future__ import annotations

import random
from dataclasses import replace

from harness.embedded.scenes import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SceneSpec,
    Thing,
)

FACTS = ("colour", "shape", "count", "relation", "background")


def swaps(spec: SceneSpec) -> list[tuple[str, SceneSpec]]:
    """Every (fact, spec) that differs from ``spec`` in one fact and says something else."""
    found: list[tuple[str, SceneSpec]] = []
    for i, thing in enumerate(spec.things):
        changed = [("colour", Thing(c, thing.shape)) for c in COLOURS if c != thing.colour]
        changed += [("shape", Thing(thing.colour, s)) for s in SHAPES if s != thing.shape]
        for fact, other in changed:
            things = (*spec.things[:i], other, *spec.things[i + 1 :])
            if len(set(things)) == len(things):  # the grammar has no pair of equal things
                found.append((fact, replace(spec, things=things)))
    if spec.relation is None:
        found += [("count", replace(spec, count=n)) for n in NUMBERS if n != spec.count]
    else:
        found += [("relation", replace(spec, relation=r)) for r in RELATIONS if r != spec.relation]
    if spec.background is not None:
        others = [b for b in BACKGROUNDS if b != spec.background]
        found += [("background", replace(spec, background=b)) for b in others]
    return found


def random_swap(spec: SceneSpec, rng: random.Random) -> tuple[str, SceneSpec]:
    """One of them: any fact that can be swapped is as likely as another."""
    found = swaps(spec)
    fact = rng.choice(sorted({fact for fact, _ in found}))
    return rng.choice([swap for swap in found if swap[0] == fact])
