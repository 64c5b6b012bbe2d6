"""``crdiff score`` over a made run folder: values, intervals, what is not run and why."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.cli import main
from harness.embedded.check import parse_caption
from harness.embedded.reward import EmbeddedReward, reference_images
from harness.embedded.scenes import caption, prompt_set
from harness.frechet import Frechet
from harness.scorers import open_reference
from harness.scorers.assess import SCHEMA_FILE, assess, by_prompt, scores_json, write_scores
from harness.scorers.cache import ScoreCache
from harness.scorers.run_folder import read_run
from harness.stats import paired_interval
from harness.store import pixels_sha256
from tests.scorers.fake import Brightness, Colours

METHODS = {"dense": 0, "crdiff": 7, "native-resize": -3}
N = 10


def make_run(folder: Path, pictures, seeds: int = 1, n: int = N) -> Path:
    """A finished run at one size: crdiff is brighter than dense on all prompts but one."""
    (folder / "images").mkdir(parents=True)
    cells, rows = [], []
    for method, lift in METHODS.items():
        for i, image in enumerate(pictures(n * seeds, 9, ((24, 16),))):
            delta = -lift if i == 0 else lift
            pixels = np.clip(np.asarray(image, int) // 2 + 60 + delta, 0, 255).astype(np.uint8)
            shown = Image.fromarray(pixels)
            file = f"images/{method}-{i}.png"
            shown.save(folder / file)
            prompt = f"prompt_{i // seeds}"
            place = [f"24x16/{method}", method, 24, 16, prompt, "a <b>dog</b>", i % seeds]
            rows.append([*place, file, pixels_sha256(shown), 0.1])
        cells.append(
            {
                "id": f"24x16/{method}",
                "height": 24,
                "width": 16,
                "method": method,
                "label": method.capitalize(),
                "same_as": None,
                "status": "complete",
                "images": n * seeds,
                "images_sha256": "0" * 64,
            }
        )
    with open(folder / "images.csv", "w", newline="") as file:
        writer = csv.writer(file)
        head = ["cell", "method", "height", "width", "prompt_name", "caption", "seed", "file"]
        writer.writerow([*head, "pixels_sha256", "seconds"])
        writer.writerows(rows)
    results = {"schema": "crdiff-results", "schema_version": 1, "status": "complete"}
    results |= {"model": {"name": "a test's"}, "prompts": {"used": n}, "cells": cells}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def run(tmp_path: Path, pictures) -> Path:
    return make_run(tmp_path / "run", pictures)


@pytest.fixture
def reference(tmp_path: Path, pictures) -> Path:
    folder = tmp_path / "reference"
    folder.mkdir()
    for i, image in enumerate(pictures(9, 4, ((30, 30), (20, 44)))):
        image.save(folder / f"{i}.png")
    return folder


def scored(run: Path, *scorers: Any, reference: Path | None = None) -> dict[str, Any]:
    results, cells = read_run(run)
    source = open_reference(reference) if reference else None
    found = assess(cells, scorers, ScoreCache(run), source)
    scores = scores_json(results, cells, found, source, "cpu")
    write_scores(run, scores, cells, found)
    jsonschema.validate(scores, json.loads(SCHEMA_FILE.read_text()))
    assert json.loads((run / "scores.json").read_text()) == scores
    return scores


def entries(scores: dict[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    return {cell["method"]: cell["metrics"][metric] for cell in scores["cells"]}


def test_values_and_intervals(run: Path, reference: Path) -> None:
    brightness, colours = Brightness(), Colours()
    scores = scored(run, brightness, colours, reference=reference)
    found = entries(scores, "brightness")
    values = {}
    for method in METHODS:
        images = [np.asarray(Image.open(run / f"images/{method}-{i}.png"), float) for i in range(N)]
        values[method] = np.array([pixels.mean() for pixels in images]) + len("a <b>dog</b>") / 1000
        assert found[method]["value"] == pytest.approx(values[method].mean())
        assert found[method]["n"] == N
    expected = paired_interval(values["crdiff"], values["dense"]).as_dict()
    assert found["crdiff"]["vs_dense"] == pytest.approx(expected)
    assert found["crdiff"]["improved"]["share"] == pytest.approx(0.9)
    assert found["dense"]["vs_dense"] is found["dense"]["improved"] is None
    best = {method: entry["best_share"] for method, entry in found.items()}
    assert best == pytest.approx({"dense": 0, "crdiff": 90, "native-resize": 10})
    sets = entries(scores, "colours")
    own = np.array([np.asarray(Image.open(f), float).mean((0, 1)) for f in reference.glob("*")])
    mean = np.mean(
        [
            np.asarray(Image.open(run / f"images/dense-{i}.png"), float).mean((0, 1))
            for i in range(N)
        ],
        axis=0,
    )
    assert sets["dense"]["value"] >= np.square(mean - own.mean(0)).sum()
    assert sets["dense"]["best_share"] is None
    assert brightness.closed == 1
    assert scores["reference"]["n"] == 9


def test_scored_twice_is_computed_once(run: Path, reference: Path) -> None:
    first = scored(run, Brightness(), Colours(), reference=reference)
    brightness, colours = Brightness(), Colours()
    again = scored(run, brightness, colours, reference=reference)
    assert (brightness.scored, colours.seen) == (0, 0)
    assert again["cells"] == first["cells"]


def test_seeds_of_a_prompt_count_as_one(tmp_path: Path, pictures) -> None:
    run = make_run(tmp_path / "run", pictures, seeds=3)
    entry = entries(scored(run, Brightness()), "brightness")["crdiff"]
    assert entry["n"] == 3 * N
    assert entry["vs_dense"]["n"] == entry["improved"]["interval"]["n"] == N
    assert entry["improved"]["share"] == pytest.approx(1 - 1 / (3 * N))
    pairs = [("a", "0"), ("b", "0"), ("a", "1")]
    assert by_prompt(pairs, np.array([1.0, 5.0, 2.0])).tolist() == [1.5, 5.0]


def test_what_cannot_run_says_why_and_the_rest_goes_on(run: Path) -> None:
    scores = scored(run, Colours(lost="colours needs x.pth: get it"), Brightness())
    lost, done = scores["metrics"]
    assert (lost["status"], lost["sentence"]) == ("not run", "colours needs x.pth: get it")
    assert lost["provenance"] is None
    assert done["status"] == "done"
    assert done["provenance"]["protocol"] == "native"
    assert all(set(cell["metrics"]) == {"brightness"} for cell in scores["cells"])
    sentence = scored(run, Colours())["metrics"][0]["sentence"]
    assert sentence.startswith("colours needs reference images: give --reference")


def test_csv_has_every_image(run: Path) -> None:
    scored(run, Brightness(), Colours())
    with open(run / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * N
    assert all(float(row["brightness"]) > 0 for row in rows)
    assert "colours" not in rows[0]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "images/crdiff-3.png").unlink(), "is missing"),
        (lambda run: Image.new("RGB", (16, 24)).save(run / "images/dense-2.png"), "was changed"),
        (lambda run: (run / "images/dense-2.png").write_bytes(b"x"), "damaged"),
        (lambda run: edit(run, lambda r: r.update(status="interrupted")), "is not finished"),
        (lambda run: edit(run, lambda r: r["cells"][1].update(images=11)), "10 images in images"),
        (lambda run: swap_rows(run), "other prompts or seeds than 24x16/dense"),
        (lambda run: (run / "results.json").unlink(), "has no results.json"),
        (lambda run: (run / "images.csv").unlink(), "does not exist"),
    ],
)
def test_nothing_is_dropped(run: Path, break_it: Any, message: str) -> None:
    break_it(run)
    with pytest.raises(CRDiffError, match=message):
        scored(run, Brightness())
    assert not (run / "scores.json").exists()


def edit(run: Path, change: Any) -> None:
    results = json.loads((run / "results.json").read_text())
    change(results)
    (run / "results.json").write_text(json.dumps(results))


def swap_rows(run: Path) -> None:
    lines = (run / "images.csv").read_text().splitlines()
    lines[N + 1], lines[N + 2] = lines[N + 2], lines[N + 1]
    (run / "images.csv").write_text("\n".join(lines) + "\n")


def test_the_command(run: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the scores that ship with the project; a real metric without weights is not run."""
    words = ["score", str(run), "--weights", str(run / "none"), "--device", "cpu"]
    names = "embedded_reward,embedded_frechet,fid,image-reward,pickscore,aesthetic,clip-score"
    assert main([*words, "--metrics", names, "--reference", str(reference)]) == 0
    out = capsys.readouterr().out
    scores = json.loads((run / "scores.json").read_text())
    jsonschema.validate(scores, json.loads(SCHEMA_FILE.read_text()))
    status = {metric["name"]: metric["status"] for metric in scores["metrics"]}
    assert [name for name, word in status.items() if word == "done"] == [
        "embedded_reward",
        "embedded_frechet",
    ]
    assert out.count("Not run: ") == 5
    assert "ImageReward.pt" in out
    assert "embedded reward, 24x16, better than dense: Crdiff" in out
    assert scores["protocol"]["name"] == "paper-256"
    assert main([*words, "--metrics", "fid"]) == 2


