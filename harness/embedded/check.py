"""The caption check: which facts of a caption an image shows, by segmentation, at any size.

Colours are told by the nearest nominal colour, objects by connected components, shapes by the best
overlap with a template. It knows nothing of the diffusion model, and is exact on real renders (the
tests state how exact).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from harness.embedded.scenes import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SceneSpec,
    Thing,
    draw_shape,
    plural,
    relation_offsets,
)

_TEMPLATE = 24  # px: the side of the square in which shapes are compared
_CONTRAST = 48  # 0-255: how far a channel is from the background for a pixel to be an object's
_SMALLEST = 0.0075  # of the short side squared: smaller components are specks
_SECOND_COLOUR = 0.25  # share of a component from which a second colour is an object of its own
_RECOGNISED = 0.55  # least overlap with the best template
_COLOUR_NAMES = tuple(COLOURS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_PALETTE = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float32)


@dataclass(frozen=True)
class Found:
    """One object in an image; ``shape`` is ``"?"`` if it looks like none; x, y in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    overlap: float

    @property
    def thing(self) -> Thing:
        """Colour and shape."""
        return Thing(self.colour, self.shape)


@dataclass(frozen=True)
class CheckResult:
    """``facts``: mean of ``details``, each 0 to 1; ``all_right``: every one of them is 1."""

    all_right: bool
    facts: float
    details: dict[str, float]
    objects: int


def parse_caption(text: str) -> SceneSpec:
    """The inverse of :func:`harness.embedded.scenes.caption`.

    Raises:
        ValueError: ``text`` is not a sentence of the grammar.
    """
    match = _grammar().fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a caption of the embedded model's grammar: {text!r}")
    part = match.groupdict()
    if part["relation"]:
        first, second = (Thing(part[f"colour{i}"], part[f"shape{i}"]) for i in (1, 2))
        relation = {words: name for name, words in RELATIONS.items()}[part["relation"]]
        if first == second:
            raise ValueError(f"both objects of {text!r} are the same")
        return SceneSpec((first, second), relation=relation, background=part["background"])
    if part["number"]:
        count = {word: n for n, word in NUMBERS.items()}[part["number"]]
        shape = {plural(s): s for s in SHAPES}[part["shapes"]]
        return SceneSpec((Thing(part["colours"], shape),), count, background=part["background"])
    thing = Thing(part["colour1"], part["shape1"])
    return SceneSpec((thing,), background=part["background"])


@cache
def _grammar() -> re.Pattern[str]:
    def any_of(name: str, words: object) -> str:
        return f"(?P<{name}>{'|'.join(words)})"  # type: ignore[arg-type]

    single, pair_end = (
        f"a {any_of(f'colour{i}', COLOURS)} {any_of(f'shape{i}', SHAPES)}" for i in (1, 2)
    )
    several = (
        f"{any_of('number', list(NUMBERS.values())[1:])} {any_of('colours', COLOURS)} "
        + any_of("shapes", map(plural, SHAPES))
    )
    relation = any_of("relation", RELATIONS.values())
    ground = f"( on a {any_of('background', BACKGROUNDS)} background)?"
    return re.compile(f"({several}|{single}( {relation} {pair_end})?){ground}")


@cache
def _templates() -> dict[str, np.ndarray]:
    templates = {}
    for shape in SHAPES:
        image = Image.new("L", (240, 240), 0)
        draw_shape(ImageDraw.Draw(image), shape, 120, 120, 100, 255)
        templates[shape] = _normalised(np.asarray(image) > 127)
    return templates


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The bounding box of ``mask``, resized to the templates' square, 0 to 1."""
    rows, columns = np.where(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    image = Image.fromarray((box * 255).astype(np.uint8))
    return np.asarray(image.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BOX), np.float32) / 255


def detect(image: Image.Image) -> tuple[str, list[Found]]:
    """(name of the background, objects found) in an RGB image of any size."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    label = ((pixels[:, :, None] - _PALETTE) ** 2).sum(-1).argmin(-1)
    ground = label - len(COLOURS)
    votes = np.bincount(ground[ground >= 0], minlength=len(BACKGROUNDS))
    background = int(votes.argmax())
    plain = pixels[ground == background]
    colour = np.median(plain, 0) if len(plain) else _PALETTE[len(COLOURS) + background]
    foreground = np.abs(pixels - colour).max(-1) > _CONTRAST
    components, n = ndimage.label(foreground, structure=np.ones((3, 3)))
    smallest = _SMALLEST * min(pixels.shape[:2]) ** 2
    found = []
    for i in range(1, n + 1):
        for name, mask in _one_coloured(components == i, label):
            if mask.sum() >= smallest:
                found.append(_recognise(name, mask))
    return _BACKGROUND_NAMES[background], found


def _one_coloured(mask: np.ndarray, label: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """A component, or its parts where two colours touch."""
    colours = label[mask]
    counts = np.bincount(colours[colours < len(COLOURS)], minlength=len(COLOURS))
    if not counts.sum():
        return []
    large = np.flatnonzero(counts > _SECOND_COLOUR * counts.sum())
    if len(large) < 2:
        return [(int(counts.argmax()), mask)]
    return [(int(c), mask & (label == c)) for c in large]


def _recognise(colour: int, mask: np.ndarray) -> Found:
    rows, columns = np.where(mask)
    seen = _normalised(mask)
    overlaps = {
        shape: float(np.minimum(seen, t).sum() / np.maximum(seen, t).sum())
        for shape, t in _templates().items()
    }
    best = max(overlaps, key=overlaps.__getitem__)
    aspect = float((np.ptp(columns) + 1) / (np.ptp(rows) + 1))
    overlap = overlaps[best] * min(aspect, 1 / aspect)
    shape = best if overlap > _RECOGNISED else "?"
    return Found(_COLOUR_NAMES[colour], shape, float(columns.mean()), float(rows.mean()), overlap)


def check(image: Image.Image, spec: SceneSpec) -> CheckResult:
    """Which facts of ``spec`` the image shows.

    Facts: the background if it is named; the number of objects; for a pair each of the two (half if
    only its colour is there) and the relation; else the shares of objects of the right colour and
    of the right shape.
    """
    background, found = detect(image)
    details: dict[str, float] = {}
    if spec.background is not None:
        details["background"] = float(background == spec.background)
    if spec.relation is not None:
        details["count"] = float(len(found) == 2)
        for name, thing in zip(("first", "second"), spec.things, strict=True):
            details[name] = _presence(thing, found)
        details["relation"] = float(_related(spec, found))
    else:
        thing, n = spec.things[0], max(1, len(found))
        details["count"] = float(len(found) == spec.count)
        details["colour"] = sum(o.colour == thing.colour for o in found) / n
        details["shape"] = sum(o.shape == thing.shape for o in found) / n
    values = list(details.values())
    return CheckResult(all(v == 1 for v in values), sum(values) / len(values), details, len(found))


def _presence(thing: Thing, found: list[Found]) -> float:
    if any(o.thing == thing for o in found):
        return 1.0
    return 0.5 * any(o.colour == thing.colour for o in found)


def _related(spec: SceneSpec, found: list[Found]) -> bool:
    """Whether some object like the first (else of its colour) stands as it should to the second."""
    first, second = (
        [o for o in found if o.thing == thing] or [o for o in found if o.colour == thing.colour]
        for thing in spec.things
    )
    assert spec.relation is not None
    for a in first:
        for b in second:
            along, across = relation_offsets(spec.relation, b.x - a.x, b.y - a.y)
            if a is not b and along > 0 and along >= 0.8 * abs(across):
                return True
    return False
