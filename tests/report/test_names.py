"""A method that drew dense images says so wherever it is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.report import pairs
from harness.report.page import page_html
from harness.report.source import read_source
from harness.report.text import cell_name
from tests.report.folders import write_run
from tests.report.test_scored import cell, section
from tests.report.test_scored import scores as made_scores

IDLE = {"kind": "dense", "ratios": None, "k": 1.5, "source_size": None, "criterion": None}


@pytest.fixture
def idle(tmp_path: Path) -> Path:
    """A run without dense whose CR-Diff had nothing stored, a copy of it, and its scores.json."""
    methods = ["crdiff", "wanda", "pruned"]
    results = write_run(tmp_path, prompts=2, sizes=[(16, 16)], methods=methods)
    crdiff, wanda, _ = results["cells"]
    crdiff["drawing"] = wanda["drawing"] = IDLE
    wanda["same_as"] = crdiff["id"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    scores = made_scores()
    scores["cells"] = [{**scores["cells"][1], "forced": False, "drawing": IDLE}]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    return tmp_path


def test_the_gallery_calls_dense_images_inactive(idle: Path) -> None:
    page = page_html(read_source(idle))
    assert set(re.findall(r"<figcaption><b>(.*?)</b>", page)) == {
        "CR-Diff (inactive)",
        "Pruned only",
    }
    assert set(re.findall(r'data-label="(.*?)"', page)) == {"CR-Diff (inactive)", "Pruned only"}
    spoken = re.findall(r'<img src="data:[^"]*"[^>]* alt="([^,]*), ', page)
    assert set(spoken) == {"CR-Diff (inactive)", "Pruned only"}
    assert "Wanda: same images as CR-Diff (inactive). 2 of 2 prompts" in page
    assert "pairs with CR-Diff (inactive))" in page


def test_why_a_case_is_shown_names_the_inactive(tmp_path: Path) -> None:
    results = write_run(tmp_path, prompts=9, sizes=[(16, 16)], methods=["crdiff", "pruned"])
    results["cells"][0]["drawing"] = IDLE
    (tmp_path / "results.json").write_text(json.dumps(results))
    (chosen,) = pairs.choose(read_source(tmp_path), 3)
    reasons = [case.why for case in chosen.cases if case.why != pairs.AT_RANDOM]
    assert reasons
    assert all("Pruned only less CR-Diff (inactive), " in why for why in reasons)


def test_the_scored_table_calls_them_inactive(idle: Path) -> None:
    assert "<th>&lt;crdiff&gt; (inactive)</th>" in section(page_html(read_source(idle)))


def test_the_scored_table_marks_what_was_told_to_act(idle: Path) -> None:
    file = idle / "scores.json"
    scores = json.loads(file.read_text())
    scores["cells"][0] |= {"forced": True, "drawing": {**IDLE, "kind": "amplified"}}
    file.write_text(json.dumps(scores))
    assert "<th>&lt;crdiff&gt; (forced)</th>" in section(page_html(read_source(idle)))


@pytest.mark.parametrize("more", [{}, {"drawing": None}])
def test_scores_of_before_have_no_mark(more: dict[str, Any]) -> None:
    assert cell_name(cell("crdiff") | more) == "<crdiff>"
    assert cell_name(cell("crdiff") | more | {"same_as": "64x64/dense"}) == "<crdiff> = dense"
