"""Small random checkpoints for a host, made by code of the host itself (its own interpreter).

``maker_<family>.py`` beside this file runs inside the host's environment, with the installation's
folder and the folder to fill as arguments. Every tensor is drawn from a generator of its own,
seeded by checkpoint and name, so that all runs give the same bytes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.live.host import HERE, Installation

SMALL = bool(os.environ.get("CRDIFF_LIVE_SMALL"))
"""Not SD1.5's true size; reForge and Forge Classic load it, Forge and Forge Neo don't."""

_FORGE = "random-small" if SMALL else "random-sd15"

FIRST = {"a1111": "tiny-sd1.safetensors", "forge": f"{_FORGE}.safetensors"}
"""What a host loads first."""
FIRST["sdnext"] = "Diffusers/tiny-sd"  # a folder

SECOND = {"a1111": "tiny-sd1-b.safetensors", "forge": f"{_FORGE}-b.safetensors"}
"""Another one of the same architecture."""
SECOND["sdnext"] = "Diffusers/tiny-sd-b"

MADE = {
    "a1111": ("tiny-sd1", "tiny-sd1-b", "tiny-sd1-v", "tiny-sd1-inpaint", "tiny-sdxl"),
    "forge": (_FORGE, f"{_FORGE}-b"),
}
"""The checkpoints that ``make`` leaves in the folder, each ``.safetensors``."""
MADE["sdnext"] = ("Diffusers/tiny-sd", "Diffusers/tiny-sd-b", "Diffusers/tiny-sdxl")  # folders


def make(installation: Installation, folder: Path) -> None:
    """Fill ``folder`` with what this kind of host needs; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    ending = "/model_index.json" if installation.family == "sdnext" else ".safetensors"
    if all((folder / f"{name}{ending}").is_file() for name in MADE[installation.family]):
        return
    maker = HERE / f"maker_{installation.family}.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    command = [installation.python, maker, installation.folder, folder]
    command += ["small"] if SMALL and installation.family == "forge" else []
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{maker.name} failed:\n{done.stderr[-3000:]}"
