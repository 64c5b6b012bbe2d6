"""An installed WebUI, run from a folder of data of its own: nothing in its installation changes.

``CRDIFF_WEBUI_DIR`` names the installation, ``CRDIFF_WEBUI_PYTHON`` its interpreter if that is not
``venv/bin/python`` in it. The extension (this repository, or ``CRDIFF_LIVE_EXTENSION``) and the
probe are linked into ``extensions/`` of the folder of data.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.live import sdnext_host
from tests.live.client import Client

HERE = Path(__file__).resolve().parent
EXTENSION = Path(os.environ.get("CRDIFF_LIVE_EXTENSION") or HERE.parents[1])
PROBE = HERE / "probe"
START_SECONDS = int(os.environ.get("CRDIFF_LIVE_START", "300"))

_COMMON = [
    "--skip-prepare-environment",
    "--skip-python-version-check",
    "--skip-torch-cuda-test",
    "--skip-version-check",
    "--no-hashing",
    "--api",
    "--server-name=127.0.0.1",
]
_A1111 = ["--skip-install", "--do-not-download-clip", "--use-cpu", "all"]
_FLAGS = {
    "a1111": [*_COMMON, "--no-download-sd-model", *_A1111],
    "forge": [*_COMMON, "--no-download-sd-model", "--always-cpu"],
    "neo": [*_COMMON, "--cpu"],  # it refuses flags that it does not know
    "reforge": [*_COMMON, "--no-download-sd-model", "--always-cpu"],
    "classic": [*_COMMON, "--no-download-sd-model", "--always-cpu"],
}
_PATCHED_FP32 = ["--all-in-fp32", "--vae-in-fp32", "--clip-in-fp32", "--no-half"]
FULL_PRECISION = {
    "a1111": ["--no-half"],
    "forge": [],
    "neo": [],
    "reforge": _PATCHED_FP32,
    "classic": _PATCHED_FP32,
}
"""Flags beside the common ones for fp32 weights."""
_FLAGS["sdnext"], FULL_PRECISION["sdnext"] = sdnext_host.FLAGS, []

_OPTIONS: dict[str, Any] = {
    # Everything that a test overrides has to be here: for a key that is not in config.json the
    # host keeps the override for good (modules/processing.py, restore_afterwards).
    "sd_vae": "None",
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "randn_source": "CPU",
    "sd_checkpoints_limit": 1,
    "sd_checkpoint_cache": 0,
    "token_merging_ratio": 0,
    "s_min_uncond": 0,
    "fp8_storage": "Disable",
    "batch_cond_uncond": True,
    "lora_functional": False,
    # An installation without git tags calls itself by its changelog's last version, and pasting its
    # own infotexts would switch old behaviour on (modules/infotext_versions.py).
    "auto_backcompat": False,
    "use_downcasted_alpha_bar": False,
    "live_previews_enable": False,
    "show_progress_type": "Approx cheap",
    "auto_launch_browser": "Disable",
    # Forge Neo asks at the terminal before it takes a config.json without this (launch_utils.py).
    "VERSION_UID": "PY313",
    # Its refiner otherwise goes by sigma, and what it does afterwards hangs on its accordion.
    "show_refiner": True,
    "refiner_use_steps": True,
    "refiner_fast_sd": False,
    "samples_save": False,
    "grid_save": False,
    # Automatic chooses by free memory, and the choice changes pixels.
    "cross_attention_optimization": "sdp-no-mem - scaled dot product without memory efficient "
    "attention",
}


@dataclass(frozen=True)
class Installation:
    """A WebUI's folder, its interpreter, and which host it is: flags differ."""

    folder: Path
    python: Path
    kind: str  # "a1111", "forge", "neo", "reforge" or "classic"

    @property
    def family(self) -> str:
        """Which tests and checkpoints are for it: "a1111", "forge" or "sdnext"."""
        if self.kind == "sdnext":
            return self.kind
        return "a1111" if self.kind == "a1111" else "forge"

    @classmethod
    def find(cls) -> Installation | None:
        """The one that the environment names; None when it names none. Raises AssertionError."""
        named = os.environ.get("CRDIFF_WEBUI_DIR")
        if not named:
            return None
        folder = Path(named).resolve()
        assert (folder / "launch.py").is_file(), f"CRDIFF_WEBUI_DIR: no WebUI in {folder}"
        python = Path(os.environ.get("CRDIFF_WEBUI_PYTHON") or folder / "venv/bin/python")
        assert python.is_file(), f"no interpreter at {python}: set CRDIFF_WEBUI_PYTHON"
        return cls(folder, python, _kind(folder))


