"""The embedded model's own scores behind the same protocol: stand-ins, and labelled so.

They ship with the project, so that everything around a scorer can be run without any download. None
is ImageReward or FID, and none is ever shown under those names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.embedded.check import parse_caption
from harness.embedded.reward import (
    FEATURES,
    REFERENCE_IMAGES,
    EmbeddedReward,
    reference_images,
)
from harness.embedded.weights import embedded_model_dir
from harness.frechet import Frechet
from harness.scorers.base import ImageScorer, Scorer, SetScorer, file_sha256, prepare
from harness.scorers.distances import frechet_difference, frechet_distance
from harness.scorers.reference import Reference
from harness.stats import Array, Interval


class _Embedded(Scorer):
    packages: ClassVar[tuple[str, ...]] = ("torch", "pillow", "numpy")

    def details(self) -> dict[str, Any]:
        """The weights that ship with the embedded model."""
        file = embedded_model_dir() / "reward" / "reward.safetensors"
        return {
            "backbone": "CR-Diff's embedded reward (a stand-in)",
            "weights": {file.name: file_sha256(file)},
            "device": "cpu",
        }

    @cached_property
    def _reward(self) -> EmbeddedReward:
        return EmbeddedReward.load()

    def _ready(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        return [prepare(image, self.protocol) for image in images]


class EmbeddedRewardScorer(_Embedded, ImageScorer):
    """The small reward."""

    name = "embedded_reward"
    label = "embedded reward"
    higher_is_better = True
    what = (
        "A small network, trained on the same kind of scenes as the embedded model, that reads "
        "image and caption together and says how well they match. A stand-in: not ImageReward."
    )

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Rewards float64 [n]."""
        return self._reward.score(self._ready(images), captions)


class EmbeddedFrechet(_Embedded, SetScorer):
    """Frechet distance on the small reward's features."""

    name = "embedded_frechet"
    label = "embedded Fréchet distance"
    higher_is_better = False
    decimals = 1
    dimensions = FEATURES
    what = (
        "Fréchet distance to the reference images on the features of a small network, trained on "
        "the same kind of scenes as the embedded model. A stand-in: not FID."
    )

    def features(self, images: Sequence[Image.Image]) -> Array:
        """Features float64 [n, 32]."""
        return self._reward.features(self._ready(images))

    def without_reference(self, captions: Sequence[str]) -> str | None:
        """None for captions of the embedded model's grammar: their scenes can be rendered."""
        try:
            for text in dict.fromkeys(captions):
                parse_caption(text)
        except ValueError:
            return (
                "needs captions of the embedded model's grammar, or reference images: give "
                "--reference a folder"
            )
        return None

    def own_reference(
        self, captions: Sequence[str], height: int, width: int
    ) -> tuple[Reference, str]:
        """Features of real renders of the captions' scenes at this size, as in the demo."""
        if lacking := self.without_reference(captions):
            raise CRDiffError(f"{self.name} {lacking}")
        specs = [parse_caption(text) for text in captions]
        real = reference_images(specs, height, width, REFERENCE_IMAGES)
        what = f"{REFERENCE_IMAGES} real renders of the run's captions at each image's size"
        return Reference.of_features(self.features(real)), what

    def distance(self, features: Array, reference: Reference) -> float:
        """Frechet distance."""
        return frechet_distance(features, reference)

    def difference(
        self,
        method: Array,
        dense: Array,
        reference: Reference,
        prompts: Sequence[str] | None = None,
    ) -> Interval | None:
        """By the corrected jackknife of ``harness.frechet``; it needs the reference's images.

        That one counts single images. With several seeds of a prompt: by the plain one, over
        prompts, which errs towards wide.
        """
        if prompts is not None:
            return frechet_difference(method, dense, reference, prompts)
        if reference.features is None:
            return None
        frechet = Frechet(reference.features)
        return frechet.difference(method, dense) if len(method) >= frechet.fewest else None
