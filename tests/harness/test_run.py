"""``crdiff run`` on the tiny random model, in this process."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from crdiff_ext.presets import Preset, save_presets
from crdiff_ext.settings import Ratios
from harness import generate, main_job
from harness.cli import main
from harness.results import SCHEMA_FILE

METHODS = "dense,pruned,crdiff,native-resize"


def arguments(model: Path, prompts: Path, out: Path, *more: str) -> list[str]:
    common = ["--size", "64x64", "--steps", "2", "--batch", "2", "--ratios", "0.3/0.2/0.4"]
    return [
        *("run", "--model", str(model), "--prompts", str(prompts), "--out", str(out)),
        *common,
        *more,
    ]


def read(out: Path) -> dict:
    results = json.loads((out / "results.json").read_text())
    jsonschema.validate(results, json.loads(SCHEMA_FILE.read_text()))
    return results


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "images.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    prompts = folder / "p.txt"
    prompts.write_text("a red circle\ntwo blue squares\na <script>alert(1)</script> cross\n")
    assert main(arguments(tiny_model, prompts, folder / "out", "--method", METHODS)) == 0
    return prompts, folder / "out"


def test_results(finished: tuple[Path, Path]) -> None:
    results = read(finished[1])
    assert results["status"] == "complete"
    assert results["model"]["family"] == "embedded"
    assert results["prompts"]["used"] == 3
    assert results["settings"]["origins"]["steps"] == "given"
    assert "crdiff.json" in results["settings"]["origins"]["guidance"]
    assert [cell["method"] for cell in results["cells"]] == METHODS.split(",")
    assert all(cell["images"] == 3 and cell["status"] == "complete" for cell in results["cells"])
    assert len({cell["images_sha256"] for cell in results["cells"]}) == 4
    assert all(cell["seconds_per_image"] > 0 for cell in results["cells"])
    assert any("safety checker" in note for note in results["notes"])


def test_images(finished: tuple[Path, Path]) -> None:
    out = finished[1]
    listed = rows(out)
    assert len(listed) == 12
    for row in listed:
        with Image.open(out / row["file"]) as image:
            assert image.size == (64, 64)
            settings = json.loads(image.info["crdiff"])
        assert settings["prompt"] == row["caption"]
        assert settings["seed"] == int(row["seed"])


def test_resized_images_are_the_native_ones_scaled(finished: tuple[Path, Path]) -> None:
    out = finished[1]
    row = next(row for row in rows(out) if row["method"] == "native-resize")
    with Image.open(out / row["file"]) as image:
        source = json.loads(image.info["crdiff"])["source"]
        scaled = np.asarray(image)
    with Image.open(out / "images" / source[:2] / f"{source}.png") as native:
        assert native.size == (128, 128)
        expected = native.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(scaled, np.asarray(expected))


def test_report_is_self_contained_and_escaped(finished: tuple[Path, Path]) -> None:
    page = (finished[1] / "report.html").read_text()
    assert page.count("<script") == 1
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert page.count("data:image/png;base64,") == 12


def test_second_run_draws_nothing(
    finished: tuple[Path, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    first = read(out)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr(generate.Painter, "draw", refuse)
    assert main(arguments(tiny_model, prompts, out, "--method", METHODS)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    assert read(out)["cells"] == first["cells"]


def test_another_folder_gives_the_same_files(
    finished: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    prompts, out = finished
    assert main(arguments(tiny_model, prompts, tmp_path, "--method", "crdiff,dense")) == 0
    again = {row["file"]: (tmp_path / row["file"]).read_bytes() for row in rows(tmp_path)}
    assert len(again) == 6
    assert all((out / name).read_bytes() == data for name, data in again.items())


def test_dry_run_draws_nothing(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = arguments(tiny_model, prompts_file, out, "--dry-run", "--method", METHODS)
    assert main(words) == 0
    # per prompt: dense 1, pruned 1, crdiff 2, the native source 1 = 5 passes a step
    assert "12 images to draw (30 UNet passes at 2 steps), 3 to scale" in capsys.readouterr().out
    assert not out.exists()


def test_inactive_crdiff_equals_dense_and_says_so(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = arguments(tiny_model, prompts_file, out, "--size", "128x128", "--limit", "1")
    words[words.index("--ratios") + 1] = "auto"
    words = [word for word in words if word not in ("64x64",)]
    words.pop(words.index("--size"))
    assert main(words) == 0
    assert "128x128 is native: inactive" in capsys.readouterr().out
    dense, crdiff = read(out)["cells"]
    assert crdiff["same_as"] == "128x128/dense"
    assert crdiff["images_sha256"] == dense["images_sha256"]
    assert crdiff["decision"]["code"] == "native"
    assert len(list(out.rglob("*.png"))) == 1


def test_a_stored_k_is_used_and_recorded(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --k; results.json says what was drawn, and why."""
    own = Preset("embedded", 64, 64, Ratios(0.3, 0.2, 0.4), "a test", "tiny", k=2.0)
    save_presets(tmp_path / "mine.json", [own])
    more = ["--presets", str(tmp_path / "mine.json"), "--limit", "1", "--method", "crdiff"]
    for given, k in ((), 2.0), (("--k", "1.2"), 1.2):
        out = tmp_path / f"out{k:g}"
        words = arguments(tiny_model, prompts_file, out, *more, *given)
        words[words.index("--ratios") + 1] = "auto"
        assert main(words) == 0
        results = read(out)
        cell = results["cells"][0]
        assert cell["drawing"]["k"] == cell["decision"]["k"] == k
        assert results["settings"]["k"] == (1.2 if given else 1.5)
        origin = results["settings"]["origins"]["k"]
        assert origin == "given" if given else "stored ratios" in origin
        assert ("k = 2 is stored with them" in capsys.readouterr().out) is (not given)


def test_stochastic_scheduler_repeats_itself(
    tiny_model: Path, prompts_file: Path, tmp_path: Path
) -> None:
    digests = []
    for name in ("a", "b"):
        words = arguments(tiny_model, prompts_file, tmp_path / name, "--method", "dense")
        assert main([*words, "--scheduler", "euler-a"]) == 0
        results = read(tmp_path / name)
        assert results["settings"]["scheduler"] == "EulerAncestralDiscreteScheduler"
        digests.append(results["cells"][0]["images_sha256"])
    assert digests[0] == digests[1]


def test_a_finished_result_stays_until_the_next_is_there(
    finished: tuple[Path, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = finished
    before = (out / "results.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_job, "write_images_csv", interrupted)
    assert main(arguments(tiny_model, prompts, out, "--method", METHODS)) == 2
    assert (out / "results.json").read_bytes() == before
