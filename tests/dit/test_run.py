"""``crdiff run`` and its neighbours on small SD3 and FLUX pipelines, from folder to images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from harness import execute
from harness.cli import main
from harness.config import Size
from harness.results import SCHEMA_FILE
from tests.scorers.fake import Brightness

METHODS = "dense,crdiff,pruned,crdiff-folded,crdiff-reuse-2,random-poa,native-resize"
FAMILIES = ["sd3", "flux-dev", "flux-schnell"]


def command(model: Path, out: Path, *more: str, size: str = "64x64") -> list[str]:
    prompts = out.parent / "p.txt"
    prompts.write_text("a red circle\ntwo blue squares\na cross\n")
    words = ["run", "--model", str(model), "--prompts", str(prompts), "--out", str(out)]
    return [*words, "--size", size, "--steps", "2", "--batch", "2", *more]


@pytest.fixture
def small_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """native-resize at 96x96 instead of 1024x1024."""
    from dataclasses import replace

    from crdiff_ext import families

    for name in FAMILIES:
        small = replace(families.FAMILIES[name], native=(96, 96))
        monkeypatch.setitem(families.FAMILIES, name, small)


def pixels(out: Path, results: dict[str, Any], method: str) -> np.ndarray:
    import csv

    with open(out / "images.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == method]
    assert len(rows) == 3
    return np.stack([np.asarray(Image.open(out / row["file"])) for row in rows]).astype(int)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("small_native")
def test_every_method_draws(
    family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = command(folders[family], out, "--ratios", "0.3", "--method", METHODS)
    assert main(words) == 0
    results = json.loads((out / "results.json").read_text())
    jsonschema.validate(results, json.loads(SCHEMA_FILE.read_text()))
    assert (results["status"], results["model"]["family"]) == ("complete", family)
    assert results["model"]["native"] == [96, 96]
    assert [cell["status"] for cell in results["cells"]] == ["complete"] * 7
    assert len({cell["images_sha256"] for cell in results["cells"]}) == 7
    drawn = {name: pixels(out, results, name) for name in METHODS.split(",")}
    assert drawn["dense"].shape == (3, 64, 64, 3)
    assert len({drawn["dense"][i].tobytes() for i in range(3)}) == 3
    # The cheaper ways are nearer to CR-Diff than the dense model is.
    far = np.abs(drawn["crdiff"] - drawn["dense"]).mean()
    for name in ("crdiff-folded", "crdiff-reuse-2"):
        assert 0 < np.abs(drawn["crdiff"] - drawn[name]).mean() < far
    monkeypatch.setattr("harness.scorers.get_scorers", lambda *_: [Brightness()])
    assert main(["score", str(out), "--weights", str(tmp_path / "none")]) == 0
    scores = json.loads((out / "scores.json").read_text())
    means = [cell["metrics"]["brightness"]["value"] for cell in scores["cells"]]
    assert means == pytest.approx([drawn[name].mean() for name in METHODS.split(",")], abs=0.1)
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "Brightness" in page

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr(execute, "_draw", never)
    assert main(words) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_is_the_pipeline_s_own_image(family: str, folders: dict[str, Path]) -> None:
    """Noise, prompts and arguments are those of a plain call with a generator."""
    from harness.denoisers import kind_of
    from harness.generate import Painter
    from harness.methods import DENSE
    from harness.pipelines import load_pipeline
    from harness.plan import Batch, Item, Sampling
    from harness.prompts import Prompt

    pipe = load_pipeline(folders[family]).pipe
    sampling = Sampling("0" * 64, 3, 4.0, "", "", "1" * 64, "fp32", "cpu", 0, 1)
    painter = Painter(pipe, sampling)
    size = Size(64, 96)
    items = tuple(Item(i, Prompt(str(i), t), 5 + i, {}) for i, t in enumerate(("a cat", "dogs")))
    ours = [painter.draw(Batch(size, DENSE, (item,)))[0][0] for item in items]
    more = {} if family == "flux-dev" else {"max_sequence_length": 256}
    for item, image in zip(items, ours, strict=True):
        theirs = pipe(
            item.prompt.text,
            height=64,
            width=96,
            num_inference_steps=3,
            guidance_scale=4.0,
            generator=torch.Generator("cpu").manual_seed(item.seed),
            **more,
        ).images[0]
        assert image.tobytes() == theirs.tobytes()
    kind = kind_of(pipe)
    alone, both = (
        kind.noise(size, [torch.Generator().manual_seed(seed) for seed in seeds])
        for seeds in ((6,), (5, 6))
    )
    assert torch.equal(alone[0], both[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unbroken_run_and_a_resumed_one_are_the_same(
    family: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ("--ratios", "0.3", "--method", "dense,crdiff")
    assert main(command(folders[family], whole, *more)) == 0
    real, calls = execute._draw, []

    def fails(*given: Any) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "_draw", fails)
        assert main(command(folders[family], broken, *more)) != 0
    assert main(command(folders[family], broken, *more)) == 0
    cells = [json.loads((out / "results.json").read_text())["cells"] for out in (whole, broken)]
    assert [c["images_sha256"] for c in cells[0]] == [c["images_sha256"] for c in cells[1]]


@pytest.mark.parametrize(
    ("family", "steps", "guidance"),
    [("sd3", 28, 7.0), ("flux-dev", 50, 3.5), ("flux-schnell", 4, 0.0)],
)
def test_what_is_not_given_is_the_model_card_s(
    family: str, steps: int, guidance: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    from harness.config import RunConfig
    from harness.experiment import open_experiment
    from harness.prompts import read_prompts

    prompts = tmp_path / "p.txt"
    prompts.write_text("a\n")
    config = RunConfig(str(folders[family]), (Size(64, 64),), tmp_path / "out")
    opened = open_experiment(config, read_prompts(prompts), [])
    assert (opened.sampling.steps, opened.sampling.guidance) == (steps, guidance)
    assert "model card" in opened.origins["steps"]
    assert "not stated in the paper" in opened.origins["guidance"]
    # Nothing stored: Auto leaves it alone, and says so.
    decision = opened.cells[1].decision
    assert (decision.act, decision.code) == (False, "no-stored")
    assert opened.cells[1].drawing.kind == "dense"


@pytest.mark.parametrize("family", FAMILIES)
def test_dry_run(family: str, folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    more = ("--ratios", "0.3", "--dry-run")
    assert main(command(folders[family], tmp_path / "out", *more)) == 0
    said = capsys.readouterr().out
    assert "6 images to draw (18 UNet passes at 2 steps)" in said
    assert "set by hand" in said


@pytest.mark.parametrize(
    ("family", "more", "says"),
    [
        ("sd3", ["--ratios", "0.3/0.2/0.1"], "SD3 has one ratio for all layers"),
        ("flux-dev", ["--ratios", "0.3/0.3/0.1"], "FLUX dev has one ratio for all layers"),
        ("sd3", ["--method", "wanda"], "wanda is calibrated through a UNet"),
        ("flux-dev", ["--method", "taylor-poa"], "taylor is calibrated through a UNet"),
        ("sd3", ["--method", "obs-diff"], "obs-diff is calibrated through a UNet"),
        ("sd3", ["--method", "native-conditioning"], "native-conditioning is for SDXL"),
        ("sd3", ["--scheduler", "ddim"], "leave out --scheduler"),
        ("flux-dev", ["--prediction", "epsilon"], "leave out --prediction"),
        ("flux-dev", ["--negative", "blurry"], "leave out --negative"),
        ("sd3", ["--size", "72x64"], "both sides must be multiples of 16"),
        ("sd3", ["--size", "64x1040"], "no side may be longer than 1024"),
    ],
)
def test_refused_in_one_sentence(
    family: str,
    more: list[str],
    says: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(folders[family], tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "images").exists()


def test_a_transformer_that_nobody_knows(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from crdiff_ext import dit_shapes

    monkeypatch.setattr(dit_shapes, "KNOWN", {})
    monkeypatch.setattr("crdiff_ext.families.KNOWN", {})
    assert main(command(folders["sd3"], tmp_path / "out")) == 2
    assert "is not a model that CR-Diff knows" in capsys.readouterr().err
    assert main(["inspect", str(folders["sd3"])]) == 2
    assert "of a kind that CR-Diff does not know" in capsys.readouterr().err


# Folders


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sd3"], tmp_path / "copied"))


def index_of(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sd3_without_its_t5(copied: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.rmtree(copied / "text_encoder_3")
    words = command(copied, tmp_path / "out", "--ratios", "0.3")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "lacks text_encoder_3" in said
    assert "[null, null]" in said
    index_of(copied, text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert main(words) == 0
    notes = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert any("without its T5" in note for note in notes)


@pytest.mark.parametrize("part", ["text_encoder_2", "vae", "transformer"])
def test_a_folder_that_lacks_a_part(copied: Path, part: str, tmp_path: Path, capsys: Any) -> None:
    shutil.rmtree(copied / part)
    assert main(command(copied, tmp_path / "out")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_transformer_that_lacks_weights(copied: Path, tmp_path: Path, capsys: Any) -> None:
    from safetensors.torch import load_file, save_file

    path = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["transformer_blocks.0.attn.to_q.bias"]
    save_file(state, path)
    assert main(command(copied, tmp_path / "out")) == 2
    assert "lacks 1 weights (the first: transformer_blocks.0.attn.to_q.bias)" in (
        capsys.readouterr().err
    )


def test_a_pipeline_of_another_kind(copied: Path, tmp_path: Path, capsys: Any) -> None:
    index_of(copied, _class_name="FluxFillPipeline")
    assert main(command(copied, tmp_path / "out")) == 2
    assert "describes a FluxFillPipeline" in capsys.readouterr().err


def test_a_single_file_is_inspected_not_drawn(
    folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    file = folders["flux-dev"] / "transformer" / "diffusion_pytorch_model.safetensors"
    assert main(command(file, tmp_path / "out")) == 2
    assert "drawn from a diffusers pipeline folder only" in capsys.readouterr().err


def test_the_usual_number_format(folders: dict[str, Path]) -> None:
    from harness.pipelines import load_pipeline, usual_dtype

    found = [usual_dtype(folders[family], "cuda") for family in FAMILIES]
    assert found == ["fp16", "bf16", "bf16"]
    assert usual_dtype(folders["flux-dev"], "cpu") == "fp32"
    loaded = load_pipeline(folders["flux-dev"], "bf16")
    assert loaded.denoiser is loaded.pipe.transformer
    assert loaded.denoiser.dtype == torch.bfloat16