def test_bad_arguments_are_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", str(run), "--weights", str(run), "--device", "cpu"]
    for more, sentence in (
        (["--metrics", "fid,,kid"], "empty name"),
        (["--metrics", "clip"], "is not known"),
        (["--reference", str(run / "none")], "is no reference"),
        (["--reference", str(run)], "fewer than two images"),
    ):
        assert main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err


def test_the_embedded_distance_renders_its_own_reference(
    tmp_path: Path, pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the demo does, at each image's size; in a real run's folder nothing has to be given."""
    run = make_run(tmp_path / "run", pictures, n=70)
    texts = [caption(spec) for spec in prompt_set("eval", 70)]
    edit_captions(run, lambda row: texts[int(row["prompt_name"].partition("_")[2])])
    command = ["score", str(run), "--metrics", "embedded_frechet", "--weights", str(tmp_path)]
    assert main([*command, "--protocol", "native"]) == 0
    scores = json.loads((run / "scores.json").read_text())
    jsonschema.validate(scores, json.loads(SCHEMA_FILE.read_text()))
    assert scores["metrics"][0]["own_reference"] == (
        "512 real renders of the run's captions at each image's size"
    )
    reward = EmbeddedReward.load()
    specs = [parse_caption(text) for text in texts]
    frechet = Frechet(reward.features(reference_images(specs, 24, 16, n=512)))
    features = {
        cell.id: reward.features([picture.load() for picture in cell.pictures])
        for cell in read_run(run)[1]
    }
    found = entries(scores, "embedded_frechet")
    for cell, own in features.items():
        assert found[cell.partition("/")[2]]["value"] == pytest.approx(
            frechet.distance(own), rel=1e-6
        )
    expected = frechet.difference(features["24x16/crdiff"], features["24x16/dense"])
    assert found["crdiff"]["vs_dense"] == pytest.approx(expected.as_dict(), rel=1e-4)
    assert "embedded Fréchet distance" in capsys.readouterr().out


def test_other_captions_need_a_reference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", str(run), "--metrics", "embedded_frechet", "--weights", str(run)]
    assert main(command) == 2
    said = capsys.readouterr().out
    assert "embedded_frechet needs captions of the embedded model's grammar" in said


def edit_captions(run: Path, caption_of: Any) -> None:
    with open(run / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["caption"] = caption_of(row)
    with open(run / "images.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
