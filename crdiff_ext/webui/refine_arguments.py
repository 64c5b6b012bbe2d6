"""The arguments of the script "refine for this prompt": their order (a public contract), checked.

As for the panel's own arguments, a dictionary may stand in the first place, holding any subset of
the names. It then counts alone: a host shifts what follows when fewer arguments than there are come
through the API (init_script_args in modules/api/api.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CRDiffError
from ..settings import as_number
from .arguments import Argument, as_flag

TITLE = "CR-Diff: refine for this prompt"
"""The script's title, in the list of scripts and as ``script_name`` of the API."""

BY_SETTINGS, HAND = "settings page", "hand"
FIRST, SECOND = "first", "second"
MAX_BUDGET, MAX_SEEDS = 400, 16
ANY = -1
"""As a round: a choice is of whichever pair waits."""
_MAX_NAME = 64

# Append only, as in arguments.py.
ARGUMENTS = (
    Argument("budget", 24, "Images to draw in all"),
    Argument("seeds", 2, "Seeds that judge each candidate"),
    Argument("search_k", True, "Search k too"),
    Argument("judge", BY_SETTINGS, "Who judges", (BY_SETTINGS, HAND)),
    Argument("session", "", "Session (for picking by hand)"),
    Argument("choice", "", "Choice (for picking by hand)", ("", FIRST, SECOND)),
    Argument("round", ANY, "Round of the challenger (-1: whichever waits)"),
)
NAMES = tuple(argument.name for argument in ARGUMENTS)
DEFAULTS = {argument.name: argument.default for argument in ARGUMENTS}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        budget: most images in all; seeds: images that judge one candidate.
        search_k: k is searched beside the ratios.
        hand: a person judges, whatever the settings page says.
        session: names the search; needed to go on with one that is picked by hand.
        choice: "first" (the favourite) or "second" (the challenger) is better; "" begins.
        round: number of the challenger that the choice is about; ANY for whichever waits.
    """

    budget: int
    seeds: int
    search_k: bool
    hand: bool
    session: str
    choice: str
    round: int = ANY


def request(args: Sequence[Any]) -> Request:
    """Checked arguments. Raises CRDiffError that names the argument."""
    values = dict(DEFAULTS)
    if args and isinstance(args[0], Mapping):
        unknown = [str(name) for name in args[0] if name not in DEFAULTS]
        if unknown:
            raise CRDiffError(
                f"argument {unknown[0]!r} is not known: the arguments are {', '.join(NAMES)}"
            )
        values.update(args[0])
    else:
        values.update(zip(NAMES, args, strict=False))
    seeds = _whole("seeds", values["seeds"], 1, MAX_SEEDS)
    budget = _whole("budget", values["budget"], 1, MAX_BUDGET)
    if budget < 3 * seeds:
        raise CRDiffError(
            f"budget is {budget}: with {seeds} seeds at least {3 * seeds} images are needed, for "
            "dense, the stored ratios and one candidate"
        )
    return Request(
        budget,
        seeds,
        as_flag("search_k", values["search_k"]),
        _choice("judge", values["judge"], (BY_SETTINGS, HAND)) == HAND,
        _name(values["session"]),
        _choice("choice", values["choice"], ("", FIRST, SECOND)),
        _whole("round", values["round"], ANY, MAX_BUDGET),
    )


def _whole(name: str, value: object, least: int, most: int) -> int:
    number = as_number(value, name)
    if number != int(number) or not least <= number <= most:
        raise CRDiffError(f"{name} is {value!r}: a whole number from {least} to {most} is needed")
    return int(number)


def _choice(name: str, value: object, choices: Sequence[str]) -> str:
    text = "" if value is None else str(value).strip().lower()
    if text not in choices:
        known = ", ".join(choice or "nothing" for choice in choices)
        raise CRDiffError(f"{name} is {value!r}: use one of {known}")
    return text


def _name(value: object) -> str:
    text = "" if value is None else str(value).strip()
    if len(text) > _MAX_NAME:
        raise CRDiffError(f"session is longer than {_MAX_NAME} characters: use a shorter name")
    return text
