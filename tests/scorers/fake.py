"""Scorers that count what they are asked: exact numbers without any network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from harness.scorers import ImageScorer, Reference, SetScorer
from harness.scorers.base import prepare
from harness.scorers.distances import frechet_distance


class Brightness(ImageScorer):
    """The mean pixel, plus a thousandth for each letter of the caption."""

    name = "brightness"
    label = "Brightness"
    what = "A test's."
    higher_is_better = True

    def __init__(self, protocol: str = "native", version: int = 1) -> None:
        super().__init__(Path(), "cpu", protocol)
        self.version, self.scored, self.closed = version, 0, 0

    def details(self) -> dict[str, object]:
        return {"backbone": "none", "version": self.version}

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        self.scored += len(images)
        pairs = zip(images, captions, strict=True)
        ready = [(np.asarray(prepare(i, self.protocol), float), len(c)) for i, c in pairs]
        return np.array([pixels.mean() + letters / 1000 for pixels, letters in ready])

    def close(self) -> None:
        self.closed += 1


class Colours(SetScorer):
    """Frechet distance of mean colours."""

    name = "colours"
    label = "Colours"
    what = "A test's."
    higher_is_better = False
    dimensions = 3

    def __init__(self, protocol: str = "native", lost: str | None = None) -> None:
        super().__init__(Path(), "cpu", protocol)
        self.seen, self.lost = 0, lost

    def missing(self) -> str | None:
        return self.lost

    def details(self) -> dict[str, object]:
        return {"backbone": "none"}

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(images)
        if not images:
            return np.empty((0, 3))
        return np.array([np.asarray(i.convert("RGB"), float).mean((0, 1)) for i in images])

    def distance(self, features: np.ndarray, reference: Reference) -> float:
        return frechet_distance(features, reference)
