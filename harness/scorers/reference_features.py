"""A reference as one scorer's extractor sees it, its features cached like a run's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import SetScorer
from harness.scorers.cache import Advance, Picture, ScoreCache
from harness.scorers.reference import Reference, ReferenceSource


def reference_for(
    scorer: SetScorer,
    source: ReferenceSource,
    cache: ScoreCache,
    advance: Advance = lambda _: None,
) -> Reference:
    """Statistics as they are, or the features of the folder's images. Raises CRDiffError."""
    if source.statistics is not None:
        width, d = len(source.statistics.mean), scorer.dimensions
        if width != d:
            raise CRDiffError(
                f"{source.path} has statistics of {width} features and {scorer.name} has {d}: "
                "give --reference statistics of the same features"
            )
        return source.statistics
    pixels = source.pixels()
    pictures = [
        Picture(digest, partial(_load, source, file))
        for file, digest in zip(source.files, pixels, strict=True)
    ]
    return Reference.of_features(cache.features(scorer, pictures, advance))


def _load(source: ReferenceSource, file: Path) -> Image.Image:
    return source.load(file)