class Server:
    """A running host: its client, its data, its log."""

    def __init__(self, installation: Installation, data: Path, port: int, checkpoint: Path) -> None:
        self.installation = installation
        self.kind, self.family = installation.kind, installation.family
        self.data = data
        self.checkpoint = checkpoint
        self.log = data / "host.log"
        self.start_seconds = 0.0
        self.client = Client(f"http://127.0.0.1:{port}")
        self.url = self.client.url

    def starts(self) -> int:
        """How often its page and its API have been served so far: once, and once a reload."""
        return self.log.read_text(encoding="utf-8", errors="replace").count("Startup time:")

    def rewards(self) -> list[int]:
        """The processes of the reward that it has started, and that still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
                above = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended
            if "harness.cli" in command and str(self.data) in above:
                found.append(int(folder.name))
        return found

    def log_tail(self, lines: int = 40) -> str:
        """The end of what the host has printed."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def prepare(installation: Installation, data: Path, checkpoint: Path) -> None:
    """Make the folder of data: options, and the extension and the probe linked in."""
    # Forge Neo puts the page's images into "tmp" of this folder, and does not make it.
    for folder in ("extensions", "models/Stable-diffusion", "models/Lora", "models/VAE", "tmp"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    for name, target in (("crdiff", EXTENSION), ("crdiff-probe", PROBE)):
        link = data / "extensions" / name
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)
    options = {**_OPTIONS, "sd_model_checkpoint": checkpoint.name}
    if installation.kind == "sdnext":
        options = sdnext_host.options(data, checkpoint)
    (data / "config.json").write_text(json.dumps(options, indent=1), encoding="utf-8")


@contextmanager
def running(
    installation: Installation, data: Path, checkpoint: Path, flags: Sequence[str] = ()
) -> Iterator[Server]:
    """Start the host on a free port of the loopback; it has ended when this ends.

    Args:
        installation: which.
        data: a folder that ``prepare`` made or may make.
        checkpoint: what it loads first.
        flags: more flags; for fp32 add ``FULL_PRECISION``.
    """
    prepare(installation, data, checkpoint)
    port = _free_port()
    # Forge Neo's flag is --ckpt-dirs, which this abbreviates; the options name the checkpoint.
    places = ["--data-dir", str(data), "--ckpt-dir", str(checkpoint.parent)]
    places += ["--lora-dir", str(data / "models/Lora"), "--port", str(port)]
    # Forge serves only its folder of data; with one elsewhere, not even its own scripts.
    places += ["--gradio-allowed-path", str(installation.folder)]
    if installation.kind == "sdnext":
        places = sdnext_host.places(data, port)
    places += ["--crdiff-presets", str(data / "presets.json")]
    if installation.kind not in ("neo", "sdnext"):
        places += ["--ckpt", str(checkpoint)]
    command = [installation.python, "launch.py", *_FLAGS[installation.kind], *places, *flags]
    began = time.monotonic()
    with (data / "host.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=installation.folder, env=_environment(), stdout=log, stderr=log
        )
    try:
        server = Server(installation, data, port, checkpoint)
        _wait(process, server)
        server.start_seconds = round(time.monotonic() - began, 1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], server: Server) -> None:
    """Until the API answers and the first checkpoint is loaded."""
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        assert process.poll() is None, f"the host ended at its start:\n{server.log_tail()}"
        # Not asked before it says so: a request between the page's start and the API's makes the
        # host fail (webui.py: "Cannot add middleware after an application has started").
        if server.starts() and all(
            map(server.client.answers, ("/sdapi/v1/options", "/crdiff-probe/about"))
        ):
            # A checkpoint switched while the first one loads breaks A1111's loader; a generation
            # waits for it.
            server.client.txt2img(steps=1, alwayson_scripts={})
            return
        time.sleep(0.5)
    raise AssertionError(f"no answer in {START_SECONDS} s:\n{server.log_tail()}")


def _kind(folder: Path) -> str:
    if sdnext_host.is_sdnext(folder):
        return "sdnext"
    if (folder / "ldm_patched").is_dir() and not (folder / "backend").is_dir():
        return "reforge" if [*folder.glob("extensions-builtin/reForge-*")] else "classic"
    if not (folder / "backend").is_dir():
        return "a1111"
    version = folder / "modules_forge" / "forge_version.py"
    named = version.read_text(encoding="utf-8") if version.is_file() else ""
    return "neo" if '"neo"' in named else "forge"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    unwanted = ("COMMANDLINE_ARGS", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    return environment | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
        "TORCHDYNAMO_DISABLE": "1",  # one test has a host mark its model as compiled
        "OMP_NUM_THREADS": "1",  # the number of threads changes pixels
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
