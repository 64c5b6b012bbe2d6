"""Scores of stored images are computed once: an append-only file of values, and files of features.

``scores.jsonl`` lies beside the store's index and is written like it: a line is whole or it does
not count, so a kill at any moment costs the batch at hand. A value's key is the SHA-256 over the
image's pixels, its caption, the scorer and the scorer's provenance (weights, versions, protocol).
Features of a set are stored by groups of images, each group whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import ImageScorer, SetScorer
from harness.stats import Array
from harness.store import append_rows, key_of, whole_rows, write_atomically

CHUNK = 64
"""Images that are loaded, and values that are written, together."""
GROUP = 256
"""Images whose features are in one file."""

Advance = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An image to score: how its file is opened, the hash of its pixels, its caption."""

    pixels_sha256: str
    load: Callable[[], Image.Image]
    caption: str = ""


class ScoreCache:
    """Values and features of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scores.jsonl"
        self._values = {
            row["key"]: float(row["value"])
            for row in whole_rows(self.file)
            if isinstance(row.get("key"), str) and isinstance(row.get("value"), int | float)
        }

    def score(
        self,
        scorer: ImageScorer,
        pictures: Sequence[Picture],
        advance: Advance = lambda _: None,
    ) -> Array:
        """Values float64 [n]; only those that are not stored are computed.

        ``advance`` is told how many pictures are done. Raises CRDiffError when a file is missing
        or damaged, or a value is no number.
        """
        provenance = scorer.provenance_sha256
        keys = [_value_key(scorer.name, provenance, picture) for picture in pictures]
        missing = {
            key: picture
            for key, picture in zip(keys, pictures, strict=True)
            if key not in self._values
        }
        advance(sum(key in self._values for key in keys))
        for part in _parts(list(missing.items()), CHUNK):
            images = [picture.load() for _, picture in part]
            values = scorer.score(images, [picture.caption for _, picture in part])
            new = {
                key: _finite(float(value), scorer.name)
                for (key, _), value in zip(part, values, strict=True)
            }
            rows = [
                {
                    "key": key,
                    "image": picture.pixels_sha256,
                    "scorer": scorer.name,
                    "value": new[key],
                }
                for key, picture in part
            ]
            append_rows(self.file, rows)
            self._values |= new
            advance(len(part))
        return np.array([self._values[key] for key in keys], dtype=np.float64)

    def features(
        self,
        scorer: SetScorer,
        pictures: Sequence[Picture],
        advance: Advance = lambda _: None,
    ) -> Array:
        """Features float64 [n, d] in the order of the pictures.

        Scorers with the same extractor share them. Raises CRDiffError like ``score``.
        """
        folder = self.folder / "features" / scorer.extractor_sha256()[:16]
        found = []
        for part in _parts(pictures, GROUP):
            text = "\n".join(picture.pixels_sha256 for picture in part)
            path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"
            features = _read_features(path, len(part))
            if features is None:
                loads = _parts(part, CHUNK)
                parts = [scorer.features([one.load() for one in some]) for some in loads]
                features = np.concatenate(parts)
                if not np.isfinite(features).all():
                    raise CRDiffError(f"{scorer.name} gave a feature that is no finite number")
                _write_features(path, features)
            found.append(features)
            advance(len(part))
        return np.concatenate(found) if found else scorer.features([])


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _value_key(scorer: str, provenance: str, picture: Picture) -> str:
    return key_of(
        {
            "image": picture.pixels_sha256,
            "caption": picture.caption,
            "scorer": scorer,
            "provenance": provenance,
        }
    )


def _finite(value: float, scorer: str) -> float:
    if not math.isfinite(value):
        raise CRDiffError(f"{scorer} gave {value} for an image, which is no score")
    return value


def _read_features(path: Path, n: int) -> Array | None:
    """Stored features [n, d], or None when there are none that are whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            features = stored["features"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return features.astype(np.float64) if features.ndim == 2 and len(features) == n else None


def _write_features(path: Path, features: Array) -> None:
    """In float32 where that loses nothing: networks give no more."""
    small = features.astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, features=small if np.array_equal(small, features) else features)
    write_atomically(path, buffer.getvalue())
