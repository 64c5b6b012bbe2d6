"""Fixtures: the shipped model, loaded once."""

from __future__ import annotations

import pytest

from harness.embedded.weights import embedded_model_dir
from harness.pipelines import LoadedPipeline, load_pipeline


@pytest.fixture(scope="session")
def embedded() -> LoadedPipeline:
    return load_pipeline(embedded_model_dir())
