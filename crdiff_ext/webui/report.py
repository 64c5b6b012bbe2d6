"""What somebody who looks into a problem needs: versions, host, settings, the last decisions."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules import extensions, shared

from .. import __version__
from ..amplify import FOLDED
from ..settings import Settings
from . import options
from .hosts import Adapter
from .job import Job

if TYPE_CHECKING:
    from .library import Library

try:
    from modules import launch_utils
except ImportError:  # SD.Next knows its version elsewhere
    launch_utils = None

LOG: deque[str] = deque(maxlen=50)
"""The last sentences, with the time: bounded, no prompts, no references to a generation."""

PACKAGES = ("torch", "gradio", "fastapi", "pydantic", "safetensors")
FLAGS = (
    *("lowvram", "medvram", "medvram_sdxl", "always_cpu", "use_cpu", "no_half", "precision"),
    *("upcast_sampling", "xformers", "opt_sdp_attention", "nowebui", "api", "crdiff_disable"),
)
"""Flags that can matter here. Never all of them: some hold passwords and paths."""


def remember(sentence: str) -> None:
    """Add a sentence to the log."""
    LOG.append(f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ} {sentence}")


def asked(settings: Settings) -> None:
    """Log what was asked for, defaults left out."""
    usual = Settings().to_dict()
    told = {name: v for name, v in settings.to_dict().items() if v != usual[name]}
    remember(f"asked for: {told or 'the defaults'}")


def ran(job: Job) -> None:
    """Log how many passes were made so far in each stretch of a generation that acts."""
    for record in job.records:
        if record.actor is not None:
            stats = record.actor.stats
            kind = "folded" if record.actor.amplification == FOLDED else "pruned"
            part = f"{record.part} pass{' after the refiner switch' if record.refiner else ''}"
            remember(
                f"{part} at {record.height}x{record.width} on {record.checkpoint}: "
                f"{stats.dense_passes} dense and {record.pruned_passes} {kind} forwards"
            )


def collect(adapter: Adapter, library: Library) -> dict[str, Any]:
    """The report as plain JSON values; no prompts, no passwords, no folders."""
    facts = adapter.loaded_model()
    return {
        "crdiff": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": {"adapter": adapter.name, "version": _host_version(), "flags": _flags()},
        "model": None
        if facts is None
        else {
            "family": facts.family.name,
            "checkpoint": Path(facts.checkpoint).name,
            "refused": facts.refused,
        },
        "settings": options.current(),
        "presets": {"count": len(library.presets()), "complaint": library.public_complaint},
        "extensions": sorted(extension.name for extension in extensions.active()),
        "log": list(LOG),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host_version() -> str:
    if launch_utils is not None:
        return str(launch_utils.git_tag())
    told = getattr(sys.modules.get("installer"), "version", None)  # SD.Next's installer.py
    return f"{told.get('app')} {told.get('commit')}" if isinstance(told, dict) else "unknown"


def _flags() -> dict[str, Any]:
    values = {name: getattr(shared.cmd_opts, name, None) for name in FLAGS}
    return {name: value for name, value in values.items() if value}
