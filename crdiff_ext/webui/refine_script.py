"""The components of the script "refine for this prompt", for whoever selects it by hand."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .refine_arguments import ARGUMENTS, MAX_BUDGET, MAX_SEEDS, NAMES

_ARGUMENTS = {argument.name: argument for argument in ARGUMENTS}


def build(script: Any) -> list[Any]:
    """The components, in the order of ``refine_arguments.ARGUMENTS``."""
    made = {
        "budget": _slider(script, "budget", 3, MAX_BUDGET),
        "seeds": _slider(script, "seeds", 1, MAX_SEEDS),
        "search_k": gr.Checkbox(**_named(script, "search_k")),
        "judge": gr.Radio(choices=list(_ARGUMENTS["judge"].choices), **_named(script, "judge")),
        "session": gr.Textbox(max_lines=1, **_named(script, "session")),
        "choice": gr.Dropdown(
            choices=list(_ARGUMENTS["choice"].choices), **_named(script, "choice")
        ),
        "round": gr.Number(precision=0, **_named(script, "round")),
    }
    for component in made.values():
        component.do_not_save_to_config = True
    return [made[name] for name in NAMES]


def _slider(script: Any, name: str, least: int, most: int) -> Any:
    return gr.Slider(minimum=least, maximum=most, step=1, **_named(script, name))


def _named(script: Any, name: str) -> dict[str, Any]:
    argument = _ARGUMENTS[name]
    return {
        "value": argument.default,
        "label": argument.label,
        "elem_id": script.elem_id(name),
    }
