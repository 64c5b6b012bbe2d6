"""What `crdiff search` stores of its outcome, and what it takes back of an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import load_presets
from crdiff_ext.schedule import State
from crdiff_ext.settings import Ratios
from harness.cli import main
from harness.config import Size
from harness.searching.authors import read_config, write_config
from harness.searching.objective import Tally
from harness.searching.outcome import Outcome
from tests.search.synthetic import Synthetic


class Cheap(Synthetic):
    """As the search command asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.tally = Tally()

    def finish(self) -> None:
        pass


def with_held_out(difference: tuple[float, float, float]) -> Outcome:
    """A best that is not dense, whose paired difference is low, estimate, high."""
    low, estimate, high = difference
    interval = {"low": low, "estimate": estimate, "high": high}
    held = {"captions": 2, "dense": 0.0, "score": estimate, "difference": interval}
    return Outcome(State(Ratios(0.4, 0.2, 0.1), 1.5), 0.3, 0.1, held)


def search_with(monkeypatch: pytest.MonkeyPatch, outcome: Outcome, out: Path, *more: str) -> None:
    """`crdiff search` whose model, reward and conclusion are given; all else is the command's."""
    workshop = SimpleNamespace(
        family=FAMILIES["embedded"],
        label="toy",
        size=Size(64, 96),
        sampling=SimpleNamespace(model_hash="hash", guidance=3.0, batch=8),
        reward_name="synthetic",
    )
    monkeypatch.setattr("harness.commands.search._open", lambda *_: workshop)
    monkeypatch.setattr("harness.commands.search._objectives", lambda *_: (Cheap(), Cheap()))
    monkeypatch.setattr("harness.searching.outcome.conclude", lambda *_: outcome)
    flags = "--size 64x96 --captions 32 --held-out 2 --iterations 2 --out"
    assert main(["search", *flags.split(), str(out), *more]) == 0


WON, LOST = (0.1, 0.2, 0.3), (-0.3, -0.2, -0.1)
REFUTED = "worse than dense on captions that took no part"
NOTHING = Outcome(State(Ratios(0, 0, 0), 1.5), 0.1, 0.1, None)


@pytest.mark.parametrize(
    ("lost", "told"),
    [(with_held_out(LOST), REFUTED), (NOTHING, "dense's 0.100 was not beaten")],
    ids=["refuted", "dense"],
)
def test_the_command_stores_what_won_and_takes_back_what_lost(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lost: Outcome,
    told: str,
) -> None:
    out, theirs = tmp_path / "out", tmp_path / "config.json"
    presets, more = out / "presets.json", ("--write-config", str(theirs))
    search_with(monkeypatch, with_held_out(WON), out, *more)
    assert told not in capsys.readouterr().out
    assert [preset.ratios for preset in load_presets(presets)] == [Ratios(0.4, 0.2, 0.1)]
    assert read_config(theirs) == (Ratios(0.4, 0.2, 0.1), Size(64, 96))
    search_with(monkeypatch, lost, out, *more)
    said = capsys.readouterr().out
    assert told in said
    assert f"removed: {theirs}" in said
    assert not presets.exists()
    assert not theirs.exists()
    search_with(monkeypatch, lost, out, *more)  # nothing there to take back
    assert "removed" not in capsys.readouterr().out


def test_a_gain_that_is_not_confirmed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search_with(monkeypatch, with_held_out(WON), tmp_path / "won")
    assert "not confirmed" not in capsys.readouterr().out
    (won,) = load_presets(tmp_path / "won" / "presets.json")
    assert won.source == "crdiff search, 32 captions"
    search_with(monkeypatch, with_held_out((-0.1, 0.1, 0.3)), tmp_path / "open")
    assert "not confirmed" in capsys.readouterr().out
    (unsure,) = load_presets(tmp_path / "open" / "presets.json")
    assert unsure.source == "crdiff search, 32 captions, gain not confirmed"


def test_what_others_wrote_to_write_config_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "config.json"
    more = ("--write-config", str(theirs))
    for name, size, extra in (
        ("another", Size(64, 96), {}),
        ("toy", Size(64, 64), {}),
        ("toy", Size(64, 96), {"pruning_method": "ratio"}),
    ):
        write_config(theirs, name, size, Ratios(0.1, 0.1, 0.1), 0.5)
        theirs.write_text(json.dumps(json.loads(theirs.read_text()) | extra))
        before = theirs.read_bytes()
        search_with(monkeypatch, with_held_out(LOST), tmp_path / "out", *more)
        assert f"{theirs} is left as it was: no search" in capsys.readouterr().out
        assert theirs.read_bytes() == before
    write_config(theirs, "toy", Size(64, 96), Ratios(0.1, 0.1, 0.1), 0.5)
    start = ("--from-config", str(theirs))
    search_with(monkeypatch, with_held_out(LOST), tmp_path / "other", *more, *start)
    assert "the search started from it" in capsys.readouterr().out
    assert theirs.exists()
