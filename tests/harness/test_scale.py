"""``crdiff bench scale``: what it measures, and that work grows linearly with the captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType

import pytest

from harness import store as store_module
from harness.bench.scale import STAGES, Growth, exponent, measure
from harness.cli import main

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured through /proc"
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks differ; whether data has reached one is not what is tested here."""
    monkeypatch.setattr(store_module.os, "fsync", lambda _descriptor: None)


def calls(count: int, folder: Path) -> int:
    """Function calls, Python's and C's, of all stages at ``count`` captions."""
    number = 0

    def tally(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        measure([count], folder)
    finally:
        sys.setprofile(None)
    return number


def test_work_grows_linearly(tmp_path: Path) -> None:
    """Twice the captions take twice the calls beyond what any run takes; 4 would be quadratic."""
    calls(20, tmp_path / "warm")  # imports, caches
    small, middle, large = (calls(n, tmp_path / str(n)) for n in (40, 80, 160))
    assert 1.7 < (large - middle) / (middle - small) < 2.3


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"caption {i}\n" for i in range(30)))
    command = ["bench", "scale", "--captions", "20,10", "--prompts", str(prompts), "--json"]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert [run["captions"] for run in data["runs"]] == [10, 20]
    assert [run["images"] for run in data["runs"]] == [20, 40]
    assert all(set(run["seconds"]) == set(STAGES) for run in data["runs"])
    assert main(["bench", "scale", "--captions", "ten"]) == 2
    assert "write whole numbers above 1" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "power"), [((1.0, 5.0), 1.0), ((1.0, 25.0), 2.0)])
def test_power_of_growth(seconds: tuple[float, float], power: float) -> None:
    growths = [Growth(n, seconds={"plan": s}) for n, s in zip((1000, 5000), seconds, strict=True)]
    assert exponent(growths, "plan") == pytest.approx(power)
    assert exponent(growths[:1], "plan") is None
