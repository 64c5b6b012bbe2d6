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
REWARD = "crdiff_reward"
REWARD_WEIGHTS = "crdiff_reward_weights"
REWARD_CLIP = "crdiff_reward_clip"
REWARD_DEVICE = "crdiff_reward_device"
REWARD_TIMEOUT = "crdiff_reward_timeout"
HARNESS_PYTHON = "crdiff_harness_python"
TIMEOUTS = (1, 3600)
"""Seconds, fewest and most."""

_CHOICES = {
    MODE: ("auto", "off", "always"),
    MEMORY: ("auto", "recompute", "copy"),
    NOTICES: ("normal", "quiet", "verbose"),
    AMPLIFICATION: AMPLIFICATIONS,
    REWARD: ("auto", "image-reward", "clip", "embedded", "hand"),
    REWARD_DEVICE: ("cpu", "auto"),
}
DEFAULTS: dict[str, Any] = {
    MODE: "auto",
    TOLERANCE: Settings.native_area_tolerance,
    INNER: False,
    MEMORY: "auto",
    NOTICES: "normal",
    AMPLIFICATION: Settings.amplification,
    REWARD: "auto",
    REWARD_WEIGHTS: "",
    REWARD_CLIP: "",
    REWARD_DEVICE: "cpu",
    REWARD_TIMEOUT: 60,
    HARNESS_PYTHON: "",
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
    _add_reward()


def _add_reward() -> None:
    """What judges the candidates of "Refine for this prompt"."""
    _add(REWARD, "What judges when refining", gr.Radio, _choices(REWARD)).info(
        "auto: ImageReward where its weights are found, else the open_clip model named below, else "
        "you pick by hand; embedded: for the embedded model only"
    )
    _add(REWARD_WEIGHTS, "Folder with the weights of rewards", gr.Textbox, {}).info(
        "nothing is ever downloaded; docs/webui.md names the files"
    )
    _add(REWARD_CLIP, "open_clip model that judges", gr.Textbox, {}).info(
        "such as ViT-L-14-quickgelu; its weights go into clip/NAME in that folder"
    )
    _add(REWARD_DEVICE, "Where the reward runs", gr.Radio, _choices(REWARD_DEVICE)).info(
        "cpu: takes no memory from the model that draws; auto: on the GPU if there is one"
    )
    seconds = {"minimum": TIMEOUTS[0], "maximum": TIMEOUTS[1], "step": 1}
    _add(REWARD_TIMEOUT, "Seconds that the reward may take an image", gr.Slider, seconds).info(
        "starting may take five times as long; then it is stopped"
    )
    _add(HARNESS_PYTHON, "Python of the harness' environment", gr.Textbox, {}).info(
        "empty: the one that `make env` makes in the extension's folder, which is also used while "
        "the WebUI can be reached from elsewhere without --enable-insecure-extension-access"
    )
    for key in (REWARD_WEIGHTS, HARNESS_PYTHON):  # paths of this machine: not through the API
        shared.opts.data_labels[key].restrict_api = True


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


def reward() -> str:
    """What judges when refining: "auto", "image-reward", "clip", "embedded" or "hand"."""
    return _choice(REWARD)


def reward_weights() -> str:
    """The folder with the weights of rewards, or empty."""
    return _text(REWARD_WEIGHTS)


def reward_clip() -> str:
    """The open_clip model that judges, or empty."""
    return _text(REWARD_CLIP)


def reward_device() -> str:
    """Either "cpu" or "auto"."""
    return _choice(REWARD_DEVICE)


def reward_timeout() -> float:
    """Seconds that the reward may take an image."""
    value, (least, most) = _read(REWARD_TIMEOUT), TIMEOUTS
    if type(value) in (int, float) and least <= value <= most:
        return float(value)
    return float(_default(REWARD_TIMEOUT, value))


def harness_python() -> str:
    """The interpreter of the harness' environment, or empty for the extension's own.

    Whoever may change the settings from elsewhere must not choose a program to run: hosts close
    their extensions' page by the same flag then.
    """
    if getattr(shared.cmd_opts, "disable_extension_access", False):
        return ""
    return _text(HARNESS_PYTHON)


def current() -> dict[str, Any]:
    """Those that are no paths by key, as they are used."""
    return {
        MODE: default_mode(),
        TOLERANCE: limits()["native_area_tolerance"],
        INNER: inner_passes(),
        MEMORY: memory(),
        NOTICES: notice_level(),
        AMPLIFICATION: default_amplification(),
        REWARD: reward(),
        REWARD_CLIP: reward_clip(),
        REWARD_DEVICE: reward_device(),
        REWARD_TIMEOUT: reward_timeout(),
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
    return str(_default(key, value))


def _text(key: str) -> str:
    """One line of text, without blanks and quotation marks around it."""
    value = _read(key)
    if isinstance(value, str) and "\0" not in value:
        return value.strip().strip("\"'").strip()
    return str(_default(key, value))


def _default(key: str, value: Any) -> Any:
    """What counts instead of a value that is not allowed."""
    logger.warning("the setting %s is %r: %r is used", key, value, DEFAULTS[key])
    return DEFAULTS[key]
