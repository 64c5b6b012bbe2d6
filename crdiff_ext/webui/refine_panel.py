"""The panel's section "Refine for this prompt": it presses Generate, so to speak, with our script.

Runs with gradio 3.41.2 and 4.40.0. The button calls what the host's Generate calls, with the same
inputs, outputs and JavaScript; only the choice of script and that script's arguments are replaced.
So the queue, the progress bar, interrupt, skip and the gallery are the host's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from html import escape
from typing import Any
from uuid import uuid4

import gradio as gr
from gradio.context import Context
from modules import script_callbacks, scripts

from ..errors import CRDiffError
from . import editor, generate_event, reward
from .arguments import SET
from .generate_event import Place, Pressed
from .library import Library
from .refine_arguments import ANY, BY_SETTINGS, DEFAULTS, FIRST, SECOND, TITLE
from .refine_results import RESULTS, table

logger = logging.getLogger("crdiff")

_JS = "js" if int(gr.__version__.split(".")[0]) >= 4 else "_js"
NO_BUTTON = f'this page has no button of a known kind: choose "{TITLE}" under Script instead'


@dataclass
class RefinePanel:
    """The section's components by name."""

    parts: dict[str, Any]

    def bind(self, tab: str, library: Library, page: Mapping[str, Any], say: Any) -> None:
        """Tie the buttons to what they do. Called inside the tab's Blocks.

        Args:
            tab: txt2img or img2img.
            library: where presets are saved.
            page: the panel's components by name, and ``entry``, the editor's list.
            say: keyword arguments of the event that renews the panel's line.
        """
        parts = self.parts
        quiet = {key: say[key] for key in ("queue", "show_progress", "api_name")}
        chosen = [parts["session"], parts["row"]]
        sliders = [page["ratios"], *(page[name] for name in editor.SLIDERS)]
        used = parts["use"].click(
            fn=use, inputs=chosen, outputs=[parts["message"], *sliders], **quiet
        )
        used.then(**say)
        saved = parts["save"].click(
            fn=partial(save, library),
            inputs=chosen,
            outputs=[parts["message"], page["entry"]],
            **quiet,
        )
        saved.then(**say)
        block = Context.root_block
        for event in (block.load, page["refresh"].click):  # the page's scripts press refresh too
            event(fn=judged_by, inputs=[], outputs=[parts["judge"]], **quiet)
        # The host makes Generate's event after all components (modules/ui.py), and asks for tabs
        # of extensions when that is done.
        script_callbacks.on_ui_tabs(partial(self.attach, tab, block))

    def attach(self, tab: str, block: Any) -> list[Any]:
        """Tie the three buttons that draw to the host's Generate, once that is tied."""
        runner = getattr(scripts, f"scripts_{tab}", None)
        try:
            pressed, place = generate_event.find(block, tab, runner)
        except LookupError as error:
            logger.warning("%s: %s", tab, error)
            for name in ("run", FIRST, SECOND):
                self.parts[name].interactive = False
            self.parts["message"].value = _html(NO_BUTTON)
            return []
        with generate_event.inside(block):
            for name, choice in (("run", ""), (FIRST, FIRST), (SECOND, SECOND)):
                self._press(self.parts[name], choice, pressed, place)
        return []

    def _press(self, button: Any, choice: str, pressed: Pressed, place: Place) -> None:
        parts = self.parts
        asked = [parts[name] for name in ("budget", "seeds", "search_k", "session", "round")]
        quiet = {"queue": False, "show_progress": "hidden", "api_name": False}
        named = button.click(
            fn=partial(begin, choice),
            inputs=[parts["session"]],
            outputs=[parts["session"], parts["hand"]],
            **quiet,
        )
        # The outputs have to be the host's own and no more: Forge's JavaScript drops the last four
        # values, and gradio 4 moves what follows a gr.State if their number is not the inputs'.
        done = named.then(
            fn=with_script(pressed.fn, place, choice),
            inputs=[*pressed.inputs, *asked],
            outputs=pressed.outputs,
            show_progress=False,
            api_name=False,
            **{_JS: pressed.js},
        )
        done.then(
            fn=shown,
            inputs=[parts["session"]],
            outputs=[parts[name] for name in ("result", "row", "hand", "message", "round")],
            **quiet,
        )


