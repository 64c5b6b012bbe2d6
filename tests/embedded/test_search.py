"""The ratio search: goes on after a kill, confirms on other captions, stores what it confirmed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios
from harness.cli import main
from harness.embedded.scenes import caption, prompt_set
from harness.search import Objective, Search, SearchConfig

CONFIG = SearchConfig("hash", 64, 64, captions=4, held_out=6, iterations=9)


class Synthetic(Objective):
    """Scores by a formula; counts what it was asked, and can die like a killed process."""

    def __init__(self, die_at: int | None = None) -> None:
        self.config, self.asked, self.die_at = CONFIG, [], die_at

    def scores(self, ratios: Ratios | None, held_out: bool = False) -> np.ndarray:
        if len(self.asked) == self.die_at:
            raise KeyboardInterrupt
        self.asked.append((ratios, held_out))
        n = CONFIG.held_out if held_out else CONFIG.captions
        base = 0.0 if ratios is None else 1 - abs(ratios.down - 0.5)
        return base + np.arange(n) / 100


@pytest.mark.parametrize("die_at", [0, 1, 5, 10, 11])
def test_a_killed_search_ends_as_an_unbroken_one(tmp_path: Path, die_at: int) -> None:
    whole = Search(CONFIG, Synthetic(), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        Search(CONFIG, Synthetic(die_at), tmp_path / "cut").run()
    rest = Synthetic()
    assert Search(CONFIG, rest, tmp_path / "cut").run() == whole
    total = 1 + len(whole["trials"]) + 2
    assert len(rest.asked) == total - die_at + (die_at == 11)  # the confirmation is one piece


def test_the_preset_says_where_it_comes_from(tmp_path: Path) -> None:
    objective = Synthetic()
    search = Search(CONFIG, objective, tmp_path)
    search.run()
    preset = search.preset("the embedded model")
    assert (preset.family, preset.height, preset.width) == ("embedded", 64, 64)
    confirmed = [ratios for ratios, held_out in objective.asked if held_out and ratios]
    assert confirmed == [preset.ratios]
    held_out = preset.provenance["held_out"]
    assert held_out["captions"] == CONFIG.held_out
    expected = 1 - abs(preset.ratios.down - 0.5)
    assert held_out["difference"]["estimate"] == pytest.approx(expected)
    assert "not ImageReward" in preset.provenance["reward"]
    json.dumps(preset.to_dict())


def test_other_settings_or_damage_are_told(tmp_path: Path) -> None:
    Search(CONFIG, Synthetic(), tmp_path).run()
    other = SearchConfig("other model", 64, 64, captions=4, held_out=6, iterations=9)
    with pytest.raises(CRDiffError, match="other settings"):
        Search(other, Synthetic(), tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(CRDiffError, match="damaged"):
        Search(CONFIG, Synthetic(), tmp_path)


def test_judging_and_confirming_captions_differ_and_the_demos_are_in_neither() -> None:
    specs = prompt_set("search", CONFIG.captions + CONFIG.held_out)
    texts = [caption(spec) for spec in specs]
    assert len(set(texts)) == CONFIG.captions + CONFIG.held_out
    assert not set(texts) & {caption(spec) for spec in prompt_set("eval", 256)}


@pytest.mark.slow
def test_the_command_draws_scores_and_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--size 64x64 --captions 2 --held-out 2 --steps 2 --iterations 2"
    words = ["search", *flags.split()]
    assert main([*words, "--out", str(tmp_path)]) == 0
    first = capsys.readouterr().out
    assert "difference to dense" in first
    assert main([*words, "--out", str(tmp_path)]) == 0  # everything is there already
    assert capsys.readouterr().out == first
    stored = json.loads((tmp_path / "presets.json").read_text())["presets"]
    assert [entry["family"] for entry in stored] == ["embedded"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--size 63x64", "multiples of 8"),
        ("--size big", "height x width"),
        ("--size 64x64 --captions 1", "at least 2"),
        ("--size 64x64 --k 4", "k is 4"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, told: str
) -> None:
    assert main(["search", *flags.split(), "--out", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
