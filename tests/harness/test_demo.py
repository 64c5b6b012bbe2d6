"""``crdiff demo`` from end to end, on a tiny random model and a reward with random weights."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from crdiff_ext import presets as presets_module
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness import demo
from harness.cli import main
from harness.embedded.reward import EmbeddedReward, RewardNet
from harness.frechet import Frechet
from harness.report.text import interval
from harness.results import SCHEMA_FILE
from harness.stats import paired_interval

REAL_NAMES = ("ImageReward", "CLIP score", "FID", "PickScore", "Aesthetic")


@pytest.fixture(scope="module")
def patched(tiny_model: Path) -> object:
    """The demo looks at the tiny model, with stored ratios for 64x64 and the native size."""
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(3)
        reward = EmbeddedReward(RewardNet(), 0.0, 1.0)
        stored = [
            Preset("embedded", 128, 128, Ratios(0.2, 0.2, 0.2), "a test", "tiny"),
            Preset("embedded", 64, 64, Ratios(0.5, 0.4, 0.5), "a test", "tiny"),
        ]
        patch.setattr(demo, "embedded_model_dir", lambda: tiny_model)
        patch.setattr(demo, "REFERENCE_IMAGES", 48)
        patch.setattr(EmbeddedReward, "load", classmethod(lambda cls: reward))
        # 8 captions are enough for the Frechet interval of 4 features, not of all
        every = EmbeddedReward.features
        patch.setattr(EmbeddedReward, "features", lambda self, images: every(self, images)[:, :4])
        patch.setattr(presets_module, "builtin_presets", lambda: stored)
        yield


@pytest.fixture(scope="module")
def finished(patched: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(out), "--captions", "8"]) == 0
    return out


def read(out: Path) -> dict:
    results = json.loads((out / "results.json").read_text())
    jsonschema.validate(results, json.loads(SCHEMA_FILE.read_text()))
    return results


def test_cells_and_metrics(finished: Path) -> None:
    results = read(finished)
    assert results["kind"] == "demo"
    cells = {cell["id"]: cell for cell in results["cells"]}
    assert list(cells) == [f"{s}/{m}" for s in ("128x128", "64x64") for m in demo.METHODS]
    assert all(cell["images"] == 8 for cell in cells.values())
    assert cells["128x128/crdiff"]["forced"]
    assert not cells["64x64/crdiff"]["forced"]
    assert cells["128x128/native-resize"]["same_as"] == "128x128/dense"
    for cell in cells.values():
        assert set(cell["metrics"]) == {metric.name for metric in demo.METRICS}
        compared = [entry["vs_dense"] is not None for entry in cell["metrics"].values()]
        assert all(compared) if cell["method"] != "dense" else not any(compared)
    for entry in cells["128x128/native-resize"]["metrics"].values():
        same = entry["vs_dense"]
        assert (same["estimate"], same["low"], same["high"]) == (0, 0, 0)


def test_numbers_are_those_of_the_images(finished: Path) -> None:
    """Table values come from images.csv by the documented statistic."""
    import csv

    with open(finished / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    def column(cell: str) -> np.ndarray:
        return np.array([float(row["embedded_reward"]) for row in rows if row["cell"] == cell])

    crdiff, dense = column("64x64/crdiff"), column("64x64/dense")
    cell = next(c for c in read(finished)["cells"] if c["id"] == "64x64/crdiff")
    entry = cell["metrics"]["embedded_reward"]
    assert entry["value"] == pytest.approx(crdiff.mean(), rel=1e-4)
    expected = paired_interval(crdiff, dense)
    assert entry["vs_dense"]["low"] == pytest.approx(expected.low, abs=1e-4)


def test_frechet_distances_have_intervals(finished: Path) -> None:
    """In results.json, in the page and in the verdict's count, like every other score."""
    results = read(finished)
    cells = {cell["id"]: cell for cell in results["cells"]}
    found = cells["64x64/crdiff"]["metrics"]["embedded_frechet"]["vs_dense"]
    assert found["low"] < found["estimate"] < found["high"]
    assert found["n"] == 8
    assert html.escape(interval(found, 1)) in (finished / "report.html").read_text()
    assert f"({len(demo.METRICS)} comparisons" in results["verdict"]["sentences"][0]


def test_too_few_images_for_a_frechet_interval() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    reference = Frechet(features)
    assert demo._frechet(reference, features[:8], features[8:16])["vs_dense"]["n"] == 8
    few = demo._frechet(reference, features[:7], features[7:14])
    assert few == {"value": reference.distance(features[:7]), "n": 7, "vs_dense": None}


def test_nothing_bears_a_real_metrics_name(finished: Path) -> None:
    for name in ("results.json", "report.html", "images.csv"):
        text = re.sub(r"data:image/\w+;base64,[^\"]*", "", (finished / name).read_text())
        assert not any(real in text for real in REAL_NAMES)


def test_report_and_sheet(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert read(finished)["verdict"]["headline"] in page
    assert "says nothing about SD1.5" in page
    assert "forced: Auto would leave this size alone" in page
    with Image.open(finished / "demo.png") as sheet:
        assert sheet.width > 4 * 128


def without_times(cell: dict[str, Any]) -> dict[str, Any]:
    criterion = {**(cell["drawing"]["criterion"] or {}), "seconds": 0, "calibration_seconds": 0}
    drawing = {**cell["drawing"], "criterion": criterion}
    return {**cell, "seconds_per_image": 0, "drawing": drawing}


def test_again_gives_the_same_and_draws_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(finished)
    assert main(["demo", "--out", str(finished), "--captions", "8"]) == 0
    assert "nothing was drawn" in capsys.readouterr().out
    assert read(finished)["cells"] == before["cells"]

    assert main(["demo", "--out", str(tmp_path), "--captions", "8"]) == 0
    printed = capsys.readouterr().out
    assert before["verdict"]["headline"] in printed
    fresh = read(tmp_path)
    for old, new in zip(before["cells"], fresh["cells"], strict=True):
        assert without_times(old) == without_times(new)


def test_a_size_without_stored_ratios_is_told(
    patched: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["demo", "--out", str(tmp_path), "--captions", "8", "--size", "256x256"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "no stored ratios" in printed
    assert "CR-Diff = dense" in printed
    assert "there is nothing to judge" in printed


def test_too_few_captions(
    patched: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--captions", "2"]) == 2
    assert "--captions is 2: it must be between 8 and" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