def build(script: Any) -> RefinePanel:
    """Make the section inside the panel."""

    def named(kind: Any, name: str, **more: Any) -> Any:
        component = kind(elem_id=script.elem_id(f"refine_{name}"), **more)
        component.do_not_save_to_config = True
        return component

    parts: dict[str, Any] = {}
    parts["judge"] = named(gr.HTML, "judge")
    with gr.Row():
        parts["budget"] = named(
            gr.Slider, "budget", label="Images to draw", minimum=3, maximum=96, step=1,
            value=DEFAULTS["budget"],
        )  # fmt: skip
        parts["seeds"] = named(
            gr.Slider, "seeds", label="Seeds a candidate", minimum=1, maximum=8, step=1,
            value=DEFAULTS["seeds"],
        )  # fmt: skip
    parts["search_k"] = named(
        gr.Checkbox, "search_k", label="Search amplification k too", value=True
    )
    parts["run"] = named(gr.Button, "run", value="Refine for this prompt")
    with gr.Row(visible=False) as parts["hand"]:
        parts[FIRST] = named(gr.Button, FIRST, value="First is better (favourite)")
        parts[SECOND] = named(gr.Button, SECOND, value="Second is better (challenger)")
    parts["result"] = named(gr.HTML, "result")
    parts["row"] = named(gr.Dropdown, "row", label="Found ratios", choices=[], value=None)
    with gr.Row():
        parts["use"] = named(gr.Button, "use", value="Use these ratios", size="sm")
        parts["save"] = named(gr.Button, "save", value="Save as preset", size="sm")
    parts["message"] = named(gr.HTML, "message")
    parts["session"] = named(gr.Textbox, "session", label="Session", visible=False)
    parts["round"] = named(gr.Number, "round", label="Round", value=ANY, precision=0, visible=False)
    return RefinePanel(parts)


def begin(choice: str, session: str) -> list[Any]:
    """The search that a button goes on with, or a new one's name; and no more choices for now.

    A second press would wait in the host's queue, and choose of a pair that nobody has seen.
    """
    name = session if choice or _paused(session) else uuid4().hex
    return [name, gr.update(visible=False)]


def with_script(original: Callable[..., Any], place: Place, choice: str) -> Callable[..., Any]:
    """The host's Generate with our script; the panel's five values come last.

    ``wraps`` keeps the signature, by which gradio knows that it has to hand over the request.
    """

    @wraps(original)
    def pressed(*args: Any) -> Any:
        *given, budget, seeds, search_k, session, challenger = args
        values = {
            "budget": budget,
            "seeds": seeds,
            "search_k": search_k,
            "judge": BY_SETTINGS,
            "session": session,
            "choice": choice,
            "round": challenger,
        }
        return original(*place.put(given, values))

    return pressed


def shown(session: str) -> list[Any]:
    """Updates of table, list of rows, the row of two buttons, message, and the round to judge."""
    result = RESULTS.get(session)
    if result is None:
        return ["", gr.update(choices=[], value=None), gr.update(visible=False), "", ANY]
    labels = [row.label for row in result.ranked]
    rows = gr.update(choices=labels, value=labels[0] if labels else None)
    return [table(result), rows, gr.update(visible=result.waiting), "", result.challenger]


def use(session: str, label: str | None) -> list[Any]:
    """Updates of the message, of where ratios come from, and of the sliders."""
    try:
        row = _row(session, label)
    except CRDiffError as error:
        return [_html(str(error)), *(gr.update() for _ in ("ratios", *editor.SLIDERS))]
    values = [SET, *row.state.as_dict().values()]
    return [_html(f"on the sliders: {row.state}"), *(gr.update(value=value) for value in values)]


def save(library: Library, session: str, label: str | None) -> list[Any]:
    """Store the row's ratios for its model and size; updates of the message and the list."""
    try:
        row, result = _row(session, label), RESULTS.get(session)
        assert result is not None  # it has the row
        preset = result.preset(row)
        replaced = library.save(preset)
    except CRDiffError as error:
        return [_html(str(error)), gr.update()]
    told = f"{'replaced' if replaced else 'saved'}: {editor.label(preset)}, {preset.ratios}"
    return [_html(told), editor.entries(library)]


def judged_by() -> str:
    """What will judge, as HTML."""
    return _html(reward.describe())


def _row(session: str, label: str | None) -> Any:
    result = RESULTS.get(session)
    if result is None:
        raise CRDiffError("nothing has been refined in this page yet")
    return result.find(label)


def _paused(session: str) -> bool:
    result = RESULTS.get(session)
    return result is not None and result.paused


def _html(sentence: str) -> str:
    return f"<div>{escape(sentence)}</div>"
