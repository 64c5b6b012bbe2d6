"""What a search leaves behind: a confirmed preset, search.json, the authors' config.json."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule, State
from crdiff_ext.settings import Ratios
from harness.cli import main
from harness.config import Size
from harness.embedded.scenes import caption, prompt_set
from harness.searching.authors import read_config, write_config
from harness.searching.objective import Tally
from harness.searching.outcome import conclude, preset_of, report
from harness.searching.sampler import WORKER, space
from harness.searching.study import concluding
from harness.searching.telling import Clock
from harness.searching.texts import split_prompts
from tests.search.synthetic import Synthetic, config, work

COOL = Schedule(start=(0.55, 0.3, 0.2), iterations=20, temperature=0.01)


def test_the_preset_was_confirmed_and_says_where_it_comes_from(tmp_path: Path) -> None:
    settings = config(schedule=COOL, held_out=32)
    worker = work(tmp_path, settings)
    confirm = Synthetic()
    outcome = conclude(worker.study, settings, confirm)
    assert outcome is not None
    assert (outcome.beats_dense, outcome.confirmed, outcome.refuted) == (True, True, False)
    assert {state for state, _ in confirm.asked} == {outcome.best, COOL.dense}
    preset = preset_of(outcome, settings, worker.study, "embedded", "the embedded model")
    assert (preset.family, preset.height, preset.width) == ("embedded", 64, 64)
    assert preset.ratios == outcome.best.ratios
    said = json.loads(json.dumps(preset.to_dict()))["provenance"]
    assert said["search_score_dense"] == pytest.approx(0.0, abs=1e-9)
    assert said["search_score"] == outcome.score > 0
    held = said["held_out"]
    assert held["difference"]["low"] <= held["score"] - held["dense"] <= held["difference"]["high"]
    for name in ("model_hash", "prompts_sha256", "captions", "seeds", "sampler", "states"):
        assert said[name] not in (None, "")
    again = Synthetic()
    assert conclude(worker.study, settings, again) == outcome
    assert not again.asked  # the confirmation is kept in the study


def test_where_dense_wins_nothing_is_offered(tmp_path: Path) -> None:
    class Worse(Synthetic):
        def values(self, state: State, batch: int) -> np.ndarray:
            values = super().values(state, batch)
            return values if state.is_dense else values - 9

    settings = config(iterations=6)
    worker = work(tmp_path, settings, objective=Worse())
    outcome = conclude(worker.study, settings, Worse())
    assert outcome is not None
    assert not outcome.beats_dense
    assert outcome.held_out is None


def test_what_held_out_captions_call_worse_is_refuted(tmp_path: Path) -> None:
    class Elsewhere(Synthetic):
        """Captions on which whatever is not dense loses."""

        def values(self, state: State, batch: int) -> np.ndarray:
            values = super().values(state, batch)
            return values if state.is_dense else values - 9

    settings = config(schedule=COOL, held_out=32)
    worker = work(tmp_path, settings)
    lost = conclude(worker.study, settings, Elsewhere())
    assert lost is not None
    assert (lost.beats_dense, lost.confirmed, lost.refuted) == (True, False, True)


def test_a_better_state_that_comes_meanwhile_is_the_one_that_is_confirmed(tmp_path: Path) -> None:
    """Another worker beats the best while its held-out images are drawn."""
    settings = config(schedule=COOL, held_out=32)
    worker = work(tmp_path, settings)
    better = {"down": 0.41, "mid": 0.23, "up": 0.37}

    class Meanwhile(Synthetic):
        def values(self, state: State, batch: int) -> np.ndarray:
            if not self.asked:
                trial = optuna.trial.create_trial(
                    params=better, distributions=space(COOL), value=9.0, user_attrs={WORKER: 1}
                )
                worker.study.add_trial(trial)
            return super().values(state, batch)

    outcome = conclude(worker.study, settings, Meanwhile())
    assert outcome is not None
    assert outcome.best.ratios == Ratios(**better)
    assert outcome.held_out is not None
    assert outcome.held_out["state"] == outcome.best.as_dict()
    later = Synthetic()
    assert conclude(worker.study, settings, later) == outcome
    assert not later.asked  # whoever comes next draws nothing


def test_one_process_at_a_time_concludes(tmp_path: Path) -> None:
    events: list[str] = []

    def other() -> None:
        with concluding(tmp_path):
            events.append("other")

    with concluding(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        events.append("this")
    thread.join(10)
    assert events == ["this", "other"]


def test_the_curve_rises_and_counts_images(tmp_path: Path) -> None:
    settings = config(schedule=Schedule(iterations=20, uniform=True))
    worker = work(tmp_path, settings)
    data = json.loads(json.dumps(report(worker.study, settings, None, {}), allow_nan=False))
    best = [row["best_so_far"] for row in data["trials"]]
    images = [row["images"] for row in data["trials"]]
    assert best == sorted(best)
    assert images[-1] == 8 * len(worker.objective.asked)
    assert data["searched"] == "one shared ratio"
    assert all(len(set(row["ratios"].values())) == 1 for row in data["trials"])


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_the_cost_in_cpu_seconds_has_no_waiting_and_all_work_beyond_drawing() -> None:
    clock, tally = Clock(), Tally()
    with tally.working():
        burn(0.1)
    time.sleep(0.2)  # as where another process has the machine
    assert clock.cost(tally)["cpu_share_beyond"] < 0.2
    assert clock.cost(tally)["seconds"] >= 0.3
    burn(0.1)
    assert 0.4 < clock.cost(tally)["cpu_share_beyond"] < 0.6


def test_the_dashboard_is_told_what_a_value_is(tmp_path: Path) -> None:
    study = work(tmp_path, config(iterations=3)).study
    assert study.metric_names == ["mean synthetic"]
    assert study.direction.name == "MAXIMIZE"


def test_the_authors_file_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(path, "sdxl", Size(512, 768), Ratios(0.4, 0.2, 0.1), 0.7)
    theirs = json.loads(path.read_text())["best_global_params_ratio"]
    assert theirs == {"down_ratio": 0.4, "mid_ratio": 0.2, "up_ratio": 0.1}
    assert read_config(path) == (Ratios(0.4, 0.2, 0.1), Size(512, 768))


def test_the_authors_file_of_a_transformer_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(path, "sd3", Size(512, 768), Ratios(0.2, 0.2, 0.2), 0.7, is_dit=True)
    written = json.loads(path.read_text())
    assert written["best_global_params_sd3"] == {"shared_ratio": 0.2}
    assert "best_global_params_ratio" not in written
    assert read_config(path) == (Ratios(0.2, 0.2, 0.2), Size(512, 768))
    with pytest.raises(CRDiffError, match="one ratio for all layers"):
        write_config(path, "sd3", Size(512, 768), Ratios(0.2, 0.2, 0.1), 0.7, is_dit=True)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"pruning_method": "magnitude", "best_global_params_ratio": {}}, "magnitude thresholds"),
        ({"best_global_params_sd3": {"down_ratio": 0.2}}, "best_global_params_sd3 with shared_"),
        ({"best_global_params_sd3": {"shared_ratio": 1.2}}, "at least 0 and below 1"),
        ({"best_global_params_ratio": {"down_ratio": 0.1}}, "down_ratio"),
    ],
)
def test_other_files_of_theirs_are_refused(tmp_path: Path, data: dict, told: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CRDiffError, match=told):
        read_config(path)


def test_judging_and_confirming_captions_differ_and_the_demos_are_in_neither(
    tmp_path: Path,
) -> None:
    texts = [prompt.text for prompt in split_prompts(None, 32, 128, 0).prompts]
    assert len(set(texts)) == 160
    assert not set(texts) & {caption(spec) for spec in prompt_set("eval", 256)}
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"prompt {i % 9}" for i in range(20)))
    own = [prompt.text for prompt in split_prompts(file, 4, 5, 0).prompts]
    assert sorted(own) == sorted({f"prompt {i}" for i in range(9)})
    assert own != sorted(own)
    with pytest.raises(CRDiffError, match="9 different prompts"):
        split_prompts(file, 5, 5, 0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("search --size big", "height x width"),
        ("search", "no size"),
        ("search --size 64x64 --captions 1", "at least 2"),
        ("search --size 64x64 --k 4", "k is 4"),
        ("search --size 64x64 --search-k 2", "lowest and the highest"),
        ("search --size 64x64 --set heat=1", "no setting 'heat'"),
        ("search --size 64x64 --set step", "not understood"),
        ("search --size 64x64 --set iterations=3.5", "iterations is 3.5: a whole number"),
        ("search --size 64x64 --set start=[0.1,0.2]", "a list of 3 numbers"),
        ("search --size 64x64 --set start=0.1", "a list of 3 numbers"),
        ("search --size 64x64 --set k_range=[1,2,3]", "a list of 2 numbers"),
        ("search --size 64x64 --k 0", "k is 0, which is the dense model"),
        ("search --size 64x64 --write-config .", "is a folder: give --write-config a file"),
        ("search --size 64x64 --storage journal:/", "can't be used"),
        ("search --size 64x64 --reward nope", "the reward 'nope' is not known: use one of clip"),
        ("search --size 64x64 --sampler best", "not known"),
        ("search --size 64x64 --model sdxl", "give --prompts"),
        ("refine phoenix --size 64x64", "does not understand 'phoenix'"),
        ("refine phoenix --size 64x64 --seeds 0", "at least 1"),
        ("refine phoenix --size 64x64 --budget 5", "6 are needed"),
        ("refine phoenix --size 64x64 --k 0 --fix-k", "k is 0, which is the dense model"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    assert main([*words.split(), "--out", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_search_command_draws_scores_and_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    flags = "--size 64x64 --captions 2 --held-out 2 --steps 2 --iterations 2 --batch 2"
    words = ["search", *flags.split(), "--out", str(tmp_path)]
    assert main(words) == 0
    first = json.loads((tmp_path / "search.json").read_text())
    assert "this process drew" in capsys.readouterr().out
    lines = [text for text in caplog.messages if text.startswith("state ")]
    assert [text.partition(",")[0] for text in lines] == [f"state {n} of at most 3" for n in "123"]
    assert "0 / 0 / 0" in lines[0]
    assert main(words) == 0  # everything is there already
    assert "this process drew" not in capsys.readouterr().out
    second = json.loads((tmp_path / "search.json").read_text())
    assert first.pop("cost") != second.pop("cost")
    assert first == second
    assert len(first["trials"]) == 3
    won = first["best"]["state"] != first["trials"][0]["ratios"] | {"k": 1.5}
    refuted = won and first["held_out"]["difference"]["high"] < 0
    assert (tmp_path / "presets.json").exists() == (won and not refuted)
    assert main([*words, "--captions", "3"]) == 2  # another search than the folder's
    assert "other settings (captions" in capsys.readouterr().err


@pytest.mark.slow
def test_refine_draws_keeps_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--size",
        "64x64",
        "--budget",
        "4",
        "--seeds",
        "1",
        "--fresh",
        "1",
        "--steps",
        "2",
        "--out",
    ]
    assert main(["refine", "a red circle", *words, str(tmp_path)]) == 0
    assert "refined" in capsys.readouterr().out
    result = json.loads((tmp_path / "refine.json").read_text())
    assert [row["kind"] for row in result["rounds"]][:3] == ["dense", "start", "candidate"]
    scores = [row["score"] for row in result["rounds"]]
    assert result["best"]["score"] == max(scores)
    names = {file.name for file in tmp_path.glob("*.png")}
    assert names == {"before-0.png", "stored-0.png", "after-0.png"}
    drawn = sorted(tmp_path.glob("images/*/*.png"))
    stamps = [file.stat().st_mtime_ns for file in drawn]
    assert main(["refine", "a red circle", *words, str(tmp_path)]) == 0
    assert json.loads((tmp_path / "refine.json").read_text()) == result
    assert sorted(tmp_path.glob("images/*/*.png")) == drawn
    assert [file.stat().st_mtime_ns for file in drawn] == stamps  # nothing was drawn again
