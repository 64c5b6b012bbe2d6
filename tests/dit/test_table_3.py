"""``crdiff tables 3`` on small SD3 and FLUX models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import scorers
from harness.cli import main
from tests.scorers.fake import Brightness


class FakeReward(Brightness):
    name = "image-reward"


@pytest.fixture
def fake_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(names: Sequence[str], *given: Any) -> list[Any]:
        others = scorers.get_scorers([n for n in names if n != "image-reward"], *given)
        return [*others, FakeReward()]

    monkeypatch.setattr("harness.tables.scoring.get_scorers", some)


def table(out: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    found = json.loads((out / "tables.json").read_text())["tables"]
    (three,) = [one for one in found if one["table"] == "3"]
    return {
        tuple(row["labels"]): dict(zip(three["columns"], row["entries"], strict=True))
        for row in three["rows"]
    }


def preset(family: str, size: int) -> dict[str, Any]:
    ratios = dict.fromkeys(("down", "mid", "up"), 0.3)
    about = {"source": "a test", "model": "random weights"}
    return {"family": family, "height": size, "width": size, "ratios": ratios, **about}


@pytest.mark.usefixtures("fake_reward")
def test_table_3_runs_when_the_models_are_given(
    folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    prompts, mine, out = tmp_path / "p.txt", tmp_path / "mine.json", tmp_path / "out"
    prompts.write_text("a cat\na dog\n")
    words = ["tables", "3", "--prompts", str(prompts), "--steps", "1", "--presets", str(mine)]
    words += ["--weights", str(tmp_path / "none"), "--out", str(out)]
    words += [
        "--model",
        f"SD3Medium={folders['sd3']}",
        "--model",
        f"FLUX.dev={folders['flux-dev']}",
    ]
    mine.write_text(json.dumps({"version": 1, "presets": [preset("sd3", 512)]}))
    assert main([*words, "--size", "512x512"]) == 0
    rows = table(out)
    assert list(rows) == [("SD3Medium", "512x512")]
    entries = rows["SD3Medium", "512x512"]
    dense, ours = (entries[f"ImageReward ↑ {name}"] for name in ("Dense", "CR-Diff"))
    assert (dense["paper"], ours["paper"]) == (0.972, 1.038)
    assert dense["ours"]["n"] == ours["ours"]["n"] == 2
    assert dense["ours"]["value"] != ours["ours"]["value"]
    assert [line["label"] for line in ours["more"]] == ["CR-Diff less Dense", "prompts improved, %"]
    results = json.loads((out / "sd3medium" / "results.json").read_text())
    assert {cell["method"] for cell in results["cells"]} == {"dense", "crdiff"}
    assert results["cells"][1]["drawing"]["ratios"] == dict.fromkeys(("down", "mid", "up"), 0.3)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_reward")
def test_table_3_of_flux_at_its_native_size(folders: dict[str, Path], tmp_path: Path) -> None:
    prompts, mine, out = tmp_path / "p.txt", tmp_path / "mine.json", tmp_path / "out"
    prompts.write_text("a cat\na dog\n")
    mine.write_text(json.dumps({"version": 1, "presets": [preset("flux-dev", 1024)]}))
    words = ["tables", "3", "--prompts", str(prompts), "--steps", "1", "--presets", str(mine)]
    words += ["--weights", str(tmp_path / "none"), "--out", str(out)]
    assert main([*words, "--model", f"FLUX.dev={folders['flux-dev']}"]) == 0
    entries = table(out)["FLUX.dev", "1024x1024"]
    dense, ours = (entries[f"ImageReward ↑ {name}"] for name in ("Dense", "CR-Diff"))
    assert (dense["paper"], ours["paper"]) == (0.945, 0.935)
    assert dense["ours"]["value"] != ours["ours"]["value"]


@pytest.mark.usefixtures("fake_reward")
def test_table_3_says_what_is_missing(
    folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    """Without a stored ratio CR-Diff's column is empty, and never dense under its name."""
    prompts, out = tmp_path / "p.txt", tmp_path / "out"
    prompts.write_text("a cat\na dog\n")
    words = ["tables", "3", "--prompts", str(prompts), "--steps", "1", "--out", str(out)]
    words += ["--weights", str(tmp_path / "none"), "--size", "512x512"]
    assert main([*words, "--model", f"SD3Medium={folders['sd3']}"]) == 0
    entries = table(out)["SD3Medium", "512x512"]
    assert entries["ImageReward ↑ Dense"]["ours"]["value"] is not None
    ours = entries["ImageReward ↑ CR-Diff"]["ours"]
    assert ours["value"] is None
    assert ours["reason"] == "not available: 512x512: no stored ratios for SD3: search or set them"
