"""Captioned scenes: a grammar of captions, and a renderer that draws them at any size.

A caption names one object, two or three equal ones, or a pair in a spatial relation, and in three
of four cases the background. Which captions are held out of training is decided by a hash of the
text, so that the split needs no file: see :func:`split_of`.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 165, 70),
    "blue": (45, 80, 220),
    "yellow": (240, 205, 50),
    "purple": (150, 55, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 12),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
NUMBERS = {1: "a", 2: "two", 3: "three"}
KINDS = ("one", "count", "relation")
KIND_SHARES = (0.15, 0.25, 0.60)
SPLITS = ("train", "search", "eval")

_SUPERSAMPLING = 4
_MARGIN = 2.0  # px at a short side of 64: what stays free between an object and the edge
# Object radii in px at a short side of 64, by how many objects there are; pairs have their own.
_RADII = {1: (10.0, 18.0), 2: (8.0, 13.0), 3: (7.5, 11.0)}
_PAIR_RADII = (8.0, 12.5)


@dataclass(frozen=True)
class Thing:
    """One object of a caption."""

    colour: str
    shape: str


@dataclass(frozen=True)
class SceneSpec:
    """What a caption says: ``count`` equal things, or two things in a ``relation``."""

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None
    background: str | None = None

    @property
    def kind(self) -> str:
        """``one``, ``count`` or ``relation``."""
        if self.relation is not None:
            return "relation"
        return "one" if self.count == 1 else "count"


@dataclass(frozen=True)
class Placed:
    """A thing on the canvas: centre and radius in pixels (x to the right, y down)."""

    thing: Thing
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Layout:
    """A scene ready to be drawn: the objects, the background, and the canvas in pixels."""

    objects: tuple[Placed, ...]
    background: str
    height: int
    width: int


def plural(shape: str) -> str:
    """``circle`` -> ``circles``, ``cross`` -> ``crosses``."""
    return shape + ("es" if shape.endswith("s") else "s")


def caption(spec: SceneSpec) -> str:
    """The one caption of ``spec``; :func:`harness.embedded.check.parse_caption` is its inverse."""
    first = spec.things[0]
    if spec.relation is not None:
        second = spec.things[1]
        text = (
            f"a {first.colour} {first.shape} {RELATIONS[spec.relation]} "
            f"a {second.colour} {second.shape}"
        )
    elif spec.count == 1:
        text = f"a {first.colour} {first.shape}"
    else:
        text = f"{NUMBERS[spec.count]} {first.colour} {plural(first.shape)}"
    return text if spec.background is None else f"{text} on a {spec.background} background"


def all_specs() -> Iterator[SceneSpec]:
    """Every caption of the grammar once, in a fixed order."""
    things = [Thing(c, s) for c in COLOURS for s in SHAPES]
    for background in (None, *BACKGROUNDS):
        for thing, count in itertools.product(things, NUMBERS):
            yield SceneSpec((thing,), count, background=background)
        for a, b in itertools.permutations(things, 2):
            for relation in RELATIONS:
                yield SceneSpec((a, b), relation=relation, background=background)


def split_of(spec: SceneSpec) -> str:
    """``train``, ``search`` or ``eval``: which captions the model, the ratio search, the demo see.

    Relations are split without their background (a held-out pair is never trained on in front of
    any), single and counted objects with it, of which there are too few otherwise.
    """
    bare = replace(spec, background=None) if spec.kind == "relation" else spec
    bucket = zlib.crc32(caption(bare).encode()) % 20
    if bucket < 2:
        return "search"
    return "eval" if bucket < 5 else "train"


def sample_spec(rng: random.Random, split: str | None = "train") -> SceneSpec:
    """A random caption of ``split`` (``None``: any), kinds in the shares of ``KIND_SHARES``."""
    while True:
        kind = rng.choices(KINDS, KIND_SHARES)[0]
        background = rng.choice([None, *BACKGROUNDS])
        a, b = (Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(2))
        if kind == "relation":
            if a == b:
                continue
            spec = SceneSpec((a, b), relation=rng.choice(list(RELATIONS)), background=background)
        else:
            spec = SceneSpec((a,), 1 if kind == "one" else rng.choice([2, 3]), None, background)
        if split is None or split_of(spec) == split:
            return spec


def prompt_set(split: str, n: int, seed: int = 0) -> list[SceneSpec]:
    """``n`` different captions of ``split`` in a fixed random order; longer sets begin alike.

    Kinds come in the shares of ``KIND_SHARES`` while the split has captions of that kind left
    (single and counted objects run out first); after that relations fill the rest.

    Raises:
        ValueError: ``n`` is larger than the split.
    """
    pools: dict[str, list[SceneSpec]] = {kind: [] for kind in KINDS}
    for spec in all_specs():
        if split_of(spec) == split:
            pools[spec.kind].append(spec)
    if n > sum(map(len, pools.values())):
        raise ValueError(f"the {split} split has only {sum(map(len, pools.values()))} captions")
    rng = random.Random(f"{split}/{seed}")
    for pool in pools.values():
        rng.shuffle(pool)
    chosen: list[SceneSpec] = []
    while len(chosen) < n:
        kind = rng.choices(KINDS, KIND_SHARES)[0]
        left = pools[kind] or pools["relation"] or pools["count"] or pools["one"]
        chosen.append(left.pop())
    return chosen


def relation_offsets(relation: str, dx: float, dy: float) -> tuple[float, float]:
    """(along, across): how far the first object stands on the named side of the second.

    ``dx, dy`` lead from the first object to the second, in pixels, y down.
    """
    return {
        "left": (dx, dy),
        "right": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]


def sample_layout(spec: SceneSpec, height: int, width: int, rng: random.Random) -> Layout:
    """Places the things of ``spec`` on a canvas; sizes scale with the short side."""
    background = spec.background or rng.choice(list(BACKGROUNDS))
    unit = min(height, width) / 64.0
    things = spec.things if spec.relation else spec.things * spec.count
    low, high = _PAIR_RADII if spec.relation else _RADII[len(things)]
    # Crowded draws are thrown away; the objects shrink a little if that happens too often.
    for attempt in itertools.count():
        shrink = 0.97 ** (attempt // 100)
        placed = []
        for thing in things:
            radius = rng.uniform(low, high) * unit * shrink
            edge = radius + _MARGIN * unit
            x, y = rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)
            placed.append(Placed(thing, x, y, radius))
        if _well_placed(placed, spec.relation, unit):
            return Layout(tuple(placed), background, height, width)
    raise AssertionError("unreachable")


def _well_placed(objects: list[Placed], relation: str | None, unit: float) -> bool:
    if relation is not None:
        a, b = objects
        along, across = relation_offsets(relation, b.x - a.x, b.y - a.y)
        return along >= a.radius + b.radius + 3 * unit and abs(across) <= 0.6 * along
    return all(
        math.dist((a.x, a.y), (b.x, b.y)) > 1.15 * (a.radius + b.radius) + 2 * unit
        for a, b in itertools.combinations(objects, 2)
    )


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    radius: float,
    fill: int | tuple[int, ...],
) -> None:
    """Draws one filled shape, centred at (x, y)."""
    if shape == "circle":
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    elif shape == "square":
        half = 0.9 * radius
        draw.rectangle([x - half, y - half, x + half, y + half], fill=fill)
    elif shape == "triangle":
        base = y + 0.85 * radius
        draw.polygon([(x, y - radius), (x + radius, base), (x - radius, base)], fill=fill)
    elif shape == "cross":
        arm = 0.36 * radius
        draw.rectangle([x - radius, y - arm, x + radius, y + arm], fill=fill)
        draw.rectangle([x - arm, y - radius, x + arm, y + radius], fill=fill)
    else:
        raise ValueError(f"no shape is called {shape!r}")


def draw_layout(layout: Layout, rng: random.Random) -> Image.Image:
    """An RGB picture of ``layout``, antialiased, every colour a little off its nominal value."""

    def jitter(colour: tuple[int, int, int], spread: float) -> tuple[int, ...]:
        return tuple(int(min(255, max(0, c + rng.uniform(-spread, spread)))) for c in colour)

    s = _SUPERSAMPLING
    size = (layout.width * s, layout.height * s)
    image = Image.new("RGB", size, jitter(BACKGROUNDS[layout.background], 6))
    draw = ImageDraw.Draw(image)
    for o in layout.objects:
        fill = jitter(COLOURS[o.thing.colour], 14)
        draw_shape(draw, o.thing.shape, o.x * s, o.y * s, o.radius * s, fill)
    return image.resize((layout.width, layout.height), Image.Resampling.BOX)


def render(spec: SceneSpec, height: int, width: int, rng: random.Random) -> Image.Image:
    """A random picture of ``spec``, ``height`` x ``width`` pixels, RGB."""
    return draw_layout(sample_layout(spec, height, width, rng), rng)
