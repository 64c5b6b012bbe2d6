"""What really ran, as keys of an image's infotext, and the arguments that make it run again.

Ratios are written as numbers even where a stored entry gave them, so that an image comes out the
same after the stored ones have changed. Nothing is written for an image in which nothing ran.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from .. import __version__
from ..amplify import EXACT
from ..decide import Decision
from ..errors import CRDiffError
from ..families import FAMILIES
from ..settings import K_DEFAULT, Ratios, Settings
from .arguments import DEFAULTS, NAMES, SET, STORED, settings_from
from .job import Job, Record

logger = logging.getLogger("crdiff")

VERSION = "CR-Diff"
MODE = "CR-Diff mode"
RATIOS = "CR-Diff ratios"
PRESET = "CR-Diff preset"
K = "CR-Diff k"
WINDOW = "CR-Diff window"
PASSES = "CR-Diff passes"
HIRES_RATIOS = "CR-Diff hires ratios"
HIRES_PRESET = "CR-Diff hires preset"
REFINER = "CR-Diff refiner"
RAN = "CR-Diff ran"
TOLERANCE = "CR-Diff native tolerance"
AMPLIFICATION = "CR-Diff amplification"
SCORE = "CR-Diff score"
ROUND = "CR-Diff round"
KEYS = (
    VERSION,
    MODE,
    RATIOS,
    PRESET,
    K,
    WINDOW,
    PASSES,
    HIRES_RATIOS,
    HIRES_PRESET,
    REFINER,
    RAN,
    TOLERANCE,
    AMPLIFICATION,
    SCORE,
    ROUND,
)
"""All keys ever written; the host quotes what has commas or colons (modules/infotext_utils.py)."""


MAX_TOLERANCE = 0.5
"""The largest tolerance of native size that the settings page offers."""


@dataclass(frozen=True)
class Reader:
    """Gives one argument's value for a pasted infotext, None to leave its component alone.

    Equal for both tabs, so that hosts can match the fields of "Send to img2img"
    (connect_paste_params_buttons in modules/infotext_utils.py). It never raises: hosts don't expect
    it, and the other fields would be lost.
    """

    name: str

    def __call__(self, params: Mapping[str, Any]) -> Any:
        """The value for the host's parsed infotext ``params``."""
        try:
            return values_in(params).get(self.name)
        except CRDiffError as error:
            if self.name == NAMES[0]:  # one line, not one for each argument
                logger.warning("the infotext of CR-Diff is not used: %s", error)
            return None


PASTE_FIELD_NAMES = [Reader(name) for name in NAMES]
"""For ``script.paste_field_names``: all values go along with an image that is sent to img2img."""


def fields(components: Mapping[str, Any]) -> list[tuple[Any, Reader]]:
    """``script.infotext_fields`` for the panel's components by argument name."""
    return [(components[name], Reader(name)) for name in NAMES if name in components]


def clear(params: MutableMapping[str, Any]) -> None:
    """Remove all keys of ours; an XYZ grid's cells share one dictionary (scripts/xyz_grid.py)."""
    for key in KEYS:
        params.pop(key, None)


