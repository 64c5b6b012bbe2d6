"""Test-only scripts for hosts with a UNet patcher (Forge): a ControlNet of one number.

Through the API: ``alwayson_scripts: {"CR-Diff probe control": {"args": [strength]}}``.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from modules import scripts

HAS_PATCHER = any(map(importlib.util.find_spec, ("backend", "ldm_patched")))


class Control:
    """As backend/patcher/controlnet.py: lists of residuals, which the UNet pops from."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.previous_controlnet: Any = None
        self.transformer_options: Any = None

    def get_control(self, x: torch.Tensor, t: Any, cond: Any, *more: Any) -> Any:
        """A constant on the middle block's output [n, channels, h, w], by broadcasting."""
        residual = torch.full((1, 1, 1, 1), self.strength, dtype=x.dtype, device=x.device)
        return {"input": [], "middle": [residual], "output": []}

    def set_previous_controlnet(self, control: Any) -> None:
        """Part of the host's linked list."""
        self.previous_controlnet = control

    def inference_memory_requirements(self, dtype: Any) -> int:
        """Nothing to speak of."""
        return 0

    def get_models(self) -> list[Any]:
        """No model of its own."""
        return []

    def pre_run(self, model: Any, percent_to_timestep: Any) -> None:
        """Called before sampling."""

    def cleanup(self) -> None:
        """Called after sampling."""


class ControlScript(scripts.Script):
    """Adds the control to the UNet of this pass."""

    def title(self) -> str:
        """The key under ``alwayson_scripts``."""
        return "CR-Diff probe control"

    def show(self, is_img2img: bool) -> Any:
        """Only where there is a patcher."""
        return scripts.AlwaysVisible if HAS_PATCHER else False

    def ui(self, is_img2img: bool) -> list[Any]:
        """One number, which is 0 (nothing) unless given."""
        import gradio as gr

        return [gr.Number(value=0, visible=False)]

    def process_before_every_sampling(self, p: Any, strength: float = 0, **kwargs: Any) -> None:
        """As sd_forge_controlnet does: a clone with one more control."""
        if strength:
            unet = p.sd_model.forge_objects.unet.clone()
            unet.add_patched_controlnet(Control(float(strength)))
            p.sd_model.forge_objects.unet = unet
