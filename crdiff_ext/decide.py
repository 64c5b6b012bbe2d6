"""Whether to act on an image, with which ratios, from where, and why: one pure function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import CRDiffError
from .families import Family
from .presets import Preset
from .settings import Ratios, Settings

_EPSILON = 1e-9  # so that limits such as 10 % include themselves in floating point


@dataclass(frozen=True)
class Decision:
    """What was decided.

    Attributes:
        act: whether anything is pruned.
        ratios: the ratios to prune with; None when ``act`` is False.
        k: the amplification, from the settings.
        preset: the stored entry in use, if it is one.
        exact: the stored entry is of this very size.
        sentence: for people, such as "1024x1024 is native: inactive".
        code: for programs. Acting: "set", "stored", "nearest". Not acting: "off", "native",
            "unknown-family", "no-stored", "other-side", "too-far", "zero-ratios", "zero-k",
            "unequal" (set by hand, and refused by ``Family.check``: an error of the input).
    """

    act: bool
    ratios: Ratios | None
    k: float
    preset: Preset | None
    exact: bool
    sentence: str
    code: str


def decide(
    family: Family,
    height: int,
    width: int,
    settings: Settings,
    presets: Iterable[Preset],
    checkpoint: str = "",
) -> Decision:
    """Act or not on an image of height x width pixels.

    "auto" acts on unseen sizes only, with ratios set by hand or stored ones; "always" acts on any
    size. Stored ratios are taken only from entries of the same family on the same side of the
    native area (an entry at a native size counts for both sides): the nearest by |ln area ratio|,
    then by |ln aspect ratio|, then one of this very checkpoint, whose hash is ``checkpoint`` (its
    start is enough; empty: not known); and not farther than ``settings.max_log_area``. Entries of
    other checkpoints don't count.
    """
    at = f"{height}x{width}"
    if settings.mode == "off":
        return _inactive(settings, "off", "CR-Diff is switched off")
    if settings.k == 0:
        return _inactive(settings, "zero-k", "k is 0: one dense pass, nothing changed")
    if settings.ratios is not None and settings.ratios.is_zero:
        sentence = "all ratios are 0: one dense pass, nothing changed"
        return _inactive(settings, "zero-ratios", sentence)
    if settings.mode == "auto":
        if family.native is None:
            return _inactive(settings, "unknown-family", _unknown(family))
        if is_native(family, height, width, settings):
            return _inactive(settings, "native", f"{at} is native: inactive")
    if settings.ratios is not None:
        try:
            family.check(settings.ratios)
        except CRDiffError as error:
            return _inactive(settings, "unequal", str(error))
        sentence = f"{family.label} {at}: {family.told(settings.ratios)} (set by hand)"
        return Decision(True, settings.ratios, settings.k, None, False, sentence, "set")
    stored = [preset for preset in presets if preset.is_for(family.name, checkpoint)]
    return _from_stored(family, (height, width), settings, stored)


def is_native(family: Family, height: int, width: int, settings: Settings) -> bool:
    """Whether the model was trained for this size: area and aspect ratio within the tolerances.

    False for a family whose native size is not known.
    """
    if family.native is None:
        return False
    relative = height * width / (family.native[0] * family.native[1])
    aspect = max(height, width) / min(height, width)
    limit = settings.sdxl_max_aspect if family.aspect == "sdxl" else settings.sd_max_aspect
    near = abs(relative - 1) <= settings.native_area_tolerance + _EPSILON
    return near and aspect <= limit + _EPSILON


def _from_stored(
    family: Family, size: tuple[int, int], settings: Settings, stored: Sequence[Preset]
) -> Decision:
    """The decision when only one of the ``stored`` entries for this model can say the ratios."""
    height, width = size
    label, at = family.label, f"{height}x{width}"
    if not stored or family.native is None:
        hint = f"{at}: no stored ratios for {label}: search or set them"
        return _inactive(settings, "no-stored", hint)
    native_area = family.native[0] * family.native[1]
    side = _side(height * width, native_area)
    candidates = [
        preset
        for preset in stored
        if _side(preset.height * preset.width, native_area) == side
        or is_native(family, preset.height, preset.width, settings)
    ]
    if not candidates:
        where = {-1: "below", 0: "at", 1: "above"}[side]
        native = f"{family.native[0]}x{family.native[1]}"
        where = f"{where} its native area ({native})"
        hint = f"{at}: no stored ratios for {label} {where}: search or set them"
        return _inactive(settings, "other-side", hint)
    nearest = min(candidates, key=lambda preset: _distance(preset, height, width))
    far = _distance(nearest, height, width)[0]
    stored_at = f"{nearest.height}x{nearest.width}"
    if far > settings.max_log_area + _EPSILON:
        hint = (
            f"no stored ratios for {label} near {at} (the nearest are for {stored_at}, "
            f"{far:.2f} away in log-area, {settings.max_log_area:g} allowed): search or set them"
        )
        return _inactive(settings, "too-far", hint)
    if nearest.ratios.is_zero:
        hint = f"{label} {at}: the stored ratios of {stored_at} are 0 ({nearest.source}): inactive"
        return _inactive(settings, "zero-ratios", hint)
    exact = (nearest.height, nearest.width) == size
    what = family.told(nearest.ratios)
    what = f"stored {what}" if exact else f"{what} stored for {stored_at}, the nearest size"
    if nearest.k != settings.k:
        what += f", found with k = {nearest.k:g} but used with k = {settings.k:g}"
    own = ", for this checkpoint" if nearest.checkpoint else ""
    sentence = f"{label} {at}: {what} ({nearest.source}{own})"
    code = "stored" if exact else "nearest"
    return Decision(True, nearest.ratios, settings.k, nearest, exact, sentence, code)


def _inactive(settings: Settings, code: str, sentence: str) -> Decision:
    return Decision(False, None, settings.k, None, False, sentence, code)


def _unknown(family: Family) -> str:
    return (
        f"the native size of {family.label} is not known, so Auto leaves it alone: act at every "
        "size, with ratios of your own, to use it all the same"
    )


def _side(area: int, native_area: int) -> int:
    """-1 below the native area, 0 exactly at it, 1 above."""
    return (area > native_area) - (area < native_area)


def _distance(
    preset: Preset, height: int, width: int
) -> tuple[float, float, bool, tuple[str, int, int, str]]:
    """Distance in log-area, in log-aspect, whether it is of any checkpoint, and the key.

    The key makes ties come out the same everywhere.
    """
    log_area = abs(math.log(preset.height * preset.width) - math.log(height * width))
    log_aspect = abs(math.log(preset.height / preset.width) - math.log(height / width))
    return round(log_area, 9), round(log_aspect, 9), not preset.checkpoint, preset.key
