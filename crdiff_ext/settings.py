"""One frozen ``Settings``: the single source for UI, API, XYZ axes, infotext, presets, harness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import CRDiffError

GROUPS = ("down", "mid", "up")
"""The paper's three block groups, in the order in which ratios are always written."""

ALL = "all"
"""The one group of a diffusion transformer, whose layers all have one ratio."""

K_DEFAULT = 1.5
K_MAX = 3.0
AMPLIFICATIONS = ("exact", "folded", "reuse-2", "reuse-3", "reuse-4")
"""How ``z = k z_pruned + (1 - k) z_dense`` is come by, see ``amplify.py``."""


@dataclass(frozen=True)
class Ratios:
    """Block-wise pruning ratios: the share of a group's weights to prune, each in [0, 1).

    Raises CRDiffError for anything else, NaN included.
    """

    down: float
    mid: float
    up: float

    def __post_init__(self) -> None:
        for group in GROUPS:
            number = as_number(getattr(self, group), f"ratio {group!r}")
            if not 0 <= number < 1:  # false for NaN too
                raise CRDiffError(
                    f"ratio {group!r} is {number:g}: it must be at least 0 and below 1"
                )
            object.__setattr__(self, group, number)

    @classmethod
    def parse(cls, text: str) -> Ratios:
        """``"0.3/0.2/0.1"`` (down/mid/up) or ``"0.3"`` for all three; spaces are allowed.

        >>> print(Ratios.parse("0.397/0.434/0.387"))
        0.397 / 0.434 / 0.387
        """
        parts = text.split("/")
        if len(parts) not in (1, 3):
            raise CRDiffError(
                f"ratios {text!r} are not understood: write one number, or down/mid/up such as "
                "0.3/0.2/0.1"
            )
        return cls(*(parts * 3 if len(parts) == 1 else parts))  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ratios:
        """From ``{"down": ..., "mid": ..., "up": ...}``; all three and nothing else."""
        if set(data) != set(GROUPS):
            raise CRDiffError(
                f"ratios need down, mid and up, not {', '.join(map(str, data)) or 'nothing'}"
            )
        return cls(**data)

    def as_dict(self) -> dict[str, float]:
        """``{"down": ..., "mid": ..., "up": ...}``."""
        return {group: float(getattr(self, group)) for group in GROUPS}

    @property
    def shared(self) -> float | None:
        """The one ratio of all three groups; None when they differ."""
        return self.down if self.down == self.mid == self.up else None

    def of(self, group: str) -> float:
        """A group's ratio; that of ``ALL`` is the shared one. Raises CRDiffError if there is none.

        >>> Ratios(0.3, 0.2, 0.1).of("up"), Ratios.parse("0.2").of("all")
        (0.1, 0.2)
        """
        ratio = self.shared if group == ALL else self.as_dict()[group]
        if ratio is None:
            raise CRDiffError(
                f"a diffusion transformer has one ratio for all layers, not {self}: give one number"
            )
        return ratio

    @property
    def is_zero(self) -> bool:
        """Whether nothing at all is asked to be pruned."""
        return not any(self.as_dict().values())

    def __str__(self) -> str:
        return " / ".join(f"{ratio:.12g}" for ratio in self.as_dict().values())


