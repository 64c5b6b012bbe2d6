"""Reference images of a set score: a folder, or published ``mu, sigma`` statistics in npz."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.stats import Array
from harness.store import pixels_sha256

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Those that pytorch-fid reads."""


@dataclass(frozen=True)
class Reference:
    """A reference as one extractor sees it: mean [d], covariance [d, d], features [n, d] or None.

    ``n`` is None for published statistics: they don't say how many images they are of.
    """

    mean: Array
    covariance: Array
    features: Array | None = field(default=None, repr=False)
    n: int | None = None

    @classmethod
    def of_features(cls, features: Array) -> Reference:
        """From features [n, d], n >= 2; the covariance is unbiased, as in pytorch-fid."""
        features = np.asarray(features, np.float64)
        if len(features) < 2:
            raise CRDiffError("a reference needs at least two images: give --reference more")
        covariance = np.atleast_2d(np.cov(features, rowvar=False))
        return cls(features.mean(0), covariance, features, len(features))

    @cached_property
    def root(self) -> Array:
        """The covariance's symmetric square root [d, d]; eigenvalues below zero count as zero."""
        values, vectors = np.linalg.eigh(self.covariance)
        return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


@dataclass(frozen=True)
class ReferenceSource:
    """What the user named with --reference."""

    path: Path
    statistics: Reference | None = None
    files: tuple[Path, ...] = ()

    @property
    def has_images(self) -> bool:
        """Whether it is a folder of images."""
        return self.statistics is None

    def load(self, file: Path) -> Image.Image:
        """One image, RGB. Raises CRDiffError when the file is damaged."""
        try:
            with Image.open(file) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise CRDiffError(
                f"the reference image {file} cannot be read: remove it from the folder"
            ) from error

    def pixels(self) -> list[str]:
        """The pixel hash of each image, in order; computed once."""
        return self._pixels

    @cached_property
    def _pixels(self) -> list[str]:
        return [pixels_sha256(self.load(file)) for file in self.files]

    def describe(self) -> dict[str, Any]:
        """For scores.json: what it is, of how many images, its hash; no path."""
        if self.statistics is None:
            digest = hashlib.sha256("\n".join(self.pixels()).encode()).hexdigest()
            return {
                "kind": "images",
                "name": self.path.name,
                "n": len(self.files),
                "sha256": digest,
            }
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"kind": "statistics", "name": self.path.name, "n": None, "sha256": digest}


def open_reference(path: Path) -> ReferenceSource:
    """A folder of images (not its sub-folders), or an npz with ``mu`` and ``sigma``.

    Raises CRDiffError.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if len(files) < 2:
            raise CRDiffError(
                f"the folder {path} has fewer than two images: give --reference a folder with the "
                "reference images themselves, not in sub-folders"
            )
        return ReferenceSource(path, files=tuple(files))
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise CRDiffError(
            f"{path} is no reference: give --reference a folder of images, or an .npz with mu and "
            "sigma"
        )
    return ReferenceSource(path, _read_statistics(path))


def _read_statistics(path: Path) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean, covariance = (np.asarray(stored[name], np.float64) for name in ("mu", "sigma"))
    except (KeyError, ValueError, OSError, BadZipFile) as error:
        raise CRDiffError(
            f"{path} has no arrays mu and sigma: make it with pytorch-fid --save-stats"
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise CRDiffError(
            f"{path} has mu {list(mean.shape)} and sigma {list(covariance.shape)}: they must be "
            "[d] and [d, d]"
        )
    return Reference(mean, covariance)
