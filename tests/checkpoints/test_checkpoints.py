"""Opening checkpoints: what is read, lazily, and what is refused, in one sentence each."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from crdiff_ext.errors import CRDiffError
from harness.checkpoints import open_checkpoint
from harness.locate import locate

WEIGHT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
STATE = {
    WEIGHT: torch.arange(16.0).reshape(4, 4),
    "conv_in.weight": torch.ones(4, 4, 3, 3, dtype=torch.float16),
    "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    return path


def assert_same(path: Path, state: dict[str, torch.Tensor]) -> None:
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.infos) == set(state)
    for name, tensor in state.items():
        assert checkpoint.infos[name].shape == tuple(tensor.shape)
        assert checkpoint.infos[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_names_shapes_dtypes_and_tensors_of_a_safetensors_file(file: Path) -> None:
    assert_same(file, STATE)


def test_data_that_an_old_writer_did_not_align(tmp_path: Path) -> None:
    data = torch.arange(4, dtype=torch.float32)
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    header += b" " * (3 - len(header) % 2)  # any length that leaves the data on an odd address
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    assert (8 + len(header)) % 4
    assert torch.equal(open_checkpoint(path).tensor("w"), data)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's memory map")
def test_a_tensor_is_mapped_alone_and_only_while_it_is_held(file: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(file))

    checkpoint = open_checkpoint(file)
    assert mapped() == 0
    tensor = checkpoint.tensor(WEIGHT)
    assert mapped() == 1
    del tensor
    assert mapped() == 0


def unet_folder(tmp_path: Path, variant: str = "") -> Path:
    folder = tmp_path / "pipeline" / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(STATE, folder / f"diffusion_pytorch_model{variant}.safetensors")
    (folder / "config.json").write_text('{"sample_size": 96}')
    return folder


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_pipeline_folder_and_the_unet_folder_in_it(tmp_path: Path, variant: str) -> None:
    folder = unet_folder(tmp_path, variant)
    scheduler = folder.parent / "scheduler"
    scheduler.mkdir()
    (scheduler / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    for path in (folder, folder.parent):
        assert_same(path, STATE)
        hints = open_checkpoint(path).hints
        assert hints == {"sample_size": 96, "prediction_type": "v_prediction"}


def test_full_precision_is_preferred_to_a_variant(tmp_path: Path) -> None:
    folder = unet_folder(tmp_path, ".fp16")
    unet_folder(tmp_path)
    assert open_checkpoint(folder).files[0].name == "diffusion_pytorch_model.safetensors"


def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "unet"
    folder.mkdir()
    weight_map = {}
    for number, (name, tensor) in enumerate(STATE.items()):
        shard = f"diffusion_pytorch_model-{number:05}-of-00004.safetensors"
        save_file({name: tensor}, folder / shard)
        weight_map[name] = shard
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    assert_same(folder, STATE)
    next(folder.glob("*-00002-of*")).unlink()
    with pytest.raises(CRDiffError, match=r"lacks diffusion_pytorch_model-00002.* again"):
        open_checkpoint(folder)


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    with pytest.raises(CRDiffError, match="no file of its own folder"):
        open_checkpoint(folder)


def test_a_model_in_the_hub_cache_is_found_without_a_network(
    offline_hub: Path, no_network: None
) -> None:
    repo = offline_hub / "models--owner--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    unet_folder(snapshot)
    os.rename(snapshot / "pipeline" / "unet", snapshot / "unet")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    assert open_checkpoint("owner/model").infos[WEIGHT].shape == (4, 4)


def test_a_part_of_a_model_in_the_hub_cache_is_not_taken_for_the_whole(
    offline_hub: Path, no_network: None
) -> None:
    repo = offline_hub / "models--owner--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    unet_folder(snapshot)
    os.rename(snapshot / "pipeline" / "unet", snapshot / "unet")
    parts = {"unet": ["diffusers", "U"], "vae": ["diffusers", "A"], "safety_checker": [None, None]}
    (snapshot / "model_index.json").write_text(json.dumps(parts))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    assert locate("owner/model", whole=False) == snapshot
    with pytest.raises(CRDiffError, match="could not be had from the hub"):
        locate("owner/model")
    (snapshot / "vae").mkdir()
    (snapshot / "vae" / "config.json").write_text("{}")
    assert locate("owner/model") == snapshot


def test_yaml_beside_a_file_tells_how_it_predicts(file: Path) -> None:
    file.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert open_checkpoint(file).hints == {"prediction_type": "v_prediction"}
    file.with_suffix(".yaml").write_text("model:\n  params:\n    linear_start: 0.1\n")
    assert open_checkpoint(file).hints == {"prediction_type": "epsilon"}
    file.with_suffix(".yaml").write_text("just: notes\n")
    assert open_checkpoint(file).hints == {}


def test_modelspec_metadata_tells_prediction_and_size(file: Path) -> None:
    spec = {"modelspec.prediction_type": "v", "modelspec.resolution": "768x768"}
    save_file(STATE, file, metadata=spec)
    assert open_checkpoint(file).hints == {"prediction_type": "v_prediction", "sample_size": 96}


# Pickles


class Payload:
    """Would create a file when unpickled by anything that runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, suffix: str, zipped: bool, refused: Any
) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"model{suffix}"
    state = {"state_dict": STATE, "extra": Payload(marker)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    sentence = refused("inspect", path)
    assert "refused" in sentence
    assert "safetensors" in sentence
    assert not marker.exists()
    # The payload is a working one:
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_bare_malicious_pickle_is_refused_and_not_run(tmp_path: Path, refused: Any) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"w": Payload(marker)}))
    assert "refused" in refused("inspect", path)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_pickle_of_nothing_but_weights_is_read(
    tmp_path: Path, zipped: bool, nested: bool
) -> None:
    path = tmp_path / "model.ckpt"
    state = {"state_dict": STATE, "epoch": 3} if nested else STATE
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_same(path, STATE)
    assert open_checkpoint(path).kind == "pickle"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_was_cut_short(
    tmp_path: Path, share: float, zipped: bool, refused: Any
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "damaged" in refused("inspect", path)


# Damage


def test_a_missing_file(tmp_path: Path, refused: Any) -> None:
    assert "there is no model at" in refused("inspect", tmp_path / "no.safetensors")


def test_a_name_that_is_neither_here_nor_on_the_hub(offline_hub: Path, refused: Any) -> None:
    assert "is no file or folder here" in refused("inspect", "nobody/nothing")


@pytest.mark.parametrize("length", [1, 7, 8, 30, -200, -1])
def test_a_safetensors_file_that_was_cut_short(file: Path, length: int, refused: Any) -> None:
    file.write_bytes(file.read_bytes()[:length])
    assert "not a whole safetensors file" in refused("inspect", file)


def test_a_header_that_claims_the_impossible(file: Path, refused: Any) -> None:
    file.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert "not a whole safetensors file" in refused("inspect", file)


def test_an_empty_file(file: Path, refused: Any) -> None:
    file.write_bytes(b"")
    assert "is empty (0 bytes)" in refused("inspect", file)


def test_something_else_under_the_name(file: Path, refused: Any) -> None:
    file.write_text("<html>404</html>")
    assert "not a whole safetensors file" in refused("inspect", file)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused("inspect", file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x")
    assert "rename it to .ckpt" in refused("inspect", file)


def test_a_folder_without_a_model(tmp_path: Path, refused: Any) -> None:
    assert "holds no UNet" in refused("inspect", tmp_path)
    (tmp_path / "unet").mkdir()
    assert "has no weights" in refused("inspect", tmp_path)


def test_a_damaged_config_in_a_folder(tmp_path: Path, refused: Any) -> None:
    folder = unet_folder(tmp_path)
    (folder / "config.json").write_text('{"sample_size": ')
    assert "config.json cannot be read" in refused("inspect", folder)
