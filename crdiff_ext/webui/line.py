"""The line under the controls: what will happen at this size, and why; and its short form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..decide import Decision
from ..errors import CRDiffError
from ..settings import Settings, as_number
from . import costs, options
from .arguments import NAMES, settings_from
from .hosts import Adapter
from .job import decide_for
from .library import Library

NO_MODEL = "no model is loaded yet: this line tells more after the first image"
OFF = "CR-Diff is switched off"


def both(
    tab: str, adapter: Adapter, library: Library, names: Sequence[str], *values: Any
) -> tuple[str, str]:
    """The short form for the panel's title, and the line, as HTML; ``values`` go with ``names``."""
    asked = dict(zip(names, values, strict=True))
    try:
        passes = decisions(asked, adapter, library)
    except CRDiffError as error:
        notice = f"{error}; images will be made without CR-Diff"
        return _html("wrong value", False), _html(notice, False)
    sentences = [sentence for sentence, _ in passes]
    if tab == "img2img":
        sentences[0] += ' (for the size under "Resize to")'
    if len(sentences) > 1:
        sentences = [f"First pass: {sentences[0]}", f"Hires pass: {sentences[1]}"]
    acts = [decision is not None and decision.act for _, decision in passes]
    lines = [_html(sentence, act) for sentence, act in zip(sentences, acts, strict=True)]
    if any(acts):
        cost = costs.of(str(asked["amplification"]).strip().lower(), float(asked["k"]))
        lines.append(f'<div class="crdiff-cost">{cost}</div>')
    if library.complaint:
        lines.append(_html(library.complaint, False))
    return _html(_short(passes), any(acts)), "".join(lines)


def decisions(
    asked: Mapping[str, Any], adapter: Adapter, library: Library
) -> list[tuple[str, Decision | None]]:
    """A sentence, and the decision if there is a model to decide on, for each pass.

    Args:
        asked: the arguments by name; the page's width and height; for hires fix ``hires``,
            ``scale``, ``resize_x`` and ``resize_y``, where there is such a thing.
        adapter: knows the loaded model.
        library: the stored ratios.

    Raises:
        CRDiffError: an argument's value is not allowed.
    """
    settings = settings_from({name: asked[name] for name in NAMES}, options.limits())
    if settings.mode == "off":
        return [(OFF, None)]
    facts = adapter.loaded_model()
    if facts is None:
        return [(NO_MODEL, None)]
    size = page_size(asked)
    sizes = {"first": size}
    if asked.get("hires"):
        sizes["hires"] = hires_size(size, asked)
    made = [decide_for(settings, library.presets(), facts, at, part) for part, at in sizes.items()]
    return [
        (_of_pass(decision, part, settings), decision)
        for part, decision in zip(sizes, made, strict=True)
    ]


def page_size(asked: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels. Raises CRDiffError for a cleared or silly field."""
    height, width = (int(as_number(asked[name], name)) for name in ("height", "width"))
    if height < 8 or width < 8:
        raise CRDiffError(f"the size is {height}x{width}: at least 8 pixels are needed")
    return height, width


def hires_size(size: tuple[int, int], asked: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the second pass, whole latent pixels (modules/processing.py).

    As StableDiffusionProcessingTxt2Img.calculate_target_resolution: with one side given the other
    follows, with both the image is cropped to them, with none both are scaled.
    """
    height, width = size
    x, y = (int(as_number(asked[name], name)) for name in ("resize_x", "resize_y"))
    scale = as_number(asked["scale"], "scale")
    if not x and not y:
        x, y = int(width * scale), int(height * scale)
    elif not y:
        y = x * height // width
    elif not x:
        x = y * width // height
    return max(8, y // 8 * 8), max(8, x // 8 * 8)


def _of_pass(decision: Decision, part: str, settings: Settings) -> str:
    """The decision's sentence; "switched off" alone would be misleading for one of two passes."""
    if decision.code == "off":
        return f"not in this pass, as set (passes: {settings.passes})"
    return decision.sentence


def _short(passes: Sequence[tuple[str, Decision | None]]) -> str:
    if passes[0][1] is None:
        return "off" if passes[0][0] == OFF else "no model yet"
    return " / ".join("acts" if decision and decision.act else "inactive" for _, decision in passes)


def _html(sentence: str, acts: bool) -> str:
    mark, colour = ("●", "var(--primary-500)") if acts else ("○", "var(--body-text-color-subdued)")
    state = "acts" if acts else "inactive"
    return (
        f'<div class="crdiff-{state}"><span style="color: {colour}">{mark}</span> '
        f"{escape(sentence)}</div>"
    )
