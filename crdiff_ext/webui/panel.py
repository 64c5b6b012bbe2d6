"""The panel in txt2img and img2img, and the page's events that it follows.

Runs with gradio 3.41.2 and 4.40.0. Its values reach a generation by position (``arguments.py``);
nothing of a generation is kept here. What the line says is in ``line.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr
from gradio.context import Context
from modules import ui_components

from ..settings import K_MAX
from . import costs, editor, infotext, line, options, refine_panel
from .arguments import ARGUMENTS, NAMES
from .hosts import Adapter
from .library import Library

try:
    from modules import generation_parameters_copypaste as copypaste

    UPDATES = hasattr(copypaste, "should_skip")  # asked about each key of a bare value
except ImportError:
    UPDATES = False

logger = logging.getLogger("crdiff")

TITLE = "CR-Diff"
RATIO = {"minimum": 0.0, "maximum": 0.95, "step": 0.001}
FRACTION = {"minimum": 0.0, "maximum": 1.0, "step": 0.01}
SHORT_LABEL, LONG_LABEL = 120, 215
"""Least width of a slider, pixels: three in a row of the host's narrow column; and one that keeps
the number in its block, since gradio 4 does not break the word "Amplification"."""
QUIET = {"queue": False, "show_progress": "hidden", "api_name": False}
"""For events: never behind a running generation, no flicker, not in the API's list."""
UNSAID = ("memory", "refiner")
"""Arguments that the line doesn't depend on."""

_ARGUMENTS = {argument.name: argument for argument in ARGUMENTS}
# Components of the host's page by elem_id (modules/ui.py), and what the line calls them.
_SIZE = {"{tab}_width": "width", "{tab}_height": "height"}
_HIRES = {
    "txt2img_hr-checkbox": "hires",
    "txt2img_hr_scale": "scale",
    "txt2img_hr_resize_x": "resize_x",
    "txt2img_hr_resize_y": "resize_y",
}
# The last one of a tab that the line needs (modules/ui_common.py, create_output_panel): the user
# may have put the sections above it in any order (the option ui_reorder_list).
_LAST = "generation_info_{tab}"


