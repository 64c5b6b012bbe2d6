"""A worker of a search: resumes to the same trials, shares a study, gives up what is hopeless."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule
from harness.searching.run import Worker
from harness.searching.sampler import (
    AnnealSampler,
    best_trial,
    counts,
    values_of,
    was_stopped,
    worker_of,
)
from harness.searching.study import claimed_worker, open_storage, open_study
from tests.search.synthetic import CAPTIONS, Synthetic, config, study_in, told, work

CHILD = Path(__file__).with_name("child.py")


def start_child(folder: Path, number: int, sampler: str, seconds: float, *more: str):
    words = [sys.executable, str(CHILD), str(folder), str(number), sampler, str(seconds), *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sampler", ["anneal", "tpe"])
def test_a_killed_search_resumes_to_the_same_trials(tmp_path: Path, sampler: str) -> None:
    whole = told(work(tmp_path / "whole", config(sampler, 12)))
    cut = tmp_path / "cut"
    child = start_child(cut, 0, sampler, 0.05)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 13:  # in the middle of the fourth or a later state
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    before = [t for t in study_in(cut, config(sampler, 12)).get_trials() if counts(t)]
    assert 0 < len(before) < len(whole)
    assert told(work(cut, config(sampler, 12))) == whole


@pytest.mark.parametrize("sampler", ["anneal", "tpe"])
@pytest.mark.parametrize("die_at", [0, 1, 4, 13])
def test_interrupted_anywhere_it_ends_the_same(tmp_path: Path, sampler: str, die_at: int) -> None:
    class Dying(Synthetic):
        def values(self, state, batch):
            if len(self.asked) == die_at:
                raise KeyboardInterrupt
            return super().values(state, batch)

    settings = config(sampler, 8)
    whole = told(work(tmp_path / "whole", settings))
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "cut", settings, objective=Dying())
    assert told(work(tmp_path / "cut", settings)) == whole


def test_two_processes_share_a_study_and_repeat_nothing(tmp_path: Path) -> None:
    """In a space of 21 states, where two chains that don't look would surely meet."""
    children = [start_child(tmp_path, number, "anneal", 0.01, "tiny") for number in (0, 1)]
    assert [child.wait() for child in children] == [0, 0]
    trials = [t for t in optuna_trials(tmp_path) if counts(t)]
    assert {worker_of(trial) for trial in trials} == {0, 1}
    ratios = [round(trial.params["shared"], 4) for trial in trials]
    assert len(ratios) == len(set(ratios)) >= 12
    assert ratios.count(0.0) == 1  # dense is drawn once for both


def test_one_process_at_a_time_makes_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def slow(url: str, engine_kwargs: dict) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.1)
        inside.pop()

    monkeypatch.setattr(optuna.storages, "RDBStorage", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: open_storage(None, tmp_path), range(3)))
    assert most == [1, 1, 1]


