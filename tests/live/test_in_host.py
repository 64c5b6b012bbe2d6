"""SD3 and FLUX in small, of the host's own classes, in its own interpreter: no server, no files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

from tests.live.host import EXTENSION, HERE, Installation

HOST = "forge"  # and Forge Neo
WITHOUT = ("reforge", "classic")


def test_transformers_of_the_hosts_own_classes(
    installation: Installation, note: Callable[..., None]
) -> None:
    """What is checked of each model and type of storage is in the script."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [installation.python, HERE / "in_host/dits.py", installation.folder, EXTENSION],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    families = {entry["family"] for entry in found}
    expected = {"flux-dev", "flux-schnell"}
    if installation.kind == "forge":
        expected |= {"sd3", "sd35-medium"}  # Neo has no SD3
    assert families == expected
    assert len(found) == 4 * len(expected)  # fp32, fp16, bf16, fp8
    note(models=found)
