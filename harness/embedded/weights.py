"""Where the trained files of the embedded model are."""

from __future__ import annotations

from pathlib import Path


def embedded_model_dir() -> Path:
    """The folder that ``StableDiffusionPipeline.from_pretrained`` loads."""
    return Path(__file__).parent / "model"
