"""A run that is killed for real, in another process, and resumed: equal to an unbroken one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli import main

ROOT = Path(__file__).parents[2]
PROMPTS = 24
BATCH = 4
PATIENCE = 600  # seconds; a busy machine takes long to import torch


def command(model: Path, out: Path) -> list[str]:
    prompts = out.parent / "prompts.txt"
    prompts.write_text("".join(f"a red circle above {i} crosses\n" for i in range(PROMPTS)))
    return [
        *("run", "--model", str(model), "--size", "64x64"),
        *("--prompts", str(prompts), "--out", str(out), "--batch", str(BATCH)),
        *("--ratios", "0.3/0.2/0.4", "--steps", "3"),
    ]


def stop(model: Path, out: Path, number: signal.Signals, at: int) -> subprocess.Popen[str]:
    """Run it in a process of its own, and signal that once the index has more than ``at`` lines."""
    words = [sys.executable, "-m", "harness.cli", *command(model, out)]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    )
    end = time.monotonic() + PATIENCE
    while stored(out) <= at and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(number)
    process.wait(PATIENCE)
    return process


def _heed_interrupts() -> None:
    """Undo what a shell does to processes in its background: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stored(out: Path) -> int:
    index = out / "index.jsonl"
    return index.read_bytes().count(b"\n") if index.exists() else 0


def numbers(out: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Everything of a run that does not depend on the clock."""
    with open(out / "images.csv", newline="") as file:
        images = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    cells = json.loads((out / "results.json").read_text())["cells"]
    return images, [cell["images_sha256"] for cell in cells]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_and_interrupted_runs_end_alike(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, unbroken = tmp_path / "killed" / "out", tmp_path / "unbroken" / "out"
    for out in (killed, unbroken):
        out.parent.mkdir()

    first = stop(tiny_model, killed, signal.SIGKILL, at=BATCH)
    assert first.returncode == -signal.SIGKILL
    after_kill = stored(killed)
    assert BATCH < after_kill < 2 * PROMPTS
    assert json.loads((killed / "results.json").read_text())["status"] == "running"
    with open(killed / "index.jsonl", "ab") as index:
        index.write(b'{"key": "0123, torn in the middle of a wri')

    interrupted = stop(tiny_model, killed, signal.SIGINT, at=after_kill + 1)
    assert interrupted.returncode == 2
    assert interrupted.stderr is not None
    assert "run the same command again to go on" in interrupted.stderr.read().splitlines()[-1]
    assert json.loads((killed / "results.json").read_text())["status"] == "interrupted"

    before = stored(killed)
    assert main(command(tiny_model, killed)) == 0
    drawn = int(capsys.readouterr().out.split(" drawn")[0].split()[-1])
    assert drawn - (2 * PROMPTS - (before - 1)) < BATCH  # at most one batch again; 1: the torn line
    assert main(command(tiny_model, unbroken)) == 0
    assert numbers(killed) == numbers(unbroken)
