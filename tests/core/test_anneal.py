"""The annealer: its moves and its acceptance rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from crdiff_ext.anneal import Annealer
from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import AUTHORS, Schedule, State
from crdiff_ext.settings import GROUPS, Ratios
from tests.core.hills import hill, run

PLAIN = Schedule(baseline=False)
DENSE = State(Ratios(0, 0, 0))


def test_it_starts_at_the_start_and_moves_one_coordinate_within_the_box() -> None:
    search = run(Annealer(replace(AUTHORS, iterations=60, restarts=0, patience=60), seed=3))
    assert search.trials[0].ratios == Ratios(0.3, 0.3, 0.3)
    current = search.trials[0]
    for trial in search.trials[1:]:
        before, after = current.ratios.as_dict(), trial.ratios.as_dict()
        moved = [g for g in GROUPS if before[g] != after[g]]
        assert len(moved) <= 1
        assert all(0.1 <= r <= 0.8 for r in after.values())
        if moved:
            heat = 0.95 ** (search.trials.index(trial))
            assert abs(before[moved[0]] - after[moved[0]]) <= max(0.005, 0.1 * heat) + 1e-4
        if trial.accepted:
            current = trial
    temperatures = [trial.temperature for trial in search.trials]
    assert temperatures == pytest.approx([0.1 * 0.95**i for i in range(60)])


def mean_best(schedule: Schedule) -> float:
    best = [run(Annealer(schedule, seed)).best for seed in range(10)]
    return sum(trial.score or 0.0 for trial in best if trial) / len(best)


def test_it_climbs() -> None:
    start = hill(Ratios(0.3, 0.3, 0.3))
    # The authors' schedule is hot for scores this close together: it wanders, yet it climbs.
    assert mean_best(PLAIN) > start + 0.02
    assert mean_best(replace(PLAIN, temperature=0.002, cooling=0.97, patience=60)) > 0.98


def test_the_same_seed_gives_the_same_search_and_another_one_does_not() -> None:
    a, b, c = (run(Annealer(seed=seed)).trials for seed in (1, 1, 2))
    assert a == b
    assert a != c


def after_one(schedule: Schedule, seed: int, score: float = 1.0) -> Annealer:
    """An annealer that was told the start's score and asks for its first move."""
    search = Annealer(schedule, seed)
    search.ask()
    search.tell(score)
    search.ask()
    return search


