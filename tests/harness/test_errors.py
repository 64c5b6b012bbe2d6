"""Foreseeable trouble: one sentence on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crdiff_ext.errors import CRDiffError
from harness import execute, generate
from harness import store as store_module
from harness.cli import COMMANDS, main
from harness.pipelines import check_device

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def run_words(model_: Path, prompts_: Path, out_: Path, **changes: str) -> list[str]:
    options = {"model": str(model_), "prompts": str(prompts_), "out": str(out_), "size": "64x64"}
    options |= {"ratios": "0.3", "batch": "1", **changes}
    return ["run", *(word for name, value in options.items() for word in (f"--{name}", value))]


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    error = capsys.readouterr().err
    assert error.startswith("crdiff: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": "100x64"}, "multiples of 8; try 96x64"),
        ({"size": "64by64"}, "height x width"),
        ({"ratios": "0.3/1/0.2"}, "below 1"),
        ({"ratios": "-0.1"}, "at least 0"),
        ({"ratios": "nan/0/0"}, "ratio"),
        ({"ratios": "half"}, "ratio"),
        ({"k": "5"}, "k is 5"),
        ({"method": "dense,magic"}, "'magic' is not known"),
        ({"method": "dense,"}, "empty name"),
        ({"scheduler": "magic"}, "use default or one of ddim"),
        ({"steps": "0"}, "at least 1"),
        ({"prompts": "missing.txt"}, "does not exist"),
        ({"model": "missing-model"}, "missing-model"),
    ],
)
def test_bad_arguments(
    changes: dict[str, str],
    said: str,
    tiny_model: Path,
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main(run_words(tiny_model, prompts_file, out, **changes)) == 2
    assert said in sentence(capsys)
    assert not out.exists()


def changed_model(tiny_model: Path, folder: Path, value: float, layer: str) -> Path:
    """A copy of the tiny model with one value of one UNet weight replaced."""
    model = folder / "changed"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / WEIGHTS)
    weights[layer].view(-1)[0] = value
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    return model


def test_nan_in_a_pruned_layer_names_it(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    model = changed_model(tiny_model, tmp_path, float("nan"), layer)
    assert main(run_words(model, prompts_file, tmp_path / "out", method="crdiff")) == 2
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_k" in sentence(capsys)
    assert not list(tmp_path.rglob("*.png"))


def test_nan_in_the_pixels(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = changed_model(tiny_model, tmp_path, float("nan"), "conv_in.weight")
    assert main(run_words(model, prompts_file, tmp_path / "out", method="dense")) == 2
    assert "(NaN) at 64x64: try --dtype fp32" in sentence(capsys)
    assert not list(tmp_path.rglob("*.png"))


def test_unknown_family(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import UNet2DConditionModel

    model = tmp_path / "other"
    shutil.copytree(tiny_model, model)
    config = dict(UNet2DConditionModel.load_config(str(model / "unet")))
    config["block_out_channels"], config["attention_head_dim"] = (32, 64), (1, 2)
    UNet2DConditionModel.from_config(config).save_pretrained(model / "unet")
    assert main(run_words(model, prompts_file, tmp_path / "out")) == 2
    assert "is not a model that CR-Diff knows" in sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_full_disk(
    tiny_model: Path,
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third PNG finds no room: two stay, and with room again only the third is drawn."""
    out = tmp_path / "out"
    words = run_words(tiny_model, prompts_file, out, method="dense")
    replace = os.replace

    def third_fails(source: str, target: str) -> None:
        if str(target).endswith(".png") and len(list(out.rglob("*.png"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "replace", third_fails)
        assert main(words) == 2
    assert "is full: free some space" in sentence(capsys)
    assert len(list(out.rglob("*.png"))) == 2
    assert not list(out.rglob("*.tmp"))
    assert json.loads((out / "results.json").read_text())["status"] == "interrupted"
    assert main(words) == 0
    assert "Images: 1 drawn, 0 scaled, 2 were stored already" in capsys.readouterr().out


def test_interrupted_run_goes_on(
    tiny_model: Path,
    prompts_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = run_words(tiny_model, prompts_file, out)
    draw, calls = generate.Painter.draw, []

    def third_is_interrupted(self: generate.Painter, batch: object) -> object:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(execute, "log", execute.log.getChild("quiet"))
        patch.setattr(generate.Painter, "draw", third_is_interrupted)
        assert main(words) == 2
    assert "run the same command again to go on" in sentence(capsys)
    assert json.loads((out / "results.json").read_text())["status"] == "interrupted"
    assert main(words) == 0
    assert "Images: 4 drawn, 0 scaled, 2 were stored already" in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text())["status"] == "complete"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr("harness.commands.run.run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run", "--model", "m", "--size", "8x8", "--prompts", "p", "--out", "o"])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(_: object) -> int:
        raise error

    monkeypatch.setattr("harness.commands.run.run", exhausted)
    assert main(["run", "--model", "m", "--size", "8x8", "--prompts", "p", "--out", "o"]) == 2
    assert "smaller --batch" in sentence(capsys)


def test_help_is_quick_and_lists_every_command() -> None:
    code = (
        "import sys; from harness.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'diffusers', 'PIL', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["magic"])
    assert stop.value.code == 2
    assert "invalid choice: 'magic'" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["abacus", "cuda"])
def test_a_device_that_is_not_there(
    tiny_model: Path,
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CRDiffError, match="device"):
        check_device(device)
    words = ["--size", "64x64", "--prompts", str(prompts_file), "--out", str(tmp_path / "new")]
    assert main(["run", "--model", str(tiny_model), *words, "--device", device]) == 2
    assert "device" in sentence(capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["search --size 64x64 --out", "export"])
def test_an_output_path_through_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert main([*command.split(), str(file / "x.safetensors")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert file.read_text() == "mine"


@pytest.mark.parametrize("option", ["out", "work"])
def test_training_is_refused_before_it_starts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("no training is to start")

    monkeypatch.setattr("harness.embedded.training.recipe.run", started)
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "model"):
        folders = {"work": tmp_path / "work", "out": tmp_path / "out"} | {option: path}
        words = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
        assert main(["train-embedded", *words]) == 2
        assert f"{file} is not a folder: give --{option} another path" in sentence(capsys)
    assert [file] == list(tmp_path.iterdir())


def test_words_before_the_command_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--foo", "inspect", "x"])
    assert left.value.code == 2
    assert "--foo" in capsys.readouterr().err