@dataclass(frozen=True)
class Settings:
    """What the user chose. Raises CRDiffError that names the field for a value that is not allowed.

    Attributes:
        mode: "off"; "auto" acts on unseen sizes only; "always" acts on the native size too.
        ratios: set by hand, or None for the stored ones of the model's family.
        k: amplification, z = k z_pruned + (1 - k) z_dense; 1 is pruning alone, 0 the dense model.
        start, end: part of the schedule in which to act, as fractions of its steps.
        memory: how a pruned pass gets its weights, see ``weights.py``.
        amplification: "exact" (two passes), "folded" (one, approximate) or "reuse-N" (the dense
            pass at every N-th step), see ``amplify.py``.
        passes: which passes of a hires-fix generation to act in.
        hires: where the hires pass' ratios come from: "as first" (the same rule as the first
            pass), "stored" (for the second pass' size), or "set" (``hires_ratios``).
        hires_ratios: set by hand for the hires pass: given if, and only if, ``hires`` is "set".
        refiner: act after the switch to a refiner model too.
        native_area_tolerance: relative difference of area up to which a size counts as native.
        sd_max_aspect, sdxl_max_aspect: long side / short side up to which it does.
        max_log_area: farthest stored entry, as |ln(area / stored area)|; 0.7 is a factor of two.
    """

    mode: str = "auto"
    ratios: Ratios | None = None
    k: float = K_DEFAULT
    start: float = 0.0
    end: float = 1.0
    memory: str = "auto"
    amplification: str = "exact"
    passes: str = "both"
    hires: str = "as first"
    hires_ratios: Ratios | None = None
    refiner: bool = True
    native_area_tolerance: float = 0.10
    sd_max_aspect: float = 1.25
    sdxl_max_aspect: float = 4.0
    max_log_area: float = 0.7

    def __post_init__(self) -> None:
        for name in ("ratios", "hires_ratios"):
            object.__setattr__(self, name, _as_ratios(getattr(self, name), name))
        if not isinstance(self.refiner, bool):
            raise CRDiffError(f"refiner is {self.refiner!r}: use true or false")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise CRDiffError(f"{name} is {value!r}: use one of {', '.join(choices)}")
        for name, (low, high) in _RANGES.items():
            number = as_number(getattr(self, name), name)
            if not low <= number <= high:  # false for NaN too
                raise CRDiffError(f"{name} is {number:g}: it must lie between {low:g} and {high:g}")
            object.__setattr__(self, name, number)
        if not self.start < self.end:
            raise CRDiffError(f"start is {self.start:g}: it must be below end, {self.end:g}")
        if (self.hires == "set") != (self.hires_ratios is not None):
            raise CRDiffError(
                f'hires is {self.hires!r}: it must be "set" when, and only when, hires_ratios are'
            )

    def for_pass(self, name: str) -> Settings:
        """The settings that rule the pass ``name``, "first" or "hires", of one generation.

        The mode is "off" when ``passes`` leaves that pass out.
        """
        mode = self.mode if self.passes in (name, "both") else "off"
        ratios = self.ratios
        if name == "hires" and self.hires != "as first":
            ratios = self.hires_ratios
        return replace(self, mode=mode, ratios=ratios)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """The inverse of ``to_dict``; fields may be missing; numbers may come as text."""
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in data if name not in known]
        if unknown:
            raise CRDiffError(
                f"setting {unknown[0]!r} is not known: the settings are {', '.join(known)}"
            )
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` gives an equal Settings back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("ratios", "hires_ratios"):
            ratios = values[name]
            values[name] = None if ratios is None else ratios.as_dict()
        return values

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (2020-12) of ``to_dict``."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "CR-Diff settings",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                field.name: _field_schema(field.name, field.default) for field in fields(cls)
            },
        }


_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("off", "auto", "always"),
    "memory": ("auto", "recompute", "copy"),
    "amplification": AMPLIFICATIONS,
    "passes": ("first", "hires", "both"),
    "hires": ("as first", "stored", "set"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "k": (0.0, K_MAX),
    "start": (0.0, 1.0),
    "end": (0.0, 1.0),
    "native_area_tolerance": (0.0, 1.0),
    "sd_max_aspect": (1.0, 100.0),
    "sdxl_max_aspect": (1.0, 100.0),
    "max_log_area": (0.0, 100.0),
}


def _as_ratios(value: object, name: str) -> Ratios | None:
    """Ratios from themselves, text or a mapping; None stays. Raises CRDiffError."""
    if value is None or isinstance(value, Ratios):
        return value
    if isinstance(value, str):
        return Ratios.parse(value)
    if isinstance(value, Mapping):
        return Ratios.from_dict(value)
    raise CRDiffError(f"{name} are {value!r}: write down/mid/up such as 0.3/0.2/0.1")


def as_number(value: object, name: str) -> float:
    """A finite float from a number or numeric text (UIs and query strings send text).

    Raises CRDiffError that names the field; booleans are refused.
    """
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):  # int too large for a float
            number = math.nan
        if math.isfinite(number):
            return number
    raise CRDiffError(f"{name} is {value!r}: a finite number is needed")


def check_k(k: float) -> float:
    """``k`` as a float in [0, 3]. Raises CRDiffError."""
    return Settings(k=k).k


def _field_schema(name: str, default: object) -> dict[str, Any]:
    if name in _CHOICES:
        return {"enum": list(_CHOICES[name]), "default": default}
    if name in _RANGES:
        low, high = _RANGES[name]
        return {"type": "number", "minimum": low, "maximum": high, "default": default}
    if isinstance(default, bool):
        return {"type": "boolean", "default": default}
    ratio = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "required": list(GROUPS),
        "properties": dict.fromkeys(GROUPS, ratio),
        "default": default,
    }