@pytest.mark.parametrize("loss", [0.02, 0.1, 0.2])
def test_a_worse_state_is_accepted_with_the_metropolis_probability(loss: float) -> None:
    n = 4000
    accepted = 0
    for seed in range(n):
        search = after_one(replace(PLAIN, iterations=2, cooling=1.0, temperature=0.1), seed)
        needed = search.needed
        search.tell(1.0 - loss)
        accepted += search.trials[1].accepted
        assert search.trials[1].accepted == (1.0 - loss >= needed)
    p = math.exp(-loss / 0.1)
    assert abs(accepted / n - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_a_relative_temperature_is_in_units_of_the_noise(loss: float) -> None:
    """T0 of 2 at a noise of 0.05 accepts as T0 of 0.1 does; before the noise is known, none."""
    rule = replace(PLAIN, iterations=3, cooling=1.0, temperature=2.0, relative=True)
    n = 4000
    accepted = 0
    for seed in range(n):
        search = after_one(rule, seed)
        assert search.needed == 1.0
        search.tell(0.9, noise=0.05)
        assert not search.trials[1].accepted
        search.ask()
        search.tell(1.0 - loss, noise=9.0)  # only the first one counts
        accepted += search.trials[2].accepted
        assert search.trials[2].temperature == pytest.approx(0.1)
    p = math.exp(-loss / 0.1)
    assert abs(accepted / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_luck_and_move_are_drawn_independently() -> None:
    """u must not tell where the move goes: that would bend the acceptance by direction."""
    pairs = []
    for seed in range(2000):
        search = after_one(PLAIN, seed)
        luck = math.exp((search.needed - 1.0) / (0.1 * 0.95))
        pairs.append((luck, sum(search.ask().ratios.as_dict().values()) - 0.9))
    mean = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    assert abs(mean[0] - 0.5) < 0.03
    spread = [math.sqrt(sum((p[i] - mean[i]) ** 2 for p in pairs)) for i in (0, 1)]
    dot = sum((p[0] - mean[0]) * (p[1] - mean[1]) for p in pairs)
    assert abs(dot / (spread[0] * spread[1])) < 4 / math.sqrt(len(pairs))


def test_a_state_given_up_is_refused_whatever_its_estimate() -> None:
    search = after_one(PLAIN, 0)
    search.tell(5.0, stopped=True)
    assert not search.trials[1].accepted
    assert search.best is search.trials[0]
    assert search.current is search.trials[0]


def test_dense_comes_first_and_is_to_be_beaten() -> None:
    search = Annealer(Schedule(iterations=6), seed=0)
    assert search.ask() == DENSE
    assert search.needed == -math.inf
    search.tell(1.0)
    assert search.baseline == 1.0
    assert search.ask().ratios == Ratios(0.3, 0.3, 0.3)
    while not search.done:
        search.ask()
        search.tell(0.5)
    assert len(search.trials) == 7  # dense comes on top of the iterations
    assert search.best is search.trials[0]
    assert not search.trials[0].accepted  # the chain never stood there


def test_ratios_may_reach_zero_and_the_authors_may_not() -> None:
    def lowest(schedule: Schedule) -> float:
        search = Annealer(schedule, seed=1)
        while not search.done:
            search.tell(-sum(search.ask().ratios.as_dict().values()))
        return min(min(t.ratios.as_dict().values()) for t in search.trials)

    rule = replace(PLAIN, temperature=1e-6, cooling=1.0, patience=200)
    assert lowest(rule) == 0.0
    assert lowest(replace(rule.authors(), temperature=1e-6)) == 0.1


def test_the_authors_profile_has_their_faults() -> None:
    search = Annealer(AUTHORS, seed=0)
    assert search.ask() == State(Ratios(0.3, 0.3, 0.3), 1.0)  # no dense, no amplification
    search.tell(None)
    assert search.trials[0].score == -2.0  # a crash is a score
    assert search.best is search.trials[0]


def test_k_is_a_coordinate_if_it_has_a_range() -> None:
    schedule = replace(PLAIN, k_range=(1.0, 2.0), temperature=0.001, patience=120)
    search = Annealer(schedule, seed=0)
    while not search.done:
        search.tell(-abs(search.ask().k - 1.8))
    assert search.best is not None
    assert abs(search.best.k - 1.8) < 0.05
    assert all(1.0 <= trial.k <= 2.0 for trial in search.trials)
    assert {trial.k for trial in run(Annealer(PLAIN, 0)).trials} == {1.5}


def test_uniform_moves_all_groups_alike() -> None:
    search = run(Annealer(Schedule(uniform=True), seed=0))
    assert all(len(set(trial.ratios.as_dict().values())) == 1 for trial in search.trials)
    assert len({trial.ratios for trial in search.trials}) > 20


def test_no_state_is_asked_for_twice_nor_what_is_taken_elsewhere() -> None:
    # 21 states in all: without looking, 20 moves would surely meet.
    schedule = Schedule(start=(0.001,) * 3, high=0.002, uniform=True, iterations=15, baseline=False)
    search = Annealer(replace(schedule, step=0.002, step_floor=0.002, patience=99), seed=0)
    taken = {State(Ratios(r, r, r)) for r in (0.0, 0.0004, 0.0017, 0.002)}
    asked = []
    while not search.done:
        asked.append(search.ask(lambda state: state in taken or state in asked))
        search.tell(0.0)
    assert len(set(asked)) == 15
    assert not taken & set(asked)


def test_a_better_state_is_always_accepted() -> None:
    for seed in range(200):
        search = after_one(replace(PLAIN, iterations=2), seed, 0.0)
        search.tell(1e-9)
        assert search.trials[1].accepted


def test_misuse_is_told() -> None:
    search = Annealer(replace(PLAIN, iterations=1))
    with pytest.raises(CRDiffError, match="ask"):
        search.tell(1.0)
    assert search.ask() == search.ask()
    with pytest.raises(CRDiffError, match="nan"):
        search.tell(math.nan)
    with pytest.raises(CRDiffError, match="no standard error"):
        search.tell(1.0, noise=-0.1)
    search.tell(1.0)
    with pytest.raises(CRDiffError, match="over"):
        search.ask()
    with pytest.raises(CRDiffError, match="box"):
        Schedule(low=0.5, high=0.4)
    with pytest.raises(CRDiffError, match="iteration"):
        Schedule(iterations=0)
    with pytest.raises(CRDiffError, match="range of k"):
        Schedule(k_range=(1.6, 2.0))
    with pytest.raises(CRDiffError, match="equal"):
        Schedule(start=(0.1, 0.2, 0.3), uniform=True)
    with pytest.raises(CRDiffError, match="no setting 'heat'"):
        Schedule.from_dict({"heat": 1})
