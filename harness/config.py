"""The typed settings of a run, and the small value types that everything in the harness shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios, check_k

DRAWING_VERSION = 1
"""Part of every image's key. Raise it when a change of the code changes pixels."""

AUTHORS_STEPS = 30
AUTHORS_GUIDANCE = 7.5
NOT_IN_PAPER = "not stated in the paper; the authors' code's"

RATIO_WORDS = ("auto", "stored")
DTYPES = ("auto", "fp32", "fp16", "bf16")


class Size(NamedTuple):
    """An image's size in pixels, height first as in the paper."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """``"512x768"`` -> 512 high, 768 wide. Raises CRDiffError."""
        match = re.fullmatch(r"\s*(\d{1,5})\s*[xX]\s*(\d{1,5})\s*", text)
        if not match or not int(match[1]) or not int(match[2]):
            raise CRDiffError(
                f"size {text!r} is not understood: write height x width in pixels, such as 512x768"
            )
        return cls(int(match[1]), int(match[2]))

    def check_step(self, step: int, label: str) -> None:
        """Refuse a size that the model's latent grid cannot hold. Raises CRDiffError."""
        if self.height % step or self.width % step:
            near = Size(*(max(step, round(side / step) * step) for side in self))
            raise CRDiffError(
                f"size {self} does not work with {label}: both sides must be multiples of {step}; "
                f"try {near}"
            )


@dataclass(frozen=True)
class RunConfig:
    """What the user asked for, checked but not yet resolved against a model.

    ``steps``, ``guidance`` and ``batch`` may be None: the model's own recommendation then
    counts, and after it the authors' code's value (the paper states neither).
    ``ratios`` is "auto" (act on unseen sizes with a stored entry), "stored" (act at every size,
    also the native one) or three ratios as text (act at every size with these). ``k`` None is the
    stored entry's own, or 1.5 where the ratios are not stored ones. ``calibration`` is a file of
    prompts for the calibrated criteria. ``config`` and ``prediction`` help to load a single file,
    see ``pipelines.load_pipeline``. With ``more_seeds`` every prompt is drawn once more for each of
    them, see :func:`image_seed`.
    """

    model: str
    sizes: tuple[Size, ...]
    out: Path
    methods: tuple[str, ...] = ("dense", "crdiff")
    ratios: str = "auto"
    k: float | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    negative: str = ""
    scheduler: str = "default"
    dtype: str = "auto"
    device: str = "auto"
    batch: int | None = None
    limit: int | None = None
    config: Path | None = None
    prediction: str | None = None
    more_seeds: tuple[int, ...] = ()
    calibration: Path | None = None

    def __post_init__(self) -> None:
        if not self.sizes:
            raise CRDiffError("no size was given: add --size HEIGHTxWIDTH, such as --size 512x512")
        if not self.methods:
            raise CRDiffError("no method was given: name at least one, such as --method dense")
        self.given_ratios()
        if self.k is not None:
            check_k(self.k)
        for name, low in (("steps", 1), ("batch", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise CRDiffError(f"--{name} is {value}: it must be at least {low}")
        if self.guidance is not None:
            _within("guidance", self.guidance, 0.0, 100.0)
        if len(set(self.seeds)) < len(self.seeds):
            raise CRDiffError("a seed is named twice: give each seed once")
        for seed in self.seeds:
            if not 0 <= seed < 2**63:
                raise CRDiffError(f"--seed is {seed}: it must be between 0 and 2^63 - 1")
        if self.dtype not in DTYPES:
            raise CRDiffError(f"--dtype {self.dtype} is not known: use one of {', '.join(DTYPES)}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds: as many images of each prompt."""
        return (self.seed, *self.more_seeds)

    def given_ratios(self) -> Ratios | None:
        """The ratios that the user typed, or None for "auto" and "stored". Raises CRDiffError."""
        return None if self.ratios in RATIO_WORDS else Ratios.parse(self.ratios)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for NaN
        raise CRDiffError(f"--{name} is {value}: it must lie between {low:g} and {high:g}")


SEED_STRIDE = 1_000_003
"""What every further seed is moved by: torch's CPU generator keeps the last 32 bits of a seed."""


def image_seed(seed: int, index: int, number: int = 0) -> int:
    """The seed of prompt number ``index``'s image with the run's seed ``number`` (both from 0).

    Every prompt has noise of its own, and all methods and sizes give it the same, so that
    differences are paired. Further seeds are moved by a stride, so that seeds such as 0 and 1
    never give two prompts the same noise.
    """
    return (seed + index + number * SEED_STRIDE) % 2**63
