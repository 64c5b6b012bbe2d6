"""Axes for the host's X/Y/Z plot: each lays argument values over the panel's for one cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from modules import script_callbacks, scripts

from ..errors import CRDiffError
from ..presets import Preset
from ..settings import AMPLIFICATIONS, GROUPS
from .arguments import DEFAULTS, SET, STORED, settings_from

if TYPE_CHECKING:
    from .library import Library

OVERRIDES = "crdiff_overrides"
"""The attribute of ``p`` that session.py lays over the arguments."""

PREFIX = "[CR-Diff] "
NONE = "none"

Values = Callable[[Any], dict[str, Any]]
"""Argument values by name, from one cell's value. Raises CRDiffError."""


def register(library: Library) -> None:
    """Add the axes now and again before each UI is built; harmless to repeat.

    Both are needed: the plot's script may be loaded after this one, and with --nowebui the host
    calls ``before_ui`` after the scripts' UI was built (modules/api/api.py).
    """

    def add_all() -> None:
        for module in grids():
            add(module, library)

    add_all()
    script_callbacks.on_before_ui(add_all)


def grids() -> Iterator[Any]:
    """The loaded modules of the X/Y/Z plot; their name depends on modules/script_loading.py."""
    for data in scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py" and hasattr(data.module, "axis_options"):
            yield data.module


def add(module: Any, library: Library) -> None:
    """Append our axes to ``module.axis_options``, those that are not there yet."""
    there = {option.label for option in module.axis_options}
    for label, kind, values, choices in _axes(library):
        if PREFIX + label not in there:
            option = module.AxisOption(
                PREFIX + label, kind, _apply(values), confirm=_confirm(values), choices=choices
            )
            module.axis_options.append(option)


def _axes(library: Library) -> Iterator[tuple[str, Any, Values, Callable[[], list[str]] | None]]:
    """Label, type of a value, what it sets, and choices where there are some."""
    yield "Enabled", str, lambda x: {"enabled": x}, lambda: ["True", "False"]
    yield "k", float, lambda x: {"k": x}, None
    for group in GROUPS:
        yield group.capitalize(), float, _slider(group), None
    yield "Ratio (all blocks)", float, lambda x: {"ratios": SET, **dict.fromkeys(GROUPS, x)}, None
    yield "Preset", str, lambda x: _preset(x, library), lambda: _names(library)
    yield "Window start", float, lambda x: {"start": x}, None
    yield "Window end", float, lambda x: {"end": x}, None
    yield "Amplification", str, lambda x: {"amplification": x}, lambda: list(AMPLIFICATIONS)


def _slider(group: str) -> Values:
    return lambda x: {"ratios": SET, group: x}


def _apply(values: Values) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, x: Any, xs: Any) -> None:
        # a new dict each time: the grid copies p shallowly for each cell
        setattr(p, OVERRIDES, {**getattr(p, OVERRIDES, {}), **values(x)})

    return apply


def _confirm(values: Values) -> Callable[[Any, Sequence[Any]], None]:
    """Checks all values before the first cell is drawn; HTTP 422 through the API."""

    def confirm(p: Any, xs: Sequence[Any]) -> None:
        try:
            for x in xs:
                _check(values(x))
        except CRDiffError as error:
            if getattr(p, "is_api", False):
                raise HTTPException(422, f"X/Y/Z plot: CR-Diff: {error}") from error
            raise

    return confirm


def _check(values: dict[str, Any]) -> None:
    """Raises CRDiffError unless the values are allowed, whatever another axis may add."""
    # one end of the window alone: any other end will do
    apart = {"end": 1.0} if "start" in values else {"start": 0.0} if "end" in values else {}
    settings_from({**DEFAULTS, **values, **apart})


def _preset(text: str, library: Library) -> dict[str, Any]:
    """Values for a stored entry by name, such as "sdxl 512x512", for "stored" or "none"."""
    name = " ".join(text.split()).lower()
    if name == NONE:
        return {"enabled": False}
    if name == STORED:
        return {"enabled": True, "ratios": STORED}
    for preset in library.presets():
        if _name(preset).lower() == name:
            return {"enabled": True, "ratios": SET, **preset.ratios.as_dict()}
    raise CRDiffError(f"preset {text!r} is not known: use one of {', '.join(_names(library))}")


def _names(library: Library) -> list[str]:
    return [STORED, NONE, *map(_name, library.presets())]


def _name(preset: Preset) -> str:
    name = f"{preset.family} {preset.height}x{preset.width}"
    return f"{name} {preset.checkpoint}" if preset.checkpoint else name
