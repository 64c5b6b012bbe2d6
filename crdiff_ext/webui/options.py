"""CR-Diff's section of the host's settings page, and what it says.

The readers are safe before the options are registered, and with a value that is not allowed in the
host's config.json: then the default counts.
"""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from modules import script_callbacks, shared

from ..errors import CRDiffError
from ..settings import AMPLIFICATIONS, Settings
from . import costs, infotext
from .arguments import Limits

logger = logging.getLogger("crdiff")

SECTION = ("crdiff", "CR-Diff")
MODE = "crdiff_default_mode"
TOLERANCE = "crdiff_native_area_tolerance"
INNER = "crdiff_inner_passes"
MEMORY = "crdiff_memory"
NOTICES = "crdiff_notice_level"
AMPLIFICATION = "crdiff_default_amplification"

_CHOICES = {
    MODE: ("auto", "off", "always"),
    MEMORY: ("auto", "recompute", "copy"),
    NOTICES: ("normal", "quiet", "verbose"),
    AMPLIFICATION: AMPLIFICATIONS,
}
DEFAULTS: dict[str, Any] = {
    MODE: "auto",
    TOLERANCE: Settings.native_area_tolerance,
    INNER: False,
    MEMORY: "auto",
    NOTICES: "normal",
    AMPLIFICATION: Settings.amplification,
}


def register() -> None:
    """Have the host add the section when it makes its settings page; harmless to repeat."""
    script_callbacks.on_ui_settings(add)


def add() -> None:
    """Add the options to ``shared.opts`` (modules/options.py)."""
    tolerance = {"minimum": 0.0, "maximum": infotext.MAX_TOLERANCE, "step": 0.01}
    _add(MODE, "When to act, when the page opens", gr.Radio, _choices(MODE)).needs_reload_ui()
    _add(
        TOLERANCE,
        "How far an image's area may be from the model's own and still count as native",
        gr.Slider,
        tolerance,
        infotext=infotext.TOLERANCE,
    ).info("0.1 is 10 %; in Auto nothing is done to native sizes")
    _add(INNER, "Act inside ADetailer's inner passes too", gr.Checkbox, {}).info(
        'ADetailer must let it: add crdiff to its setting "Script names to apply"'
    )
    _add(MEMORY, "Memory mode where the panel says auto", gr.Radio, _choices(MEMORY)).info(
        "recompute: no extra memory; copy: faster, and holds a second copy of the pruned layers"
    )
    _add(NOTICES, "Notices", gr.Radio, _choices(NOTICES)).info(
        "normal: in the page and in the log; quiet: in the log only; verbose: also why nothing "
        "was done to an image"
    )
    _add(
        AMPLIFICATION, "Amplification, when the page opens", gr.Radio, _choices(AMPLIFICATION)
    ).info(costs.all_choices()).needs_reload_ui()


def default_mode() -> str:
    """The mode that the panel opens with."""
    return _choice(MODE)


def default_amplification() -> str:
    """The way of amplification that the panel opens with."""
    return _choice(AMPLIFICATION)


def limits() -> Limits:
    """The fields of Settings that the settings page decides."""
    value = _read(TOLERANCE)
    try:
        return {
            "native_area_tolerance": Settings(native_area_tolerance=value).native_area_tolerance
        }
    except CRDiffError as error:
        logger.warning("the setting %s is not used: %s", TOLERANCE, error)
        return {"native_area_tolerance": Settings.native_area_tolerance}


def inner_passes() -> bool:
    """Whether to act inside ADetailer's inner passes."""
    return _read(INNER) is True


def memory() -> str:
    """The memory mode for arguments that say auto."""
    return _choice(MEMORY)


def notice_level() -> str:
    """Either "normal", "quiet" or "verbose"."""
    return _choice(NOTICES)


def current() -> dict[str, Any]:
    """All of them by key, as they are used."""
    return {
        MODE: default_mode(),
        TOLERANCE: limits()["native_area_tolerance"],
        INNER: inner_passes(),
        MEMORY: memory(),
        NOTICES: notice_level(),
        AMPLIFICATION: default_amplification(),
    }


def _add(key: str, label: str, component: Any, args: dict[str, Any], **more: Any) -> Any:
    info = shared.OptionInfo(DEFAULTS[key], label, component, args, section=SECTION, **more)
    shared.opts.add_option(key, info)
    return info


def _choices(key: str) -> dict[str, Any]:
    return {"choices": list(_CHOICES[key])}


def _read(key: str) -> Any:
    return getattr(shared.opts, key, DEFAULTS[key])


def _choice(key: str) -> str:
    value = _read(key)
    if value in _CHOICES[key]:
        return str(value)
    logger.warning("the setting %s is %r: %s is used", key, value, DEFAULTS[key])
    return str(DEFAULTS[key])
