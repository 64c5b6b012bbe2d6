"""The script's arguments: their order (a public contract of the API), and Settings from them.

Hosts pass arguments by position and check nothing: a ratio may come as text, and through the API
one dictionary may stand in the first place, holding any subset of the names below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..amplify import EXACT
from ..errors import CRDiffError
from ..settings import AMPLIFICATIONS, GROUPS, K_DEFAULT, Ratios, Settings, as_number

STORED, SET = "stored", "set"
SAME = "as first"


@dataclass(frozen=True)
class Argument:
    """One argument: its name in a dictionary, its default, its label in the panel (both final)."""

    name: str
    default: Any
    label: str
    choices: tuple[str, ...] = ()


class Limits(TypedDict, total=False):
    """Fields of Settings that the settings page decides."""

    native_area_tolerance: float


# Append only: position is how old API clients and saved UI defaults find a value.
ARGUMENTS = (
    Argument("enabled", True, "Enable CR-Diff"),
    Argument("mode", "auto", "When to act", ("off", "auto", "always")),
    Argument("ratios", STORED, "Ratios", (STORED, SET)),
    Argument("down", 0.3, "Down blocks"),
    Argument("mid", 0.3, "Mid block"),
    Argument("up", 0.3, "Up blocks"),
    Argument("k", K_DEFAULT, "Amplification k"),
    Argument("start", 0.0, "Start (fraction of steps)"),
    Argument("end", 1.0, "End (fraction of steps)"),
    Argument("memory", "auto", "Memory", ("auto", "recompute", "copy")),
    Argument("passes", "both", "Passes", ("first", "hires", "both")),
    Argument("hires_ratios", SAME, "Hires pass ratios", (SAME, STORED, SET)),
    Argument("hires_down", 0.3, "Hires down blocks"),
    Argument("hires_mid", 0.3, "Hires mid block"),
    Argument("hires_up", 0.3, "Hires up blocks"),
    Argument("refiner", True, "Act after the refiner switch too"),
    Argument("amplification", EXACT, "Amplification", AMPLIFICATIONS),
)
NAMES = tuple(argument.name for argument in ARGUMENTS)
DEFAULTS = {argument.name: argument.default for argument in ARGUMENTS}


def named(args: Sequence[Any]) -> dict[str, Any]:
    """Values by name from the host's positional arguments, not checked yet.

    Missing ones take their defaults. A dictionary in the first place counts before the rest, which
    the host has filled with the panel's values or, through the API, with an infotext's; in it a
    slider without its source means "set", or its number would silently not count.
    Raises CRDiffError for names that are not known and for too many arguments.
    """
    if len(args) > len(NAMES):
        raise CRDiffError(f"{len(args)} arguments are too many: there are {len(NAMES)}")
    values = {**DEFAULTS, **dict(zip(NAMES, args, strict=False))}
    if args and isinstance(args[0], Mapping):
        given = dict(args[0])
        unknown = [str(name) for name in given if name not in DEFAULTS]
        if unknown:
            raise CRDiffError(
                f"argument {unknown[0]!r} is not known: the arguments are {', '.join(NAMES)}"
            )
        for prefix in ("", "hires_"):
            if any(f"{prefix}{group}" in given for group in GROUPS):
                given.setdefault(f"{prefix}ratios", SET)
        values.update({"enabled": DEFAULTS["enabled"], **given})
    return values


def settings_from(values: Mapping[str, Any], limits: Limits | None = None) -> Settings:
    """Checked Settings from values by name; ``limits`` are the settings page's tolerances.

    Sliders count only where their source is "set". Raises CRDiffError that names the field.
    """
    chosen = {name: _choice(name, values[name]) for name in ("mode", "ratios", "hires_ratios")}
    tolerances: Limits = {} if limits is None else limits
    mode = chosen["mode"] if as_flag("enabled", values["enabled"]) else "off"
    return Settings(
        mode=mode,
        ratios=_sliders(values, "") if chosen["ratios"] == SET else None,
        k=as_number(values["k"], "k"),
        start=values["start"],
        end=values["end"],
        memory=_choice("memory", values["memory"]),
        amplification=_choice("amplification", values["amplification"]),
        passes=_choice("passes", values["passes"]),
        hires=chosen["hires_ratios"],
        hires_ratios=_sliders(values, "hires_") if chosen["hires_ratios"] == SET else None,
        refiner=as_flag("refiner", values["refiner"]),
        **tolerances,
    )


def values_from(settings: Settings) -> dict[str, Any]:
    """The inverse of ``settings_from``: values by name; sliders not in use stay default."""
    values = {**DEFAULTS, "enabled": settings.mode != "off"}
    for name in ("k", "start", "end", "memory", "amplification", "passes", "refiner"):
        values[name] = getattr(settings, name)
    values["mode"] = settings.mode
    values["hires_ratios"] = settings.hires
    for ratios, prefix in ((settings.ratios, ""), (settings.hires_ratios, "hires_")):
        if ratios is not None:
            values[f"{prefix}ratios"] = SET
            values.update({f"{prefix}{group}": r for group, r in ratios.as_dict().items()})
    return values


def _sliders(values: Mapping[str, Any], prefix: str) -> Ratios:
    ratios = []
    for name in (f"{prefix}{group}" for group in GROUPS):
        number = as_number(values[name], name)
        if not 0 <= number < 1:
            raise CRDiffError(f"{name} is {number:g}: it must be at least 0 and below 1")
        ratios.append(number)
    return Ratios(*ratios)


def _choice(name: str, value: object) -> str:
    choices = next(argument.choices for argument in ARGUMENTS if argument.name == name)
    text = str(value).strip().lower()
    if text not in choices:
        raise CRDiffError(f"{name} is {value!r}: use one of {', '.join(choices)}")
    return text


def as_flag(name: str, value: object) -> bool:
    """A switch from a boolean or its text. Raises CRDiffError that names the argument."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0", "yes", "on"):
        return True
    if text in ("false", "0", "0.0", "no", "off"):
        return False
    raise CRDiffError(f"{name} is {value!r}: use true or false")
