"""``crdiff tables``, run: drawn once, dry, refused, without its models, with searches."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import jsonschema
import pytest

from harness import generate
from harness.cli import main
from harness.tables import curves
from harness.tables.catalogue import build
from harness.tables.curves import read_curve
from harness.tables.job import SCHEMA_VERSION

SCHEMA = Path(build.__globals__["PAPER"]).with_name("tables.schema.json")


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    assert main(words(tiny_model, out)) == 0
    return out


def words(model: Path, out: Path, *more: str) -> list[str]:
    tables = ["1", "2", "3", "4", "5", "7a", "fig2a"]
    options = ["--captions", "8", "--steps", "1", "--batch", "8", "--size", "64x64"]
    options += ["--seed", "3,4", "--weights", str(out / "none")]
    return ["tables", *tables, "--model", f"embedded={model}", "--out", str(out), *options, *more]


def read(out: Path) -> dict:
    document = json.loads((out / "tables.json").read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["schema_version"] == SCHEMA_VERSION
    return document


def test_a_whole_run(finished: Path) -> None:
    document = read(finished)
    assert document["seeds"] == [3, 4]
    tables = document["tables"]
    assert {table["table"] for table in tables if not table["block"]} == {
        "1",
        "4",
        "5",
        "7a",
        "fig2a",
    }
    stand = next(t for t in tables if t["table"] == "1" and t["block"])
    by_column = dict(zip(stand["columns"], stand["rows"][0]["entries"], strict=True))
    reward = by_column["embedded reward ↑ CR-Diff"]
    assert reward["ours"]["n"] == 8  # prompts, although 16 images were scored
    assert [line["label"] for line in reward["more"]] == [
        "CR-Diff less Dense",
        "prompts improved, %",
    ]
    real = next(t for t in tables if t["table"] == "1" and not t["block"])
    reasons = {entry["ours"]["reason"] for entry in real["rows"][0]["entries"]}
    assert all(reason.startswith("not run: ") for reason in reasons)
    assert any("inception" in reason for reason in reasons)
    results = json.loads((finished / "embedded" / "results.json").read_text())
    assert results["status"] == "complete"
    assert {cell["images"] for cell in results["cells"]} == {16}
    assert len((finished / "tables.csv").read_text().splitlines()) > 100


def test_running_it_again_draws_nothing_and_says_the_same(
    finished: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(finished)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr(generate.Painter, "draw", refuse)
    assert main(words(tiny_model, finished)) == 0
    assert read(finished)["tables"] == before["tables"]


def test_dry_run(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [
        "tables",
        "4",
        "--model",
        f"embedded={tiny_model}",
        "--out",
        str(out),
        "--steps",
        "1",
    ]
    assert main([*command, "--size", "64x64", "--captions", "8", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "embedded: 2 cells. Dry run: 16 images to draw (24 UNet passes" in said
    assert "Estimated from a probe of 2 kinds" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["9"], "table '9' is not known: name one or more of 1, 2"),
        ([], "no table was named"),
        (["1", "--model", "SDXL"], "--prompts is missing"),
        (["1", "--model", "GPT", "--prompts", "x.txt"], "--model GPT is not understood"),
        (["1", "--model", "embedded", "--prompts", "x.txt"], "captions of its own"),
        (["1", "--model", "embedded", "--model", "SDXL"], "run it without the others"),
        (["1", "--model", "embedded", "--size", "72x72"], "none of these tables has rows"),
    ],
)
def test_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models, neither there: the rows say so, with the paper's values beside."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat\na dog\n")
    models = ["--model", f"SDXL={tmp_path}/none", "--model", f"SD1.5={tmp_path}/no"]
    command = [
        "tables",
        "2",
        "3",
        *models,
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| SDXL .*\| paper .*\| 33.186 +\| 33.562", said)
    assert "not run: there is no model at" in said
    assert "SD2.1" not in said


def test_search_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    scores = [0.1, 0.3, None, 0.2, 0.5]
    trials = [
        {"score": score, "images": 4 * i, "stopped": i == 5} for i, score in enumerate(scores, 1)
    ]
    config = {
        "height": 64,
        "width": 64,
        "captions": 4,
        "reward": "embedded reward (not ImageReward)",
    }
    record = {
        "config": config,
        "dense": [0.0, 0.1],
        "trials": trials,
        "searched": "block-wise ratios",
    }
    (folder / "search.json").write_text(json.dumps(record))
    curve = read_curve(folder)
    assert curve.is_stand_in
    assert curve.reward == "embedded reward"
    assert curve.dense == pytest.approx(0.05)
    assert [curve.best_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [None, 0.1, 0.3, 0.3]
    command = [
        "tables",
        "fig7b",
        "--model",
        "embedded",
        "--search",
        str(folder),
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Figure 7b. The score during the search [stand-in, embedded model]" in said
    assert "not run: give --search" in said  # the paper's own
    assert len((tmp_path / "fig7b.csv").read_text().splitlines()) == 6
    (folder / "search.json").write_text("{}")
    assert main(command) == 2


@pytest.mark.slow
def test_figure_7b_searches_for_itself_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --search two real searches of the embedded model are made, and kept."""
    monkeypatch.setattr(curves, "STATES", 2)
    monkeypatch.setattr(curves, "CAPTIONS", 2)
    command = ["tables", "fig7b", "--model", "embedded", "--out", str(tmp_path)]
    assert main(command) == 0
    document = read(tmp_path)
    (stand,) = [t for t in document["tables"] if t["block"]]
    assert [row["labels"][0] for row in stand["rows"]] == ["search-block-wise", "search-uniform"]
    for row in stand["rows"]:
        states, dense, *best = (entry["ours"]["value"] for entry in row["entries"])
        assert states == 3  # dense is one of them
        assert best[-1] >= dense
    (real,) = [t for t in document["tables"] if not t["block"]]
    assert real["rows"][0]["entries"][0]["ours"]["reason"].startswith("not run: give --search")
    lines = list(csv.DictReader((tmp_path / "fig7b.csv").read_text().splitlines()))
    assert [line["images"] for line in lines] == ["2", "4", "6"] * 2
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("search-*/images/**/*.png")}
    assert len(kept) >= 8
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "64x64: 3 states" in said
    assert "this process drew" not in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert read(tmp_path)["tables"] == document["tables"]
