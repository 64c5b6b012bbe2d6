"""What decides which weights go, as a value: a criterion's name, seed and calibration prompts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family

CRITERIA = ("random", "taylor", "wanda", "obs-diff")
"""All but the magnitude, which is the core's own; the last three are calibrated."""

LABELS = {"random": "Random", "taylor": "Taylor", "wanda": "Wanda", "obs-diff": "OBS-Diff"}

VERSION = 1
"""Part of the key of images. Raise it when a change of a criterion's code changes weights."""

CALIBRATION_PROMPTS = 16
CAPTIONS = Path(__file__).with_name("captions.txt")


@dataclass(frozen=True)
class Criterion:
    """A criterion other than magnitude, with all that its masks depend on besides the model.

    Attributes:
        name: one of ``CRITERIA``.
        seed: of the random mask, or of the calibration's noise (prompt number i has seed + i).
        prompts: calibration prompts, none of them to be scored; they are drawn by the dense model
            at the size, steps and guidance of the images themselves. Empty for "random".
        source: where these come from, for people.
    """

    name: str
    seed: int = 0
    prompts: tuple[str, ...] = ()
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: for the key of an image, and for results.json."""
        told: dict[str, Any] = {"name": self.name, "version": VERSION, "seed": self.seed}
        if self.prompts:
            digest = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()
            told |= {"prompts": len(self.prompts), "prompts_sha256": digest}
        return told


@dataclass(frozen=True)
class Calibration:
    """Calibration prompts of the user's own; ``source``: the file and its SHA-256, for people."""

    prompts: tuple[str, ...]
    source: str


def read_calibration(path: Path) -> Calibration:
    """The prompts of a file of any kind that ``crdiff run --prompts`` takes. Raises CRDiffError."""
    from harness.prompts import read_prompts

    found = read_prompts(path)
    texts = tuple(prompt.text for prompt in found.prompts)
    return Calibration(texts, f"{path.name}, SHA-256 {found.sha256}")


def criterion_for(
    name: str,
    family: Family,
    prompts: int = CALIBRATION_PROMPTS,
    seed: int = 0,
    given: Calibration | None = None,
) -> Criterion:
    """The criterion, with calibration prompts for a model family. Raises CRDiffError.

    For the embedded model they are captions of its grammar that are kept for searches: the model
    was not trained on them, and neither demo nor evaluation draws them. For all others they are the
    first of ``captions.txt``, written for this purpose. ``given``: the first of these instead.
    """
    if name == "random":
        return Criterion(name, seed)
    if family.is_dit:
        raise CRDiffError(
            f"{name} is calibrated through a UNet, which {family.label} has not: leave this method "
            "out"
        )
    if given is not None:
        texts, source = list(given.prompts[:prompts]), given.source
    elif family.name == "embedded":
        texts, source = _embedded_captions(prompts), "embedded grammar, captions kept for searches"
    else:
        lines = CAPTIONS.read_text(encoding="utf-8").splitlines()
        texts, source = lines[:prompts], "written for calibration (harness/criteria/captions.txt)"
    if not 1 <= prompts == len(texts):
        raise CRDiffError(
            f"{LABELS[name]} on {prompts} calibration prompts: there are {len(texts)}, use at "
            "least 1 and at most that many"
        )
    return Criterion(name, seed, tuple(texts), source)


def _embedded_captions(count: int) -> list[str]:
    from harness.embedded.scenes import all_specs, caption, prompt_set, split_of

    most = sum(split_of(spec) == "search" for spec in all_specs())
    return [caption(spec) for spec in prompt_set("search", min(count, most))]