def optuna_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The study as any other tool of Optuna reads it: by URL and name, without our code."""
    return optuna.load_study(study_name="test", storage=f"sqlite:///{folder / 'study.db'}").trials


def test_a_race_for_one_state_is_given_up_by_the_later_one(tmp_path: Path) -> None:
    settings = config("anneal", 6)
    study = study_in(tmp_path, settings)
    first, second = (Worker(study, settings, Synthetic(), number) for number in (0, 1))
    one = first.ask()
    assert one is not None
    study.enqueue_trial(one.params)  # as if both had asked before either told the study
    two = study.ask(fixed_distributions=first.space)
    two.set_user_attr("worker", 1)
    assert second._is_repeated(two)
    assert not first._is_repeated(one)


@pytest.mark.parametrize("sampler", ["anneal", "tpe", "gp", "cmaes"])
def test_every_sampler_searches(tmp_path: Path, sampler: str) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    worker = work(tmp_path, config(sampler, 14, schedule=Schedule(iterations=14, temperature=0.02)))
    trials = worker.study.get_trials()
    best = best_trial(trials)
    assert best is not None
    dense = trials[0]
    assert dense.params == {"down": 0.0, "mid": 0.0, "up": 0.0}
    assert dense.value == pytest.approx(0.0, abs=1e-9)
    assert len(trials) == 15
    assert trials[1].params == {"down": 0.3, "mid": 0.3, "up": 0.3}


def test_the_brisk_temperature_is_the_noise_of_the_first_two_states(tmp_path: Path) -> None:
    rule = Schedule(iterations=16).brisk()
    worker = work(tmp_path / "whole", config(schedule=rule))
    dense, start = worker.study.get_trials()[:2]
    values = [np.array(list(values_of(trial).values())) for trial in (dense, start)]
    error = np.std(values[1] - values[0], ddof=1) / np.sqrt(CAPTIONS)
    chain = AnnealSampler(rule, 0, 0).chain(worker.study.get_trials())
    assert chain.trials[2].temperature == pytest.approx(error * 0.95)
    assert chain.trials[1].noise == pytest.approx(error)
    # ... which a search that goes on finds again
    part = Worker(study_in(tmp_path / "part", worker.config), worker.config, Synthetic())
    for _ in range(6):
        part.evaluate(part.ask())
    assert told(work(tmp_path / "part", worker.config)) == told(worker)


def test_a_given_up_state_is_never_the_best_and_saves_images(tmp_path: Path) -> None:
    hot = Schedule(iterations=40, temperature=0.01, step=0.4, step_floor=0.2, high=0.9)
    eager, patient = Synthetic(), Synthetic()
    worker = work(tmp_path / "stop", config(schedule=hot), objective=eager)
    work(tmp_path / "all", config(schedule=hot, stop=False), objective=patient)
    stopped = [trial for trial in worker.mine() if was_stopped(trial)]
    assert stopped
    assert len(eager.asked) < 0.9 * len(patient.asked)
    best = best_trial(worker.mine())
    assert best is not None
    assert all(trial.value < best.value for trial in stopped)
    # ... and the chain ends where the one that saw everything ends
    ends = [
        best_trial(
            study_in(tmp_path / name, config(schedule=hot, stop=name == "stop")).get_trials()
        ).value
        for name in ("stop", "all")
    ]
    assert ends[0] == pytest.approx(ends[1], abs=0.05)


def test_a_failed_evaluation_is_no_score(tmp_path: Path) -> None:
    rule = Schedule(start=(0.3, 0.3, 0.1), iterations=20, step=0.3, step_floor=0.2)
    worker = work(tmp_path, config(schedule=rule), objective=Synthetic(fails=0.15))
    failed = [t for t in worker.mine() if t.state == optuna.trial.TrialState.FAIL]
    assert failed
    assert all(trial.value is None for trial in failed)
    assert all("not numbers" in trial.user_attrs["failure"] for trial in failed)
    chain = AnnealSampler(rule, 0, 0).chain(worker.mine())
    assert not any(trial.accepted for trial in chain.trials if trial.score is None)


def test_other_settings_are_told(tmp_path: Path) -> None:
    study_in(tmp_path, config())
    with pytest.raises(CRDiffError, match=r"other settings \(captions, steps\)"):
        study_in(tmp_path, config(captions=16, steps=3))
    more = config("tpe", 10)
    open_study(open_storage(None, tmp_path), "more", more.settings())
    open_study(open_storage(None, tmp_path), "more", config("tpe", 20).settings())  # only longer


def test_damage_and_bad_storage_are_told(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CRDiffError, match="damaged or no SQLite file"):
        open_storage(None, tmp_path)
    (tmp_path / "garbage.log").write_bytes(b"no journal\n")
    (tmp_path / "two.log").write_bytes(b"no journal\nat all\n")
    (tmp_path / "other.log").write_text('{"a": 1}\n')
    for where in (
        "nosuch://x",
        "journal:",
        f"journal:{tmp_path}/garbage.log",
        f"journal:{tmp_path}/two.log",
        f"journal:{tmp_path}/other.log",
        f"journal:{tmp_path}/nowhere/x.log",
        f"journal:{tmp_path}",
    ):
        with pytest.raises(CRDiffError, match=r"can't be used .*: give --storage"):
            open_storage(where, tmp_path)


def test_a_journal_file_serves_as_well(tmp_path: Path) -> None:
    settings = config("anneal", 5)
    journal = f"journal:{tmp_path / 'study.log'}"
    for _ in range(2):  # the second goes on with a finished search
        study = open_study(open_storage(journal, tmp_path), "test", settings.settings())
        worker = Worker(study, settings, Synthetic())
        worker.run()
    assert told(worker) == told(work(tmp_path / "sqlite", settings))


def test_a_second_process_gets_a_chain_of_its_own(tmp_path: Path) -> None:
    with claimed_worker(tmp_path) as number, claimed_worker(tmp_path) as other:
        assert (number, other) == (0, 1)
        with pytest.raises(CRDiffError, match="running already"), claimed_worker(tmp_path, 0):
            pass
    with claimed_worker(tmp_path) as again:
        assert again == 0


def test_chains_differ_by_worker_and_meet_at_restarts(tmp_path: Path) -> None:
    rule = Schedule(iterations=14, patience=3, reheats=0, temperature=1e-4)
    settings = config(schedule=rule)
    zero, one = work(tmp_path, settings, 0), work(tmp_path, settings, 1)
    best = best_trial(zero.mine())
    assert best is not None
    starts = [told(worker)[0] for worker in (zero, one)]
    assert starts[0] != starts[1]
    chain = one.study.sampler
    assert isinstance(chain, AnnealSampler)
    assert chain.annealer.baseline == pytest.approx(0.0, abs=1e-9)  # dense, from worker 0
