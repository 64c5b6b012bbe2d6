"""SIGKILL in the very middle of a write, for real: what is left is resumed, equal to unbroken."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness import store as store_module
from harness.config import RunConfig, Size
from harness.execute import Tally, execute
from harness.experiment import make_cells
from harness.plan import Batch, Plan, Sampling
from harness.prompts import PromptSet
from harness.store import Store

BATCH, PROMPTS = 4, 10
SAMPLING = Sampling(
    "0" * 64, 2, 3.0, "", "DDIMScheduler", "1" * 64, "fp32", "cpu", 7, BATCH, more_seeds=(8,)
)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and POSIX signals")


class Paints:
    """Stands in for a model: noise of the item's seed."""

    def draw(self, batch: Batch) -> tuple[list[Image.Image], float]:
        shape = (*batch.size, 3)
        pixels = [
            np.random.default_rng(item.seed).integers(0, 256, shape, dtype=np.uint8)
            for item in batch.items
        ]
        return [Image.fromarray(one) for one in pixels], 0.25


def make_plan() -> Plan:
    stored = [Preset("embedded", 64, 64, Ratios(0.1, 0.2, 0.3), "a test", "tiny")]
    methods = ("dense", "crdiff", "native-resize")
    config = RunConfig(model="m", sizes=(Size(64, 64),), out=Path("out"), methods=methods)
    texts = [f"prompt number {i}" for i in range(PROMPTS)]
    cells = make_cells(config, FAMILIES["embedded"], stored)
    return Plan(cells, PromptSet.of_texts(texts, "test").prompts, SAMPLING)


def run(folder: Path) -> Tally:
    return execute(make_plan(), Store(folder), Paints)


def dies(folder: Path, write: int) -> None:
    """Run until the ``write``-th file is being written, then die with its last bytes missing."""
    done = 0
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done == write:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 20)
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    store_module.os.fsync = fsync  # type: ignore[attr-defined]  # in the child alone
    run(folder)


def contents(folder: Path) -> tuple[dict[str, bytes], dict[str, dict]]:
    """Every image's bytes, and every row without its time."""
    images = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    rows = {}
    for line in (folder / "index.jsonl").read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["key"]] = {**row, "seconds": None}
    return images, rows


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tally]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


# Every image is two writes, its file and its row. 1: the first file; 14: a row in the middle of
# the second batch; 37: a file of the second seed; 160: the very last row.
@pytest.mark.parametrize("write", [1, 2, 14, 37, 90, 121, 160])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_in_a_write(write: int, tmp_path: Path, unbroken: tuple[Path, Tally]) -> None:
    child = multiprocessing.get_context("fork").Process(target=dies, args=(tmp_path, write))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    torn = list(tmp_path.rglob(".*.tmp"))
    assert len(torn) == write % 2  # a file that was being written, or a row

    whole, everything = unbroken
    stored = (write - 1) // 2
    tally = run(tmp_path)
    again = everything.drawn + everything.scaled - tally.stored
    assert tally.drawn + tally.scaled == again
    assert again - (everything.drawn + everything.scaled - stored) < BATCH  # at most one batch
    assert contents(tmp_path) == contents(whole)
    assert not list(tmp_path.rglob(".*.tmp"))
    assert run(tmp_path).drawn == 0