def without(params: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``params`` without keys of ours."""
    return {key: value for key, value in params.items() if key not in KEYS}


def write(params: MutableMapping[str, Any], job: Job) -> None:
    """Put what really ran into the host's ``extra_generation_params``, instead of what was there.

    Ratios that differ before and after the refiner switch can't be asked for as numbers; then the
    settings are written as they were asked for, and what ran beside them.
    """
    clear(params)
    if not job.acted():
        return
    texts = _common(job)
    as_ran = {**texts, **_as_ran(job)}
    same = _runs_again(job, settings_from({**DEFAULTS, **values_in(as_ran)}))
    whole = not any(record.failed for record in job.records)
    params.update(as_ran if same and whole else {**texts, **_as_asked(job)})


def values_in(params: Mapping[str, Any]) -> dict[str, Any]:
    """Argument values from a parsed infotext; empty when CR-Diff did not run.

    ``memory`` is never among them: it doesn't change an image. Raises CRDiffError for a text that
    was not written here.
    """
    params = _whole_keys(params)
    if VERSION not in params:
        return {}
    values = {name: value for name, value in DEFAULTS.items() if name != "memory"}
    values["mode"] = params.get(MODE, "auto")
    values["k"] = _float(params.get(K, K_DEFAULT), K)
    values["start"], values["end"] = _window(params)
    values["amplification"] = params.get(AMPLIFICATION, EXACT)  # older ones have no such key
    values["passes"] = params.get(PASSES, "both")
    values["refiner"] = str(params.get(REFINER, "on")).strip().lower() != "off"
    for key, prefix in ((RATIOS, ""), (HIRES_RATIOS, "hires_")):
        if params.get(key) == STORED:
            values[f"{prefix}ratios"] = STORED
        elif key in params:
            ratios = Ratios.parse(str(params[key]))
            values[f"{prefix}ratios"] = SET
            values.update({f"{prefix}{group}": r for group, r in ratios.as_dict().items()})
    settings_from({**DEFAULTS, **values})  # checks the rest
    return values


def _whole_keys(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, where the host cut our keys at the hyphen (SD.Next's modules/infotext.py)."""
    cut = {key.removeprefix("CR-"): key for key in KEYS}
    if VERSION in params or VERSION.removeprefix("CR-") not in params:
        return params
    return {cut.get(key, key): value for key, value in params.items()}


def _common(job: Job) -> dict[str, str]:
    """The keys that don't depend on the ratios."""
    settings = job.settings
    texts = {VERSION: __version__}
    if settings.mode == "always":
        texts[MODE] = "always"
    if settings.k != K_DEFAULT:
        texts[K] = _number(settings.k)
    if settings.amplification != EXACT:
        texts[AMPLIFICATION] = settings.amplification
    if (settings.start, settings.end) != (0.0, 1.0):
        texts[WINDOW] = f"{_number(settings.start)}-{_number(settings.end)}"
    if settings.mode == "auto" and any(map(_may_be_native, job.acted())):
        texts[TOLERANCE] = _number(settings.native_area_tolerance)  # an option's infotext key
    return texts


def _may_be_native(record: Record) -> bool:
    """Whether it acted only because of the tolerance of native sizes in force."""
    if record.native is None:
        return False
    relative = record.height * record.width / (record.native[0] * record.native[1])
    return abs(relative - 1) <= MAX_TOLERANCE


def _as_ran(job: Job) -> dict[str, str]:
    """Ratios, passes and refiner by what was pruned."""
    acted = job.acted()
    first, hires = ([record for record in acted if record.part == p] for p in ("first", "hires"))
    texts: dict[str, str] = {}
    if first:
        texts[RATIOS] = _ratios(first[0])
        texts.update(_preset(PRESET, first[0].decision))
    elif job.settings.ratios is not None and all(r.part == "hires" for r in job.records):
        # the hires pass alone was made, of an image drawn before: it goes by the first's sliders
        texts[RATIOS] = _slashed(job.settings.ratios)
    if hires:
        if _ratios(hires[0]) != texts.get(RATIOS):
            texts[HIRES_RATIOS] = _ratios(hires[0])
        texts.update(_preset(HIRES_PRESET, hires[0].decision))
    if len({record.part for record in job.records}) == 2 and not (first and hires):
        texts[PASSES] = "first" if first else "hires"
    elif job.settings.passes != "both":
        texts[PASSES] = job.settings.passes
    if any(r.refiner for r in job.records) and not any(r.refiner for r in acted):
        texts[REFINER] = "off"
    return texts


def _as_asked(job: Job) -> dict[str, str]:
    """Ratios, passes and refiner as in the settings, and what ran for people to read."""
    settings = job.settings
    texts: dict[str, str] = {}
    if settings.ratios is not None:
        texts[RATIOS] = _slashed(settings.ratios)
    if settings.hires == STORED:
        texts[HIRES_RATIOS] = STORED
    elif settings.hires_ratios is not None:
        texts[HIRES_RATIOS] = _slashed(settings.hires_ratios)
    if settings.passes != "both":
        texts[PASSES] = settings.passes
    if not settings.refiner:
        texts[REFINER] = "off"
    ran = [f"{r.part}{' refiner' if r.refiner else ''} {_ratios(r)}" for r in job.acted()]
    texts[RAN] = "; ".join(dict.fromkeys(ran))
    if any(record.failed for record in job.records):
        texts[RAN] += " (failed midway, finished densely)"
    return texts


def _runs_again(job: Job, settings: Settings) -> bool:
    """Whether ``settings`` would prune in the same stretches, with the same ratios."""
    for record in job.records:
        chosen = settings.for_pass(record.part)
        ruled_out = (
            chosen.mode == "off"
            or (record.refiner and not chosen.refiner)
            or (chosen.mode == "auto" and record.decision.code in ("native", "unknown-family"))
            or record.decision.code == "refused"
        )
        ratios = None if ruled_out else chosen.ratios
        if record.pruned_passes:
            if ratios != record.decision.ratios:
                return False
        elif ratios not in (None, record.decision.ratios):
            return False  # it decided otherwise; the same decision came to nothing and will again
    return True


def _ratios(record: Record) -> str:
    assert record.decision.ratios is not None  # it acted
    return _slashed(record.decision.ratios)


def _slashed(ratios: Ratios) -> str:
    return "/".join(_number(ratio) for ratio in ratios.as_dict().values())


def _preset(key: str, decision: Decision) -> dict[str, str]:
    """Such as "SDXL 512x512 (paper, Figure 7a)", for people."""
    preset = decision.preset
    if preset is None:
        return {}
    label = FAMILIES[preset.family].label
    return {key: f"{label} {preset.height}x{preset.width} ({preset.source})"}


def _number(number: float) -> str:
    """All its digits, without an exponent: "1e-05" would hide a window's dash."""
    text = format(Decimal(repr(number + 0.0)), "f")  # + 0.0: no minus before a zero
    return text.removesuffix(".0")


def _window(params: Mapping[str, Any]) -> tuple[float, float]:
    if WINDOW not in params:
        return 0.0, 1.0
    match = re.fullmatch(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", str(params[WINDOW]))
    if match is None:
        raise CRDiffError(f"{WINDOW} is {params[WINDOW]!r}: two numbers such as 0-0.5 are needed")
    return _float(match[1], WINDOW), _float(match[2], WINDOW)


def _float(value: object, key: str) -> float:
    """A number as a float. Raises CRDiffError that names the key."""
    try:
        return float(str(value))
    except ValueError:
        raise CRDiffError(f"{key} is {value!r}: a number is needed") from None
