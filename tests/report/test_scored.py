"""What other commands really wrote, on the page: scores.json's tables, curves of two searches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.cli import main
from harness.report.page import page_html
from harness.report.scored import is_stand_in
from harness.report.source import read_source
from harness.scorers import SCORERS, scorer_class
from harness.scorers.assess import SCHEMA_FILE
from tests.report.folders import write_run


def metric(name: str, **more: Any) -> dict[str, Any]:
    kind = scorer_class(name)
    return {
        "name": name,
        "label": kind.label,
        "what": kind.what,
        "higher_is_better": kind.higher_is_better,
        "per_image": kind.per_image,
        "decimals": kind.decimals,
        "status": "done",
        "sentence": None,
        "own_reference": None,
        "provenance": {
            "scorer": name,
            "protocol": "native",
            "device": "cpu",
            "backbone": "a <backbone>",
            "weights": {"weights.bin": "ab" * 32},
            "packages": {},
        },
        **more,
    }


def entry(value: float, ends: tuple[float, float] | None, improved: float | None) -> dict[str, Any]:
    difference = None
    if ends is not None:
        middle = sum(ends) / 2
        difference = {"estimate": middle, "low": ends[0], "high": ends[1], "level": 0.95, "n": 8}
    share = None if improved is None else {"share": improved, "n": 16, "interval": difference}
    return {
        "value": value,
        "n": 16,
        "vs_dense": difference,
        "improved": share,
        "best_share": None if improved is None else 31.25,
    }


def cell(method: str, **metrics: Any) -> dict[str, Any]:
    return {
        "id": f"64x64/{method}",
        "height": 64,
        "width": 64,
        "method": method,
        "label": f"<{method}>",
        "same_as": None,
        "images": 16,
        "images_sha256": None,
        "metrics": {name.replace("_reward", "-reward", 1): made for name, made in metrics.items()},
    }


def scores() -> dict[str, Any]:
    lacking = {"status": "not run", "sentence": "fid needs a <file>", "provenance": None}
    return {
        "schema": "crdiff-scores",
        "schema_version": 1,
        "written": "2026-01-01T00:00:00+00:00",
        "crdiff_version": "0",
        "environment": {},
        "protocol": {"name": "native", "what": "every image at the size it was drawn"},
        "reference": {"kind": "images", "name": "val<2014>", "n": 5000, "sha256": "0" * 64},
        "model": {},
        "prompts": {},
        "metrics": [
            metric("image-reward"),
            metric("kid"),
            metric("embedded_frechet", own_reference="512 <renders>"),
            metric("fid", **lacking),
        ],
        "cells": [
            cell("dense", image_reward=entry(0.5, None, None), kid=entry(0.25, None, None)),
            cell(
                "crdiff",
                image_reward=entry(0.75, (0.125, 0.375), 0.8125),
                kid=entry(0.5, (0.125, 0.375), None),
                embedded_frechet=entry(61.5, (-4.0, 2.0), None),
            ),
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=["dense", "crdiff"])
    data = scores()
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    (tmp_path / "scores.json").write_text(json.dumps(data))
    return tmp_path


def section(page: str) -> str:
    return page.partition("<h2>Scores of crdiff score</h2>")[2].partition("<h2>")[0]


def test_every_scorers_table_is_shown(folder: Path) -> None:
    shown = section(page_html(read_source(folder)))
    heads = re.findall(r"<th>([^<]*&nbsp;[↑↓])(<br><span class=\"tag\">[^<]*)?", shown)
    assert heads == [
        ("ImageReward&nbsp;↑", ""),
        ("KID&nbsp;↓", ""),
        ("embedded Fréchet distance&nbsp;↓", '<br><span class="tag">stand-in, embedded model'),
    ]
    assert "Protocol native: every image at the size it was drawn." in shown
    assert "Reference: val&lt;2014&gt; (images, 5000 images)." in shown
    values = re.findall(r"<td>(.*?)</td>", shown)
    assert values[0] == '0.500<span class="delta">n = 16</span>'
    assert values[2] == "–"
    rises, falls, neither = values[3:6]
    assert '0.750<span class="delta good">+0.250 [+0.125, +0.375], n = 8</span>' in rises
    assert "better than dense: 81.2 %" in rises
    assert "best of all: 31.2 %" in rises
    assert '<span class="delta bad">+0.25000 [+0.12500, +0.37500], n = 8</span>' in falls
    assert '61.5<span class="delta">−1.0 [−4.0, +2.0], n = 8</span>' in neither
    assert "FID: not run: fid needs a &lt;file&gt;" in shown
    assert "Compared with 512 &lt;renders&gt;." in shown
    assert f"weights.bin: SHA-256 {'ab' * 32}." in shown
    assert "<crdiff>" not in shown


def test_a_layout_from_another_version_is_named(folder: Path) -> None:
    (folder / "scores.json").write_text('{"cells": 3}')
    shown = section(page_html(read_source(folder)))
    assert "scores.json in . has a layout that this version does not know" in shown
    assert "<table" not in shown


@pytest.mark.parametrize("name", SCORERS)
def test_only_the_embedded_models_scores_are_stand_ins(name: str) -> None:
    assert is_stand_in(metric(name)) == name.startswith("embedded")


@pytest.mark.slow
def test_curves_of_real_searches(tmp_path: Path) -> None:
    """Figure 7b from what ``crdiff search`` writes, block-wise and uniform, in one chart."""
    for name, more in (("blocks", []), ("one", ["--uniform"])):
        command = ["search", "--size", "32x32", "--out", str(tmp_path / name), "--steps", "1"]
        command += ["--captions", "2", "--held-out", "2", "--iterations", "3", *more]
        assert main(command) == 0
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h2>Search of the ratios</h2>") == 1
    assert "layout that this version does not know" not in page
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 1
    for name, what in (("blocks", "block-wise ratios"), ("one", "one shared ratio")):
        record = json.loads((tmp_path / name / "search.json").read_text())
        assert record["searched"] == what
        assert f"{what} (anneal, seed 0, {name})" in charts[0]
        best = [trial["best_so_far"] for trial in record["trials"]]
        assert best == sorted(best)
        assert [trial["images"] for trial in record["trials"]] == [2, 4, 6, 8]
        assert f"32x32 ({name})" in page
