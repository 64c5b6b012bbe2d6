"""The annealer's course: failures, patience, reheats, restarts, and going on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from crdiff_ext.anneal import Annealer, Trial
from crdiff_ext.schedule import Schedule, State
from crdiff_ext.settings import GROUPS, Ratios
from tests.core.hills import run

PLAIN = Schedule(baseline=False)


def test_a_restart_goes_from_the_best_of_all_chains() -> None:
    search = Annealer(replace(PLAIN, patience=3, reheats=0), seed=0)
    search.ask()
    search.tell(0.5)
    for _ in range(3):
        search.ask()
        search.tell(-1000.0)
    far = State(Ratios(0.7, 0.7, 0.7))
    near = Annealer.from_dict(search.to_dict())
    jump = search.ask(elsewhere=Trial(far, 0.9, False, 0.0)).ratios.as_dict()
    assert all(0.4 <= ratio <= 0.8 for ratio in jump.values())
    own = near.ask(elsewhere=Trial(far, 0.4, False, 0.0)).ratios.as_dict()
    assert all(ratio <= 0.6 for ratio in own.values())


def test_a_restart_that_fails_goes_from_the_best_again() -> None:
    schedule = replace(PLAIN, iterations=40, patience=5, reheats=0, step=0.02, step_floor=0.02)
    search = Annealer(schedule, 3)
    search.ask()
    search.tell(9.0)  # the best from now on
    for _ in range(5):
        search.ask()
        search.tell(0.0)
    for _ in range(3):
        state = search.ask()
        search.tell(None)
        for group in GROUPS:
            assert abs(getattr(state.ratios, group) - 0.3) <= 0.02 * schedule.restart_step + 1e-4
    assert len({trial.state for trial in search.trials}) == 9


def test_a_failure_is_not_a_score() -> None:
    search = Annealer(replace(PLAIN, iterations=3), seed=0)
    search.ask()
    search.tell(None)
    assert search.best is None
    assert not search.trials[0].accepted
    search.ask()
    search.tell(-5.0)  # worse than the authors' -2.0 for a failure, yet a real score
    assert search.best is not None
    assert search.best.score == -5.0


def test_only_failures_end_the_search() -> None:
    search = Annealer(PLAIN, seed=0)
    while not search.done:
        search.ask()
        search.tell(None)
    assert len({trial.state for trial in search.trials}) == 24  # elsewhere each time
    assert len(search.trials) == 24  # the patience: nothing to restart from
    assert search.best is None


def test_patience_then_restarts_then_the_end() -> None:
    search = Annealer(replace(PLAIN, iterations=500, patience=5), seed=0)
    search.ask()
    search.tell(0.0)
    while not search.done:
        search.ask()
        search.tell(-1000.0)  # never accepted, never a best; too low for a reheat
    assert len(search.trials) == 1 + 3 * 5
    jumps = [search.trials[i].ratios.as_dict() for i in (6, 11)]
    assert all(sum(r != 0.3 for r in jump.values()) == 3 for jump in jumps)


def test_reheating_needs_a_high_score_and_is_limited() -> None:
    def temperatures(best: float) -> list[float]:
        search = Annealer(replace(PLAIN, iterations=500, patience=5, restarts=0), seed=0)
        search.ask()
        search.tell(best)
        while not search.done:
            search.ask()
            search.tell(best - 1000)
        return [trial.temperature for trial in search.trials]

    cool, hot = temperatures(0.5), temperatures(0.9)
    assert len(cool) == 6
    assert len(hot) == 1 + 4 * 5
    assert hot[6] == pytest.approx(hot[5] * 0.95 * 1.5)


def test_reheating_above_dense() -> None:
    rule = Schedule(iterations=20, patience=5, restarts=0, reheat_above=None)
    for best, length in ((0.4, 6), (0.6, 21)):
        search = Annealer(rule, seed=0)
        search.ask()
        search.tell(0.5)
        search.ask()
        search.tell(best)
        while not search.done:
            search.ask()
            search.tell(-1000.0)
        assert len(search.trials) == length


@pytest.mark.parametrize("stop", [0, 1, 17, 60])
def test_a_stopped_search_goes_on_as_if_it_had_not(stop: int) -> None:
    whole = run(Annealer(seed=5))
    part = run(Annealer(seed=5), stop)
    part.ask()  # asked, not told: the evaluation that was lost
    again = Annealer.from_dict(json.loads(json.dumps(part.to_dict())))
    assert run(again).trials == whole.trials


def test_a_stopped_relative_search_goes_on_too() -> None:
    def go(search: Annealer, until: int) -> Annealer:
        while not search.done and len(search.trials) < until:
            ratios = search.ask().ratios.as_dict().values()
            search.tell(-sum((ratio - 0.5) ** 2 for ratio in ratios), noise=0.02)
        return search

    rule = Schedule(iterations=40).brisk()
    again = Annealer.from_dict(json.loads(json.dumps(go(Annealer(rule, 3), 9).to_dict())))
    assert go(again, 99).trials == go(Annealer(rule, 3), 99).trials
