"""Test-only route: what the host has of CR-Diff, so that a test sees what is there twice.

GET /crdiff-probe/registered.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from modules import script_callbacks, scripts, shared

try:
    from modules.sd_samplers_cfg_denoiser import CFGDenoiser
except ImportError:  # SD.Next
    CFGDenoiser = None


def registered(app: FastAPI) -> dict[str, list[str]]:
    """All that the host has of the extension now, each as often as it has it."""
    callbacks = [
        f"{category}: {where.script}"
        for category, found in script_callbacks.callback_map.items()
        for where in found
        if "crdiff_ext" in where.script
    ]
    axes = [
        option.label
        for data in scripts.scripts_data
        for option in getattr(data.module, "axis_options", ())
        if "[CR-Diff]" in option.label
    ]
    runners = {"txt2img": scripts.scripts_txt2img, "img2img": scripts.scripts_img2img}
    titles = [
        f"{tab}: {script.title()}"
        for tab, runner in runners.items()
        for script in runner.scripts
        if type(script).__module__ == "crdiff.py"  # by its file, as the host loads it
    ]
    routes = [route.path for route in app.routes if route.path.startswith("/crdiff/")]
    wrapped, forward = [], getattr(CFGDenoiser, "forward", None)
    while forward is not None:
        wrapped += ["CFGDenoiser.forward"] * hasattr(forward, "_crdiff_wraps")
        forward = getattr(forward, "__wrapped__", None)
    return {
        "callbacks": sorted(callbacks),
        "axes": sorted(axes),
        "scripts": sorted(titles),
        "routes": sorted(routes),
        "options": sorted(key for key in shared.opts.data_labels if key.startswith("crdiff")),
        "wrapped": wrapped,
    }


def routes(_: Any, app: FastAPI) -> None:
    @app.get("/crdiff-probe/registered")
    def now() -> dict[str, list[str]]:
        return registered(app)


script_callbacks.on_app_started(routes)
