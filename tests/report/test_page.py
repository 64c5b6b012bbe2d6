"""The page's text and the choice of what it shows; no browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.cli import main
from harness.report import pairs
from harness.report.extras import search_line
from harness.report.figures import cost_points, sparsity_places
from harness.report.page import page_html
from harness.report.source import Extra, read_source
from tests.report.folders import CAPTIONS, METHODS, write_run


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return page_html(read_source(run_folder))


def images(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/\w+;base64,([^\"]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_only_the_hashed_script_can_run(page: str) -> None:
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    addresses = re.findall(r"(?:src|href)=\"([^\"]{0,5})|url\(|@import|https?://[\w./]+", page)
    assert set(addresses) == {"data:", ""}
    assert set(re.findall(r"https?://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}


def test_every_caption_is_there_and_escaped(page: str) -> None:
    for caption in CAPTIONS:
        shown = html.escape(caption) or "<i>empty prompt</i>"
        assert f'<h4 dir="auto">{shown}</h4>' in page
    for label in ("made <reward>", "<b>not bold</b>", "made <model>"):
        assert label not in page
        assert html.escape(label) in page


def test_without_scripts_images_tables_and_charts_are_there(page: str) -> None:
    text = re.sub(r"<script.*</script>", "", page, flags=re.DOTALL)
    assert text.count("<article") == 2 * len(CAPTIONS)
    assert text.count("data:image/png") == len(METHODS) * len(CAPTIONS)
    assert text.count("data:image/webp") == len(METHODS) * len(CAPTIONS)
    assert 'class="scores"' in text
    for heading in ("Cost and quality", "Sparsity", "Criteria compared", "Images"):
        assert f"<h2>{heading}</h2>" in text
    hidden = re.findall(r"<(\w+)[^>]* hidden>", text)
    assert set(hidden) == {"form", "p"}  # controls, and the line that explains them


def test_thumbnails_are_bounded(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=2, sizes=[(512, 768)], methods=["dense", "crdiff"])
    page = page_html(read_source(tmp_path))
    assert {image.size for image in images(page)} == {(384, 256)}
    assert "scaled down to 384 pixels; the originals are in images/" in page


def test_selection_says_how_many_and_by_what_rule(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=60, sizes=[(16, 16)], methods=["dense", "pruned", "crdiff"])
    source = read_source(tmp_path)
    page = page_html(source, pairs=24)
    assert page.count("<article") == 12
    assert "12 of 60 prompts and seeds (24 of 120 pairs with Dense): 8 with the highest" in page
    assert "4 as a random sample (seed 20260401)" in page
    assert page.count("· drawn at random") == 4
    assert page_html(source, pairs=24) == page
    assert page_html(source, pairs=1).count("<article") == 1


def test_the_most_extreme_differences_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=60, sizes=[(16, 16)], methods=["dense", "pruned", "crdiff"])
    (chosen,) = pairs.choose(read_source(tmp_path), 60)
    shown = {case.order for case in chosen.cases}
    everything = pairs.choose(read_source(tmp_path), 1000)[0].cases
    for method in ("pruned", "crdiff"):
        for metric in ("reward", "check", "loss"):
            ranked = sorted(
                everything,
                key=lambda case: case.difference(f"16x16/{method}", "16x16/dense", metric),
            )
            assert {ranked[0].order, ranked[-1].order} <= shown
    assert [case.order for case in chosen.cases] == sorted(shown)


def test_without_scores_the_sample_is_random(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=9, sizes=[(16, 16)], methods=["dense", "crdiff"], scored=False)
    page = page_html(read_source(tmp_path), pairs=4)
    assert page.count("<article") == 4
    assert "a random sample (seed 20260401), not selected by eye" in page
    assert "<h2>Cost and quality" not in page


def test_differences_are_the_methods_less_denses(run_folder: Path) -> None:
    chosen = pairs.choose(read_source(run_folder), 1000)[0]
    case = chosen.cases[0]
    mine, dense = (case.images[f"64x64/{m}"].scores["reward"] for m in ("crdiff", "dense"))
    assert case.difference("64x64/crdiff", "64x64/dense", "reward") == mine - dense
    assert case.difference("64x64/dense", "64x64/dense", "reward") is None


def test_images_shared_between_methods_are_shown_once_as_dense(tmp_path: Path) -> None:
    results = write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["crdiff", "dense"])
    results["cells"][1]["same_as"] = "16x16/crdiff"
    (group,) = pairs.groups(results)
    assert [cell["method"] for cell in group.cells] == ["dense"]
    assert group.copies == ["CR-Diff: same images as Dense"]


def test_a_prompt_that_occurs_twice_stays_two_cases(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["dense", "crdiff"])
    source = read_source(tmp_path)
    rows = [dataclasses.replace(row, name="same", seed="1") for row in source.rows]
    chosen = pairs.choose(dataclasses.replace(source, rows=rows), 100)[0]
    assert len(chosen.cases) == 2
    assert all(len(case.images) == 2 for case in chosen.cases)


def test_cost_points_are_ratios_of_measured_seconds(run_folder: Path) -> None:
    results = read_source(run_folder).results
    assert results is not None
    cells = [cell for cell in results["cells"] if cell["height"] == 64]
    points = {point.label: point for point in cost_points(cells, "reward")}
    assert (points["Dense"].cost, points["Dense"].value) == (1.0, 0.0)
    assert points["CR-Diff"].cost == 2.0
    assert points["CR-Diff"].low < points["CR-Diff"].value < points["CR-Diff"].high
    assert cost_points(cells[1:], "reward") == []


def test_sparsity_takes_only_uniform_pruning_by_magnitude(run_folder: Path) -> None:
    results = read_source(run_folder).results
    assert results is not None
    cells = [cell for cell in results["cells"] if cell["height"] == 64]
    assert [place.x for place in sparsity_places(cells, "loss")] == [0.0, 0.2, 0.4]


SEARCH = {
    "version": 1,
    "config": {"height": 64, "width": 64, "captions": 4, "seed": 3},
    "trials": [{"score": 1.0}, {"score": None}, {"score": 0.5}, {"score": 2.0}],
    "held_out": {
        "captions": 9,
        "difference": {"estimate": 0.1, "low": -0.1, "high": 0.3},
    },
}


def test_search_curves_of_both_versions() -> None:
    size, line = search_line(Extra(".", SEARCH))
    assert size == "64x64"
    assert [(place.x, place.y) for place in line.places] == [(4, 1.0), (12, 1.0), (16, 2.0)]
    trials = [
        {"images": 2, "best_so_far": None, "score": None},
        {"images": 6, "best_so_far": 0.5, "score": 0.5},
    ]
    newer = {**SEARCH, "searched": "one shared ratio", "trials": trials}
    _, line = search_line(Extra("uniform", newer))
    assert [(place.x, place.y) for place in line.places] == [(6, 0.5)]
    assert line.label == "one shared ratio (seed 3, uniform)"


@pytest.mark.parametrize(
    ("down", "said"),
    [(0.0, "dense was not beaten, so there is nothing to confirm"), (0.1, "not confirmed yet")],
)
def test_a_search_without_confirmation_says_why(tmp_path: Path, down: float, said: str) -> None:
    best = {"state": {"down": down, "mid": 0.0, "up": 0.0, "k": 1.5}, "score": 1.0}
    record = {**SEARCH, "held_out": None, "best": best}
    (tmp_path / "search.json").write_text(json.dumps(record))
    assert f"64x64: {said}" in page_html(read_source(tmp_path))


def test_other_commands_files_are_shown_and_unknown_layouts_named(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["dense", "crdiff"])
    (tmp_path / "search.json").write_text(json.dumps(SEARCH))
    (tmp_path / "uniform").mkdir()
    uniform = {**SEARCH, "searched": "<one> ratio"}
    (tmp_path / "uniform" / "search.json").write_text(json.dumps(uniform))
    (tmp_path / "fidelity.json").write_text('{"rows": 3}')
    entry = {
        "paper": 0.5,
        "ours": {"value": 0.25, "n": 16, "interval95": [0.2, 0.3], "reason": None},
        "difference": -0.25,
        "more": [],
    }
    reason = "not run: IR needs <file>: get it"
    lacking = {"value": None, "n": None, "interval95": None, "reason": reason}
    table = {
        "title": "Table <1>",
        "block": None,
        "heads": ["Model"],
        "columns": ["IR"],
        "rows": [
            {"labels": ["SDXL"], "entries": [entry]},
            {"labels": ["SD1.5"], "entries": [{**entry, "ours": lacking, "difference": None}]},
            {"labels": ["x"], "entries": [None]},
        ],
        "notes": ["a note"],
    }
    (tmp_path / "tables.json").write_text(json.dumps({"tables": [table]}))
    page = page_html(read_source(tmp_path))
    assert "Search of the ratios" in page
    assert "&lt;one&gt; ratio (seed 3, uniform)" in page
    assert "64x64 (uniform): +0.100 [−0.100, +0.300] to dense" in page
    assert "fidelity.json in . has a layout that this version does not know" in page
    assert "Table &lt;1&gt;" in page
    assert '0.25 ±0.050<span class="delta">n = 16</span><span class="delta">paper 0.5' in page
    assert "difference −0.250" in page
    assert '<td>not run<span class="delta">paper 0.5</span></td>' in page
    assert page.count("<li>not run: IR needs &lt;file&gt;: get it</li>") == 1


def fidelity_row(mode: str, ratio: float | None, passes: float | None) -> dict:
    interval = {"estimate": 0.1, "low": 0.0, "high": 0.2, "level": 0.95, "n": 8}
    row = {"mode": mode, "ratio": ratio, "passes": passes, "n": 8, "reward": 0.1, "frechet": 2.0}
    row["vs_dense"] = None if mode == "dense" else {"reward": interval, "frechet": None}
    if mode == "folded":
        row["vs_exact"] = {"psnr_median": 31.26, "reward": interval}
    return row


def test_a_folder_of_a_bench_alone_is_a_report_too(tmp_path: Path, capsys) -> None:
    rows = [
        fidelity_row("dense", None, 1.0),
        fidelity_row("exact", 0.3, 2.0),
        fidelity_row("folded", 0.3, 1.0),
        fidelity_row("native-resize", None, None),
    ]
    data = {"size": [64, 64], "captions": 8, "k": 1.5, "rows": rows}
    (tmp_path / "fidelity.json").write_text(json.dumps(data))
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "folded @ 0.3: cost 1, value 0.1 [0, 0.2]" in page
    assert "<td>31.3</td>" in page
    assert "64x64, k = 1.5, 8 captions" in page
    assert "Written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "results.json").unlink(), "has no results.json"),
        (lambda f: (f / "images.csv").unlink(), "has no images.csv"),
        (lambda f: (f / "results.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "results.json").write_text("[]"), "not what a crdiff command writes"),
        (lambda f: (f / "results.json").write_text("{}"), "is not a run's results"),
        (lambda f: (f / "images.csv").write_text("cell\nx\n"), "is damaged"),
        (lambda f: next(f.glob("images/*/*.png")).write_bytes(b"no"), "delete it and run"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path: Path, spoil, said, capsys) -> None:
    write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["dense", "crdiff"])
    spoil(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_has_not_ended_and_odd_options(tmp_path: Path, capsys) -> None:
    results = write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["dense", "crdiff"])
    assert main(["report", str(tmp_path), "--pairs", "0"]) == 2
    assert main(["report", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "none")]) == 2
    (tmp_path / "results.json").write_text(json.dumps({**results, "status": "running"}))
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    for said in ("--pairs is 0", "is a folder", "is not a folder", "has not come to its end"):
        assert said in error


def test_images_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["dense", "crdiff"])
    listed = (tmp_path / "images.csv").read_text().replace("images/16/dense-0.png", "../x.png")
    (tmp_path / "images.csv").write_text(listed)
    with pytest.raises(CRDiffError, match="damaged"):
        read_source(tmp_path)
