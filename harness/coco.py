"""MS-COCO captions: the authors' own sample of ``captions_val2014.json``, drawn as they draw it.

The recipe is the released code's: image ids in the order in which they first occur in
``annotations``; ``random.seed(42)``; ``random.sample(ids, 5000)``; then, in that order,
``random.choice`` among the image's captions. An image whose file is missing is passed over without
drawing, so that every later caption changes: with all files in place nothing is passed over.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

from crdiff_ext.errors import CRDiffError

VAL2014_SHA256 = "7da4cc45cb76ee1642d163e846e1e0a33feffac2e841c9c426d585ea499165a4"
"""Of the official captions_val2014.json (32,421,077 bytes)."""
SAMPLE = 5000
SAMPLE_SEED = 42


class CocoCaption(NamedTuple):
    """One image of COCO and the caption chosen for it."""

    image_id: int
    text: str


def file_name(image_id: int) -> str:
    """The image's file in COCO's val2014 folder."""
    return f"COCO_val2014_{image_id:012d}.jpg"


def authors_sample(
    text: str,
    count: int = SAMPLE,
    seed: int = SAMPLE_SEED,
    present: Callable[[int], bool] | None = None,
) -> list[CocoCaption]:
    """The authors' ``count`` captions of a COCO captions file's text, in their order.

    ``present`` says whether an image's file is there (None: all are). Captions are kept as they
    stand in the file but for white space around them. Raises CRDiffError.
    """
    captions: dict[int, list[str]] = {}
    for image_id, caption in _annotations(text):
        captions.setdefault(image_id, []).append(caption)
    if len(captions) < count:
        raise CRDiffError(
            f"the COCO file has captions of {len(captions)} images, but the authors' sample takes "
            f"{count}: use the whole captions_val2014.json"
        )
    rng = random.Random(seed)  # the same stream as the module's after random.seed(42)
    return [
        CocoCaption(image_id, rng.choice(captions[image_id]).strip())
        for image_id in rng.sample(list(captions), count)
        if present is None or present(image_id)
    ]


def _annotations(text: str) -> list[tuple[int, str]]:
    try:
        rows = json.loads(text)["annotations"]
        found = [(row["image_id"], row["caption"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        found = []
    if not found or not all(isinstance(i, int) and isinstance(c, str) for i, c in found):
        raise CRDiffError(
            "the JSON file of prompts is not a COCO captions file (a list named annotations, each "
            "with image_id and caption): use captions_val2014.json, or a .txt, .csv or .tsv file"
        )
    return found
