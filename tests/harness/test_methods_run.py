"""``crdiff run`` with criteria: results, the time they took, a finished run, the report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jsonschema
import pytest

from harness.cli import main
from harness.criteria import times
from harness.report.text import is_idle
from harness.results import SCHEMA_FILE

NAMES = "dense,crdiff,poa-k2,uniform-0.2,random-poa-seed3,wanda-n1,wanda-poa-n1"


def run(model: Path, prompts: Path, out: Path, methods: str) -> dict:
    words = ["run", "--model", str(model), "--prompts", str(prompts), "--out", str(out)]
    words += ["--size", "64x64", "--steps", "1", "--batch", "3", "--ratios", "0.3/0.2/0.4"]
    assert main([*words, "--method", methods]) == 0
    results = json.loads((out / "results.json").read_text())
    jsonschema.validate(results, json.loads(SCHEMA_FILE.read_text()))
    return results


def test_a_run_of_criteria(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(tiny_model, prompts_file, tmp_path, NAMES)
    cells = {cell["method"]: cell for cell in results["cells"]}
    assert list(cells) == NAMES.split(",")
    assert len({cell["images_sha256"] for cell in cells.values()}) == len(cells)
    criteria = {name: cell["drawing"]["criterion"] for name, cell in cells.items()}
    assert criteria["dense"] is None
    assert {name: c["name"] for name, c in criteria.items() if c} == {
        "crdiff": "magnitude",
        "poa-k2": "magnitude",
        "uniform-0.2": "magnitude",
        "random-poa-seed3": "random",
        "wanda-n1": "wanda",
        "wanda-poa-n1": "wanda",
    }
    assert criteria["random-poa-seed3"]["seed"] == 3
    assert criteria["wanda-n1"]["prompts"] == 1
    assert criteria["wanda-n1"] == criteria["wanda-poa-n1"]  # chosen once
    assert criteria["wanda-n1"]["seconds"] >= criteria["wanda-n1"]["calibration_seconds"] > 0
    assert criteria["crdiff"]["seconds"] > 0 == criteria["crdiff"]["calibration_seconds"]
    capsys.readouterr()

    again = run(tiny_model, prompts_file, tmp_path, NAMES)
    assert "nothing was drawn" in capsys.readouterr().out
    assert [c["drawing"] for c in again["cells"]] == [c["drawing"] for c in results["cells"]]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Wanda + POA (n = 1)" in page
    assert "compared within each output row" in page


def test_calibration_prompts_from_a_file(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the flag and by the key; they are another drawing, with their hash in the results."""
    own = tmp_path / "own.txt"
    own.write_text("a red house\na blue house\na house\n")
    scored = prompts_file.read_text().splitlines()[0]
    experiment = tmp_path / "exp.yaml"
    out = tmp_path / "out"
    experiment.write_text(
        f"model: {tiny_model}\nsizes: 64x64\nprompts: {prompts_file}\nout: {out}\nsteps: 1\n"
        f"ratios: 0.3/0.2/0.4\nmethods: wanda-n2\ncalibration: {own}\n"
    )

    def cell(*more: str) -> dict:
        assert main(["run", str(experiment), *more]) == 0
        results = json.loads((out / "results.json").read_text())
        jsonschema.validate(results, json.loads(SCHEMA_FILE.read_text()))
        seen = [note for note in results["notes"] if "calibrated criteria have seen" in note]
        return {**results["cells"][0], "seen": seen}

    first = cell()
    criterion = first["drawing"]["criterion"]
    texts = hashlib.sha256(b"a red house\na blue house").hexdigest()
    assert (criterion["prompts"], criterion["prompts_sha256"]) == (2, texts)
    assert criterion["source"] == (
        f"own.txt, SHA-256 {hashlib.sha256(own.read_bytes()).hexdigest()}"
    )
    assert first["seen"] == []
    other = tmp_path / "other.txt"
    other.write_text(f"{scored}\na tree\n")
    second = cell("--calibration", str(other))
    assert second["drawing"]["criterion"]["prompts_sha256"] != texts
    assert second["images_sha256"] != first["images_sha256"]
    assert second["seen"] == [
        "1 of the 2 calibration prompts are among the prompts that are drawn: the calibrated "
        "criteria have seen them"
    ]
    assert main(["run", str(experiment), "--method", "wanda-n9"]) == 2
    assert "Wanda on 9 calibration prompts: there are 3" in capsys.readouterr().err
    assert main(["run", str(experiment), "--calibration", str(tmp_path / "none.txt")]) == 2
    assert "none.txt does not exist" in capsys.readouterr().err


def test_times_that_cannot_be_read_are_not_known(tmp_path: Path) -> None:
    times.note_time(tmp_path, "a", "wanda", 2.0, 1.5)
    times.note_time(tmp_path, "b", "random", 1.0, 0.0)
    assert times.times_of(tmp_path)["a"]["seconds"] == 2.0
    assert set(times.times_of(tmp_path)) == {"a", "b"}
    (tmp_path / times.FILE).write_text("{")
    assert times.times_of(tmp_path) == {}


def test_native_conditioning_is_not_idle() -> None:
    cell = {"method": "native-conditioning", "same_as": None, "drawing": {"kind": "dense"}}
    assert is_idle(cell)
    cell["drawing"] = {"kind": "dense", "told_size": [1024, 1024]}
    assert not is_idle(cell)


def test_bench_criteria(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "criteria", "--prompts", "1", "--steps", "1", "--criteria"]
    assert main([*words, "magnitude,random,wanda", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [case["criterion"] for case in result["cases"]] == ["magnitude", "random", "wanda"]
    assert all(0.38 < case["pruned"] < 0.42 for case in result["cases"])
    assert result["cases"][2]["seconds"] > result["cases"][2]["calibration_seconds"] > 0
    assert main([*words, "random"]) == 0
    assert "random" in capsys.readouterr().out
    assert main([*words, "snip"]) == 2
    assert "'snip' is not known" in capsys.readouterr().err
