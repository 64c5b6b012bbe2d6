"""The small editor of stored ratios inside the panel: save, use, delete, export, import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.context import Context

from ..errors import CRDiffError
from ..families import FAMILIES, UNKNOWN
from ..presets import Preset
from ..settings import Ratios
from .arguments import SET
from .hosts import Adapter
from .library import Library
from .line import page_size

FAMILY, CHECKPOINT = "all models of this family", "this checkpoint only"
SLIDERS = ("down", "mid", "up", "k")
BY_HAND = "set by hand"
TEXT = "Your entries as the text of a presets file: export shows it, import adds what is in it"


@dataclass
class Editor:
    """The editor's components by name."""

    parts: dict[str, Any]

    def bind(
        self,
        adapter: Adapter,
        library: Library,
        page: Mapping[str, Any],
        say: Mapping[str, Any],
    ) -> None:
        """Tie the buttons to what they do. Called inside the tab's Blocks.

        Args:
            adapter: knows the loaded model.
            library: what is edited.
            page: the page's sizes and the panel's components by name.
            say: keyword arguments of the event that renews the panel's line.
        """
        parts = self.parts
        quiet = {key: say[key] for key in ("queue", "show_progress", "api_name")}
        listed = [parts["message"], parts["entry"]]
        sliders = [page[name] for name in SLIDERS]

        def on(button: str, fn: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
            done = parts[button].click(fn=fn, inputs=inputs, outputs=outputs, **quiet)
            done.then(**say)

        def save(*values: Any) -> tuple[str, Any]:
            return _told(library, lambda: save_entry(adapter, library, *values))

        def delete(entry: str | None) -> tuple[str, Any]:
            return _told(library, lambda: delete_entry(library, entry))

        def take(text: str) -> tuple[str, Any]:
            return _told(library, lambda: import_text(library, text))

        def use(entry: str | None) -> list[Any]:
            return use_entry(library, entry)

        fields = [page["height"], page["width"], *sliders, parts["scope"], parts["source"]]
        on("save", save, fields, listed)
        on("delete", delete, [parts["entry"]], listed)
        on("import", take, [parts["text"]], listed)
        on("use", use, [parts["entry"]], [parts["message"], page["ratios"], *sliders])
        parts["export"].click(
            fn=lambda: (_html(f"{len(library.own())} entries of yours"), library.export_text()),
            inputs=[],
            outputs=[parts["message"], parts["text"]],
            **quiet,
        )
        Context.root_block.load(
            fn=lambda: entries(library), inputs=[], outputs=[parts["entry"]], **quiet
        )


def build(script: Any, library: Library) -> Editor:
    """Make the editor inside the panel."""

    def named(kind: Any, name: str, **more: Any) -> Any:
        component = kind(elem_id=script.elem_id(f"stored_{name}"), **more)
        component.do_not_save_to_config = True  # no defaults to remember (modules/ui_loadsave.py)
        return component

    parts: dict[str, Any] = {}
    with gr.Row():
        parts["scope"] = named(
            gr.Radio, "scope", label="Save for", choices=[FAMILY, CHECKPOINT], value=FAMILY
        )
        parts["source"] = named(
            gr.Textbox, "source", label="Where they come from", value=BY_HAND, max_lines=1
        )
    parts["save"] = named(gr.Button, "save", value="Save the sliders for this size", size="sm")
    parts["entry"] = named(
        gr.Dropdown, "entry", label="Your entries", choices=labels(library), value=None
    )
    with gr.Row():
        parts["use"] = named(gr.Button, "use", value="Put on the sliders", size="sm")
        parts["delete"] = named(gr.Button, "delete", value="Delete", size="sm")
    parts["message"] = named(gr.HTML, "message")
    parts["text"] = named(gr.Textbox, "text", label=TEXT, lines=2, max_lines=12)
    with gr.Row():
        parts["export"] = named(gr.Button, "export", value="Export", size="sm")
        parts["import"] = named(gr.Button, "import", value="Import", size="sm")
    return Editor(parts)


def save_entry(adapter: Adapter, library: Library, *values: Any) -> str:
    """Save the sliders for the loaded model; returns what to tell. Raises CRDiffError.

    ``values``: height, width, down, mid, up, k, scope, source.
    """
    height, width, down, mid, up, k, scope, source = values
    facts = adapter.loaded_model()
    if facts is None:
        raise CRDiffError("no model is loaded yet: make one image first")
    if scope == CHECKPOINT and not facts.hash:
        raise CRDiffError(
            f"the hash of {facts.checkpoint} is not known (hashing is off): save for the family"
        )
    if facts.family is UNKNOWN:
        raise CRDiffError(f"{facts.checkpoint} is of no known family: nothing can be stored for it")
    at = page_size({"height": height, "width": width})
    source = str(source or "").strip() or BY_HAND
    preset = Preset(
        facts.family.name,
        *at,
        Ratios(down, mid, up),
        source,
        facts.checkpoint,
        k,
        checkpoint=facts.hash if scope == CHECKPOINT else "",
    )
    replaced = library.save(preset)
    return f"{'replaced' if replaced else 'saved'}: {label(preset)}, {preset.ratios}"


def delete_entry(library: Library, entry: str | None) -> str:
    """Delete the entry of that label; returns what to tell. Raises CRDiffError."""
    library.delete(_find(library, entry).key)
    return f"deleted: {entry}"


def import_text(library: Library, text: str) -> str:
    """Add the entries in ``text``; returns what to tell. Raises CRDiffError."""
    new, replaced = library.import_text(text)
    return f"imported: {new} new, {replaced} replaced"


def use_entry(library: Library, entry: str | None) -> list[Any]:
    """Updates of the message, of where ratios come from, and of the sliders."""
    try:
        found = _find(library, entry)
    except CRDiffError as error:
        return [_html(str(error)), *(gr.update() for _ in ("ratios", *SLIDERS))]
    values = [SET, *found.ratios.as_dict().values(), found.k]
    told = _html(f"on the sliders: {entry} ({found.source})")
    return [told, *(gr.update(value=value) for value in values)]


def label(preset: Preset) -> str:
    """An entry in the list, such as "SDXL 512x512"; unlike any other of the user's."""
    own = f" ({preset.checkpoint})" if preset.checkpoint else ""
    return f"{FAMILIES[preset.family].label} {preset.height}x{preset.width}{own}"


def labels(library: Library) -> list[str]:
    """The user's entries in the list."""
    return [label(preset) for preset in library.own()]


def entries(library: Library) -> Any:
    """An update of the list, with nothing chosen."""
    return gr.update(choices=labels(library), value=None)


def _find(library: Library, entry: str | None) -> Preset:
    """The entry of that label. Raises CRDiffError."""
    if not entry:
        raise CRDiffError("choose one of your entries first")
    found: Sequence[Preset] = [preset for preset in library.own() if label(preset) == entry]
    if not found:
        raise CRDiffError(f"there is no entry of yours for {entry}")
    return found[0]


def _told(library: Library, act: Callable[[], str]) -> tuple[str, Any]:
    """What to tell after ``act``, or why not; and the list as it is now."""
    try:
        sentence = act()
    except CRDiffError as error:
        sentence = str(error)
    if library.complaint:
        sentence += f"; {library.complaint}"
    return _html(sentence), entries(library)


def _html(sentence: str) -> str:
    return f"<div>{escape(sentence)}</div>"
