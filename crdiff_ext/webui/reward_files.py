"""Which files the rewards load, and which one is missing, told without importing the harness."""

from __future__ import annotations

from pathlib import Path

IMAGE_REWARD_FILES = (
    "image-reward/ImageReward.pt",
    "image-reward/med_config.json",
    "bert-base-uncased/vocab.txt",
)
CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Names of files below the weights folder, as ``harness/scorers`` looks for them."""


def missing_image_reward(weights: Path | None) -> str | None:
    """None when ImageReward can load; else one sentence. ``weights``: the folder, if named."""
    if weights is None:
        return "ImageReward needs its weights: name their folder in Settings, CR-Diff"
    missing = [name for name in IMAGE_REWARD_FILES if not (weights / name).is_file()]
    if missing:
        return f"ImageReward needs {missing[0]} in {weights}: docs/scorers.md says where it is from"
    return None


def missing_clip(weights: Path | None, model: str) -> str | None:
    """None when open_clip's ``model`` can load; else one sentence."""
    if not model:
        return "CLIP score needs the name of an open_clip model in Settings, CR-Diff"
    if weights is None:
        return f"{model} needs its weights: name their folder in Settings, CR-Diff"
    folder = weights / "clip" / model
    if any((folder / name).is_file() for name in CLIP_FILES):
        return None
    return f"{model} needs its weights, {CLIP_FILES[0]}, in {folder}"
