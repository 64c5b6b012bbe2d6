"""Puts the trained parts together as a diffusers pipeline folder, in half precision."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from harness.embedded import architecture
from harness.embedded.reward import RewardNet


def write_model(folder: Path, pipe: StableDiffusionPipeline, facts: dict) -> None:
    """Writes ``folder`` anew: the pipeline in fp16 and ``crdiff.json``, what the harness reads."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(partial)
    description = {
        "name": "embedded",
        "sizes": ["{}x{}".format(*size) for size in architecture.SIZES],
        "steps": architecture.STEPS,
        "guidance": architecture.GUIDANCE,
        **facts,
    }
    (partial / "crdiff.json").write_text(json.dumps(description, indent=1) + "\n")
    for config in partial.glob("*/config.json"):
        _forget_origin(config)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def write_reward(folder: Path, net: RewardNet, mean: float, deviation: float) -> None:
    """Writes the reward's weights and the figures that standardise it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "reward.safetensors")
    config = {"mean": mean, "deviation": deviation}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _forget_origin(config: Path) -> None:
    """Drops the path of the machine that a model was made on from its config."""
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
