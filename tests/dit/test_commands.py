"""``crdiff inspect``, ``search``, ``tables 3`` and others on small SD3 and FLUX models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crdiff_ext import dit_shapes
from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.pruning import make_plan, report
from crdiff_ext.settings import Ratios
from harness.cli import main
from tests.dit.models import sd3_transformer

RATIO = 0.3


def transformer_file(folder: Path) -> Path:
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


def original_names(state: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The weights that tell the family and those that are pruned, as the original file has them."""
    layers = {"ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2"}
    outer = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    }
    block = "double_blocks"
    if family == "sd3":
        layers = {"ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2"}
        outer = {
            "pos_embed.proj": "x_embedder.proj",
            "context_embedder": "context_embedder",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        }
        block = "joint_blocks"
    renamed = {f"{new}.weight": state[f"{old}.weight"] for old, new in outer.items()}
    for number in range(2):
        for old, new in layers.items():
            tensor = state[f"transformer_blocks.{number}.{old}.weight"]
            renamed[f"{block}.{number}.{new}.weight"] = tensor
        if family != "sd3":
            norm = state[f"transformer_blocks.{number}.attn.norm_q.weight"]
            renamed[f"{block}.{number}.img_attn.norm.query_norm.scale"] = norm
    if family != "sd3":
        renamed["single_blocks.0.linear2.weight"] = state[
            "single_transformer_blocks.0.proj_out.weight"
        ]
    return {f"model.diffusion_model.{name}": tensor for name, tensor in renamed.items()}


def inspected(capsys: Any, *words: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["inspect", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_inspect_in_either_naming(
    family: str, folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    state = load_file(transformer_file(folders[family]))
    file = tmp_path / "original.safetensors"
    save_file(original_names(state, family), file)
    words = ("--size", "512x512", "--ratios", RATIO)
    folder = inspected(capsys, folders[family], *words)
    single = inspected(capsys, file, *words)
    assert (folder["family"], folder["layout"], single["layout"]) == (family, "diffusers", "ldm")
    weights = prunable_parameters(state)
    plan = make_plan(weights, Ratios(RATIO, RATIO, RATIO))
    wanted = report(weights, plan).to_dict()
    for found in (folder, single):
        assert found["family"] == family
        assert found["native"] == [1024, 1024]
        assert {key: found[key] for key in wanted} == wanted
        assert found["decision"]["code"] == "set"
    assert len(folder["groups"]) == 4


def test_what_inspect_prints(folders: dict[str, Path], capsys: Any) -> None:
    assert main(["inspect", str(folders["flux-dev"]), "--size", "512x512", "--ratios", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "FLUX dev (flux-dev)" in said
    assert "0.3 (one for all layers), k = 1.5" in said
    assert len(re.findall(r"^transformer_blocks\.[01]\.ff\.net\.\S+ +1 +4,096", said, re.M)) == 4
    assert re.search(r"^all +4 +16,384 +4,912 +30.0%", said, re.M)
    assert main(["inspect", str(folders["flux-dev"]), "--size", "512x512"]) == 0
    said = capsys.readouterr().out
    assert "do not act: 512x512: no stored ratios for FLUX dev: search or set them" in said
    assert "16,384" in said
    assert main(["inspect", str(folders["flux-dev"]), "--size", "1024x1024"]) == 0
    assert "do not act: 1024x1024 is native: inactive" in capsys.readouterr().out


def test_inspect_refuses(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    words = ["inspect", str(folders["sd3"]), "--ratios", "0.3/0.2/0.1"]
    assert main(words) == 2
    assert "SD3 has one ratio for all layers: give one number" in capsys.readouterr().err


def test_inspect_of_a_fused_second_attention(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD3.5 medium's single file: query, key and value in one matrix, a threshold for each."""
    state = sd3_transformer(dual=True).state_dict()
    renamed = original_names(state, "sd3")
    block = "model.diffusion_model.joint_blocks.0.x_block.attn2"
    parts = [state[f"transformer_blocks.0.attn2.to_{x}.weight"] for x in "qkv"]
    renamed[f"{block}.qkv.weight"] = torch.cat(parts)
    renamed[f"{block}.proj.weight"] = state["transformer_blocks.0.attn2.to_out.0.weight"]
    for n in range(2):
        name = f"model.diffusion_model.joint_blocks.{n}.x_block.attn.ln_q.weight"
        renamed[name] = state[f"transformer_blocks.{n}.attn.norm_q.weight"]
    shape = dit_shapes.fingerprint({name: tuple(t.shape) for name, t in state.items()})
    assert shape is not None
    monkeypatch.setitem(dit_shapes.KNOWN, shape, "sd35-medium")
    file = tmp_path / "sd35.safetensors"
    save_file(renamed, file)
    found = inspected(capsys, file, "--size", "512x512", "--ratios", RATIO)
    weights = prunable_parameters(state)
    wanted = report(weights, make_plan(weights, Ratios(RATIO, RATIO, RATIO))).to_dict()
    assert len(wanted["groups"]) == 8
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["export", "x.safetensors", "--model", "MODEL", "--dtype", "fp32"],
            "crdiff export is for",
        ),
        (["bench", "--model", "MODEL", "--device", "cpu"], "crdiff bench is for"),
        (
            ["refine", "a cat", "--size", "64x64", "--model", "MODEL", "--ratios", "0.3/0.2/0.1"],
            "SD3 has one ratio for all layers",
        ),
    ],
)
def test_commands_for_unets_say_so(
    words: list[str],
    says: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    reward_is_brightness(monkeypatch)
    assert main([str(folders["sd3"]) if word == "MODEL" else word for word in words]) == 2
    assert says in capsys.readouterr().err


# Search


class Reward:
    """Brightness, where the search asks for ImageReward."""

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        return np.array([np.asarray(image, float).mean() for image in images])


def reward_is_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.searching.workshop._scorer", lambda name, weights: Reward())


@pytest.mark.parametrize("family", ["sd3", "flux-schnell"])
def test_search_of_one_ratio(
    family: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    reward_is_brightness(monkeypatch)
    prompts, out = tmp_path / "p.txt", tmp_path / "out"
    prompts.write_text("".join(f"{word}\n" for word in "abcdefgh"))
    theirs = tmp_path / "config.json"
    theirs.write_text(
        json.dumps({"model_config": {"name": "sd3", "height": 64, "width": 64},
                    "best_global_params_sd3": {"shared_ratio": 0.25}})
    )  # fmt: skip
    words = [
        "search",
        "--model",
        str(folders[family]),
        "--prompts",
        str(prompts),
        "--out",
        str(out),
    ]
    words += ["--captions", "2", "--held-out", "2", "--iterations", "4", "--steps", "1"]
    words += ["--from-config", str(theirs)]
    assert main(words) == 2
    assert "has one ratio for all layers: add --uniform" in capsys.readouterr().err
    assert main([*words, "--uniform"]) == 0
    states = json.loads((out / "search.json").read_text())["trials"]
    ratios = [tuple(state["ratios"].values()) for state in states]
    assert len(states) >= 3
    assert all(len(set(one)) == 1 for one in ratios)
    assert {0.0, 0.25} <= {one[0] for one in ratios}


def test_refining_one_ratio(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward_is_brightness(monkeypatch)
    words = ["refine", "a cat", "--size", "64x64", "--model", str(folders["sd3"])]
    words += ["--budget", "8", "--seeds", "2", "--fresh", "0", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "refine.json").read_text())
    states = found["rounds"]
    assert len(states) == 4
    assert all(state["down"] == state["mid"] == state["up"] for state in states)
    assert len({(state["down"], state["k"]) for state in states}) == 4
