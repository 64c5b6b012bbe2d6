"""How SD.Next is started for the live tests, which is in no way as the other hosts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FLAGS = [
    "--skip-all",
    "--skip-git",
    "--skip-torch",
    "--skip-env",
    "--skip-requirements",
    "--quick",
    "--experimental",  # of packages other versions than it asks for
    "--server-name=127.0.0.1",
]

_OPTIONS: dict[str, Any] = {
    "samples_save": False,
    "samples_format": "png",  # the API's answers, too
    "server_rate_limit": 0,
    "grid_save": False,
    "return_grid": False,
    "sd_checkpoint_autodownload": False,
    "sd_vae": "None",
    "diffusers_offload_mode": "none",
    "cross_attention_optimization": "Scaled-Dot-Product",
    "sdp_overrides": [],
    "show_progress_type": "None",  # its approximations are downloaded
    "lora_force_diffusers": False,
    "lora_fuse_native": False,
    "sd_model_refiner": "None",
}


def is_sdnext(folder: Path) -> bool:
    """Whether an installation is SD.Next."""
    return (folder / "modules" / "processing_diffusers.py").is_file()


def title(checkpoint: Path) -> str:
    """What the host calls a pipeline's folder (modules/sd_checkpoint.py)."""
    return f"{checkpoint.parent.name}/{checkpoint.name}"


def options(data: Path, checkpoint: Path) -> dict[str, Any]:
    """Its config.json."""
    return {
        **_OPTIONS,
        "diffusers_dir": str(checkpoint.parent),
        "lora_dir": str(data / "models/Lora"),
        "sd_model_checkpoint": title(checkpoint),
    }


def places(data: Path, port: int) -> list[str]:
    """Flags that say where everything is."""
    return ["--data-dir", str(data), "--port", str(port), "--log", str(data / "sdnext.log")]
