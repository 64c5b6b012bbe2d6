"""The tiny pipeline of tests/harness, loaded once, and a way to draw with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import Size
from harness.criteria.calibrate import Run
from harness.generate import Painter
from harness.plan import Sampling
from tests.harness.conftest import tiny_model  # noqa: F401 - a fixture

SAMPLING = Sampling("0" * 64, 2, 3.0, "", "DDIMScheduler", "1" * 64, "fp32", "cpu", 7, 4)
SIZE = Size(64, 64)


@pytest.fixture(scope="session")
def pipe(tiny_model: Path) -> Any:  # noqa: F811
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)


@pytest.fixture
def painter(pipe: Any) -> Painter:
    return Painter(pipe, SAMPLING)


@pytest.fixture
def run(painter: Painter) -> Run:
    return painter.calibration(SIZE)
