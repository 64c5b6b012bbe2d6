"""The model's hash: what it depends on, and what it does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from crdiff_ext.errors import CRDiffError
from harness import modelhash
from harness.modelhash import model_hash


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_place_and_neighbours_do_not_count(tiny_model: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "README.md").write_text("notes")
    (copy / "single.safetensors").write_bytes(b"another format")
    (copy / "reward").mkdir()
    (copy / "reward" / "reward.safetensors").write_bytes(b"not a component")
    cache = tmp_path / "cache.json"
    assert model_hash(copy, cache) == model_hash(tiny_model, cache)
    assert not cache.exists()  # small files are not worth remembering


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/new.txt"]
)
def test_components_count(copy: Path, tmp_path: Path, name: str) -> None:
    before = model_hash(copy, tmp_path / "cache.json")
    with open(copy / name, "ab") as file:
        file.write(b" ")
    assert model_hash(copy, tmp_path / "cache.json") != before


def test_single_file_and_its_config_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    cache = tmp_path / "cache.json"
    plain = model_hash(file, cache)
    assert plain == hashlib.sha256(b"weights").hexdigest()
    config = tmp_path / "config"
    config.mkdir()
    (config / "model_index.json").write_text("{}")
    with_config = model_hash(file, cache, config)
    assert with_config != plain
    assert model_hash(file.rename(tmp_path / "renamed.safetensors"), cache, config) == with_config


def test_large_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelhash, "CACHE_FROM_BYTES", 1)
    file, cache = tmp_path / "model.safetensors", tmp_path / "out" / "cache.json"
    file.write_bytes(b"weights")
    digest = model_hash(file, cache)
    assert list(json.loads(cache.read_text()).values()) == [digest]
    monkeypatch.setattr(modelhash.hashlib, "file_digest", None)
    assert model_hash(file, cache) == digest
    monkeypatch.undo()
    file.write_bytes(b"weights, changed")
    assert model_hash(file, cache) != digest


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(CRDiffError, match="does not exist"):
        model_hash(tmp_path / "none", tmp_path / "cache.json")
