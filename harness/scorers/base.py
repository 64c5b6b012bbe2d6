"""What every scorer is: one protocol for scores of single images, one for scores of a set.

A scorer never downloads anything. Its files are looked for in a folder that the user names, and
:meth:`Scorer.missing` says in one sentence which file to get from where. Every image goes through
the evaluation protocol first (``paper-256`` or ``native``), before the scorer's own preprocessing.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.environment import package_version
from harness.results import Metric
from harness.scorers.reference import Reference, ReferenceSource
from harness.stats import Array, Interval
from harness.store import canonical_json

PROTOCOLS = {
    "paper-256": "every image to 256x256 first (PIL bicubic, aspect ratio not kept, 8 bit), as the "
    "paper's evaluation does",
    "native": "every image at the size it was drawn",
}
PAPER_SIDE = 256
DEFAULT_PROTOCOL = "paper-256"
NO_REFERENCE = "needs reference images: give --reference a folder, or an .npz with mu and sigma"
BATCH = 16
"""Images that go through a network together."""


def check_protocol(protocol: str) -> str:
    """The protocol, if there is one of that name. Raises CRDiffError."""
    if protocol not in PROTOCOLS:
        raise CRDiffError(f"protocol {protocol!r} is not known: use one of {', '.join(PROTOCOLS)}")
    return protocol


def prepare(image: Image.Image, protocol: str) -> Image.Image:
    """The image as the protocol has it scored: RGB, 8 bit."""
    image = image.convert("RGB")
    if check_protocol(protocol) == "native":
        return image
    return image.resize((PAPER_SIDE, PAPER_SIDE), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Needed:
    """One file that a scorer loads: any of ``names`` in ``folder``, below the weights folder."""

    folder: str
    names: tuple[str, ...]
    source: str
    """Where to get it, as the sentence says it."""
    hashed: bool = True
    """Whether its SHA-256 belongs to the scorer's provenance."""

    def find(self, weights: Path) -> Path | None:
        """The file, or None."""
        paths = (weights / self.folder / name for name in self.names)
        return next((path for path in paths if path.is_file()), None)


@lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; computed once a process while the file stays as it is."""
    real = path.resolve()
    state = real.stat()
    return _digest(str(real), state.st_size, state.st_mtime_ns)


class Scorer(ABC):
    """One metric: what it is called, whether it can be computed here, and where it comes from."""

    name: str
    label: ClassVar[str]
    what: ClassVar[str]
    higher_is_better: ClassVar[bool]
    per_image: ClassVar[bool]
    decimals: ClassVar[int] = 3
    packages: ClassVar[tuple[str, ...]] = ("torch", "pillow", "numpy")
    """Distributions whose versions are part of the provenance."""

    def __init__(self, weights: Path, device: str, protocol: str) -> None:
        self.weights, self.device = weights, device
        self.protocol = check_protocol(protocol)

    @classmethod
    def with_setting(cls, setting: str, weights: Path, device: str, protocol: str) -> Scorer:
        """The scorer with what follows the colon of its name. Raises CRDiffError."""
        raise CRDiffError(f"{cls.name} has no setting: leave out the :{setting}")

    def needed(self) -> Sequence[Needed]:
        """The files that it loads."""
        return ()

    def missing(self) -> str | None:
        """None when it can be used; else one sentence: which file, from where, into which folder.

        In the style of an error: no capital at the start, no full stop.
        """
        for file in self.needed():
            if file.find(self.weights) is None:
                names = " or ".join(file.names)
                return (
                    f"{self.name} needs {names}: get it from {file.source} and put it into "
                    f"{self.weights / file.folder}"
                )
        return None

    def require(self) -> None:
        """Raise CRDiffError with the sentence of ``missing``, if there is one."""
        if sentence := self.missing():
            raise CRDiffError(sentence)

    def details(self) -> dict[str, Any]:
        """What else its values depend on: backbone, preprocessing, constants."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """Backbone, SHA-256 of the weights, versions, protocol: all that its values depend on.

        Raises CRDiffError when a file is missing.
        """
        return self._provenance

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        self.require()
        found = [file.find(self.weights) for file in self.needed() if file.hashed]
        return {
            "scorer": self.name,
            "protocol": self.protocol,
            "device": self.device.partition(":")[0],
            "weights": {path.name: file_sha256(path) for path in found if path is not None},
            "packages": {name: package_version(name) for name in self.packages},
            **self.details(),
        }

    @property
    def provenance_sha256(self) -> str:
        """SHA-256 of the provenance: part of the key of every cached value."""
        return hashlib.sha256(canonical_json(self.provenance()).encode()).hexdigest()

    def metric(self) -> Metric:
        """Its labels, as results and reports take them."""
        return Metric(
            self.name,
            self.label,
            self.what,
            self.higher_is_better,
            self.per_image,
            self.decimals,
        )

    def close(self) -> None:  # noqa: B027 - most scorers hold nothing that has to be let go
        """Let go of what it holds; it loads again when it is used again."""


class ImageScorer(Scorer):
    """A score for each image, given its caption."""

    per_image = True

    @abstractmethod
    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Scores float64 [n] of PIL images of any size. Raises CRDiffError if a file is missing."""


class SetScorer(Scorer):
    """A score of a whole set of images against a reference set."""

    per_image = False
    dimensions: ClassVar[int]
    """How many features an image has."""

    @abstractmethod
    def features(self, images: Sequence[Image.Image]) -> Array:
        """Features float64 [n, d] of PIL images of any size."""

    @abstractmethod
    def distance(self, features: Array, reference: Reference) -> float:
        """The score of a set's features [n, d]."""

    def difference(
        self,
        method: Array,
        dense: Array,
        reference: Reference,
        prompts: Sequence[str] | None = None,
    ) -> Interval | None:
        """Paired interval of distance(method) - distance(dense), features given image by image.

        ``prompts``: each image's, where a prompt has several (seeds); else None.
        None where there are too few images for one that keeps its promise.
        """
        return None

    def extractor_sha256(self) -> str:
        """Which features these are: scorers with the same one share cached features."""
        about = {key: value for key, value in self.provenance().items() if key != "scorer"}
        return hashlib.sha256(canonical_json(about).encode()).hexdigest()

    def without_reference(self, captions: Sequence[str]) -> str | None:
        """Why it needs --reference for images of these captions; None: it makes one of its own."""
        return NO_REFERENCE

    def own_reference(
        self, captions: Sequence[str], height: int, width: int
    ) -> tuple[Reference, str]:
        """A reference for images of these captions and this size, and what it is in words.

        Raises CRDiffError with the sentence of ``without_reference``.
        """
        raise CRDiffError(f"{self.name} {self.without_reference(captions)}")

    def unsuited(self, source: ReferenceSource) -> str | None:
        """One sentence when this reference can't be used (it has no images), else None."""
        return None


def batches(images: Sequence[Image.Image], size: int = BATCH) -> Iterator[list[Image.Image]]:
    """The images in groups of at most ``size``, in order."""
    for start in range(0, len(images), size):
        yield list(images[start : start + size])


def joined(parts: Sequence[np.ndarray], *width: int) -> Array:
    """Parts along the first axis as one float64 array; without any, an empty [0, *width]."""
    if not parts:
        return np.empty((0, *width))
    return np.concatenate(parts).astype(np.float64)
