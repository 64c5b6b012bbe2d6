"""How ``crdiff score`` names cells that drew dense images, or were told to act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.commands.score import lines
from tests.scorers.fake import Brightness
from tests.scorers.test_score_command import edit, make_run, scored


def test_dense_images_under_another_name_are_called_inactive(tmp_path: Path, pictures: Any) -> None:
    """As of CR-Diff where nothing is stored and no dense cell is beside it; forced ones too."""
    dense, forced = {"kind": "dense", "told_size": None}, {"kind": "amplified"}

    def change(results: Any) -> None:
        del results["cells"][0]
        results["cells"][0] |= {"drawing": dense, "forced": False}
        results["cells"][1] |= {"drawing": forced, "forced": True}

    run = make_run(tmp_path / "run", pictures)
    edit(run, change)
    scores = scored(run, Brightness())
    assert [cell["drawing"] for cell in scores["cells"]] == [dense, forced]
    assert [cell["forced"] for cell in scores["cells"]] == [False, True]
    said = "\n".join(lines(scores))
    assert "\n  Crdiff (inactive) " in said
    assert "\n  Native-resize (forced) " in said
    assert "best of all: Crdiff (inactive) " in said


def test_scores_that_say_no_drawing_are_told_too(tmp_path: Path, pictures: Any) -> None:
    run = make_run(tmp_path / "run", pictures)
    scores = scored(run, Brightness())
    for cell in scores["cells"]:
        del cell["drawing"], cell["forced"]  # as files of before
    scores["cells"][1]["same_as"] = "24x16/dense"
    said = "\n".join(lines(scores))
    assert "\n  Crdiff = dense " in said
    assert "inactive" not in said
