"""What the page's Generate does, so that another button can do the same with our script chosen.

Runs with gradio 3.41.2 and 4.40.0. What the event calls, its inputs, outputs and JavaScript are
read off the page; only the choice of script and that script's arguments are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gradio.context import Context

from .refine_arguments import NAMES, TITLE


@dataclass(frozen=True)
class Pressed:
    """What the host's Generate does: its function, and the JavaScript that goes before it."""

    fn: Callable[..., Any]
    inputs: list[Any]
    outputs: list[Any]
    js: str | None


@dataclass(frozen=True)
class Place:
    """Where a generation's arguments say which script runs, counted from their end."""

    dropdown: int
    index: int  # our script's number in the dropdown
    first: int  # our first argument, counted from the dropdown

    def put(self, args: Sequence[Any], values: Mapping[str, Any]) -> list[Any]:
        """The host's arguments with our script and its ``values``."""
        changed = list(args)
        at = len(changed) - self.dropdown
        changed[at] = self.index
        changed[at + self.first : at + self.first + len(NAMES)] = [values[n] for n in NAMES]
        return changed


def find(block: Any, tab: str, runner: Any) -> tuple[Pressed, Place]:
    """What Generate does, and where our script goes. Raises LookupError."""
    titles = [script.title() for script in getattr(runner, "selectable_scripts", ())]
    if TITLE not in titles:
        raise LookupError(f"the script {TITLE!r} is not among the tab's scripts")
    ours, dropdown = runner.selectable_scripts[titles.index(TITLE)], runner.inputs[0]
    ids = {b._id for b in block.blocks.values() if getattr(b, "elem_id", "") == f"{tab}_generate"}
    for fn, targets, js in _events(block):
        inputs = list(fn.inputs)
        if fn.fn is not None and dropdown in inputs and ids & targets:
            place = Place(
                len(inputs) - inputs.index(dropdown), titles.index(TITLE) + 1, ours.args_from
            )
            return Pressed(fn.fn, inputs, list(fn.outputs), js), place
    raise LookupError("the event of Generate was not found")


def _events(block: Any) -> Iterator[tuple[Any, set[int], str | None]]:
    """Function, the components that are clicked, and JavaScript of each event."""
    if isinstance(block.fns, Mapping):  # gradio 4
        for fn in block.fns.values():
            yield fn, {target for target, event in fn.targets if event == "click"}, fn.js
        return
    for fn, dependency in zip(block.fns, block.dependencies, strict=True):
        clicked = dependency["targets"] if dependency["trigger"] == "click" else ()
        yield fn, set(clicked), dependency["js"]


@contextmanager
def inside(block: Any) -> Iterator[None]:
    """Events made here are the block's; entering it again would repeat its load events."""
    kept, Context.root_block = Context.root_block, block
    try:
        yield
    finally:
        Context.root_block = kept
