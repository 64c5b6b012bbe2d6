"""Folders of the small transformers' pipelines, known as the families that they imitate."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdiff_ext import dit_shapes
from tests.dit.models import PIPELINES, PRINTS


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small models' shapes count as their families', beside the released ones."""
    for fingerprint, family in PRINTS.items():
        monkeypatch.setitem(dit_shapes.KNOWN, fingerprint, family)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a diffusers pipeline folder."""
    made = {}
    for family, make in PIPELINES.items():
        folder = tmp_path_factory.mktemp(family)
        make(folder / "tokenizer").save_pretrained(folder / "model")
        made[family] = folder / "model"
    return made