@dataclass
class Page:
    """One tab's components: the host's that were seen so far, and the panel's once it is built."""

    tab: str
    host: dict[str, Any] = field(default_factory=dict)
    panel: dict[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    library: Library | None = None
    editor: editor.Editor | None = None
    refine: refine_panel.RefinePanel | None = None

    def name(self, elem_id: str | None) -> str | None:
        """What the line calls the host's component ``elem_id``; None if it is of no interest."""
        wanted = {key.format(tab=self.tab): name for key, name in _SIZE.items()}
        if self.tab == "txt2img":
            wanted |= _HIRES
        return wanted.get(elem_id or "")


def build(script: Any, is_img2img: bool, adapter: Adapter, library: Library) -> list[Any]:
    """Make the panel inside the host's page; returns its components in argument order."""
    page = _page(script)
    page.adapter, page.library = adapter, library
    accordion = ui_components.InputAccordion(
        value=True, label=TITLE, elem_id=script.elem_id("enabled")
    )
    _closed_but_enabled(accordion)
    parts: dict[str, Any] = {"enabled": accordion}
    with accordion:
        with accordion.extra():
            page.panel["head"] = gr.HTML(elem_id=script.elem_id("head"))
        _main_controls(script, parts)
        with gr.Row(elem_id=script.elem_id("line_row")):
            with gr.Column(scale=9, min_width=200):
                page.panel["line"] = gr.HTML(elem_id=script.elem_id("line"))
            page.panel["refresh"] = ui_components.ToolButton(
                value="\N{CLOCKWISE OPEN CIRCLE ARROW}",
                elem_id=script.elem_id("refresh"),
                tooltip="Say again what will happen, after another model was loaded",
            )
        with _sub("Hires pass, refiner, memory", script.elem_id("more")):
            _more_controls(script, parts)
        with _sub("Refine for this prompt", script.elem_id("refine")):
            page.refine = refine_panel.build(script)
        with _sub("Stored ratios", script.elem_id("stored")):
            page.editor = editor.build(script, library)
    page.panel |= parts
    script.infotext_fields, script.paste_field_names = _pasted(parts)
    return [parts[name] for name in NAMES]


@dataclass(frozen=True)
class Updating:
    """A reader for a host that takes bare values only for keys that are text (SD.Next)."""

    reader: infotext.Reader

    def __call__(self, params: Mapping[str, Any]) -> Any:
        """The component's update; None to leave it alone."""
        value = self.reader(params)
        return None if value is None else gr.update(value=value)


def _pasted(parts: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """``infotext_fields`` and ``paste_field_names`` of a script."""
    fields = infotext.fields(parts)
    if not UPDATES:
        return fields, infotext.PASTE_FIELD_NAMES
    names = [Updating(reader) for reader in infotext.PASTE_FIELD_NAMES]
    return [(component, Updating(reader)) for component, reader in fields], names


def saw(script: Any, component: Any, elem_id: str | None) -> None:
    """For each component of the page as it is made: take those of interest, at last bind events."""
    page = _page(script)
    if (name := page.name(elem_id)) is not None:
        page.host[name] = component
    elif elem_id == _LAST.format(tab=page.tab) and page.panel:
        _bind(page, component)


def _page(script: Any) -> Page:
    """The page that goes with a script object: hosts make one for each tab and each UI reload."""
    page: Page | None = getattr(script, "crdiff_page", None)
    if page is None:
        page = script.crdiff_page = Page("img2img" if script.is_img2img else "txt2img")
    return page


def _closed_but_enabled(accordion: Any) -> None:
    """Make the host's switch start closed and on: it takes open and on for the same thing.

    modules/ui_components.py makes both from one value; modules/ui_loadsave.py (Forge) saves both
    under one key; javascript/inputAccordion.js ties the tick to being open, which
    javascript/crdiff.js of this extension unties.
    """
    accordion.accordion.open = False
    accordion.accordion.do_not_save_to_config = True
    accordion.label = _ARGUMENTS["enabled"].label


def _sub(label: str, elem_id: str) -> Any:
    accordion = gr.Accordion(label=label, open=False, elem_id=elem_id)
    accordion.do_not_save_to_config = True
    return accordion


def _main_controls(script: Any, parts: dict[str, Any]) -> None:
    with gr.Row():
        parts["mode"] = _radio(
            script,
            "mode",
            value=options.default_mode(),
            info="auto: at sizes that the model was not trained for; always: at its own size too",
        )
        # What a host saves of the page would win over the settings page for good
        # (modules/ui_loadsave.py).
        parts["mode"].do_not_save_to_config = True
        parts["ratios"] = _radio(
            script, "ratios", info="stored: by model and size; set: the three sliders"
        )
    with gr.Row():
        for group in ("down", "mid", "up"):
            parts[group] = _slider(script, group, RATIO)
    with gr.Row():
        scale = {"minimum": 0.0, "maximum": K_MAX, "step": 0.05}
        parts["k"] = _slider(script, "k", scale, LONG_LABEL)
        parts["start"] = _slider(script, "start", FRACTION, LONG_LABEL)
        parts["end"] = _slider(script, "end", FRACTION, LONG_LABEL)
    parts["amplification"] = _radio(
        script,
        "amplification",
        value=options.default_amplification(),
        info=costs.all_choices(),
    )
    parts["amplification"].do_not_save_to_config = True  # as the mode


def _more_controls(script: Any, parts: dict[str, Any]) -> None:
    with gr.Row():
        parts["passes"] = _radio(script, "passes")
        parts["hires_ratios"] = _radio(script, "hires_ratios")
    with gr.Row():
        for group in ("down", "mid", "up"):
            parts[f"hires_{group}"] = _slider(script, f"hires_{group}", RATIO)
    with gr.Row():
        refiner = _ARGUMENTS["refiner"]
        parts["refiner"] = gr.Checkbox(
            value=refiner.default, label=refiner.label, elem_id=script.elem_id("refiner")
        )
        parts["memory"] = _radio(script, "memory")


def _radio(script: Any, name: str, value: str | None = None, info: str | None = None) -> Any:
    argument = _ARGUMENTS[name]
    return gr.Radio(
        choices=list(argument.choices),
        value=value or argument.default,
        label=argument.label,
        info=info,
        elem_id=script.elem_id(name),
    )


def _slider(script: Any, name: str, scale: dict[str, float], width: int = SHORT_LABEL) -> Any:
    argument = _ARGUMENTS[name]
    return gr.Slider(
        value=argument.default,
        label=argument.label,
        min_width=width,
        elem_id=script.elem_id(name),
        **scale,
    )


def _bind(page: Page, last: Any) -> None:
    """Tie the line to everything that it depends on. Called inside the tab's Blocks."""
    assert page.adapter is not None
    assert page.library is not None
    assert page.editor is not None
    assert page.refine is not None
    if missing := {"width", "height"} - set(page.host):
        logger.warning("this page has no sliders for the %s: no line", " and ".join(missing))
        return
    host = dict(page.host)
    if not set(_HIRES.values()) <= set(host):  # a host with another hires fix
        host = {name: host[name] for name in ("width", "height")}
    parts = {name: page.panel[name] for name in NAMES}
    say = {
        "fn": partial(line.both, page.tab, page.adapter, page.library, (*host, *parts)),
        "inputs": [*host.values(), *parts.values()],
        "outputs": [page.panel["head"], page.panel["line"]],
        **QUIET,
    }
    followed = (*host.values(), *(c for name, c in parts.items() if name not in UNSAID), last)
    triggers = [component.change for component in followed]  # ``last``: some hosts load late
    _follow([*triggers, page.panel["refresh"].click, Context.root_block.load], say)
    page.editor.bind(page.adapter, page.library, {**host, **parts}, say)
    more = {"entry": page.editor.parts["entry"], "refresh": page.panel["refresh"]}
    page.refine.bind(page.tab, page.library, {**parts, **more}, say)


def _follow(triggers: list[Any], say: dict[str, Any]) -> None:
    """Say the line at each trigger. One event where gradio can: a pasted image moves all sliders.

    While one answer is under way, further triggers ask once more at its end, in gradio 3.41 (for
    each trigger apart) and in gradio 4 with "always_last".
    """
    if hasattr(gr, "on"):
        gr.on(triggers=triggers, trigger_mode="always_last", **say)
        return
    for trigger in triggers:
        trigger(**say)
