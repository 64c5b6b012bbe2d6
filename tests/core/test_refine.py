"""Prompt-specific refinement: its budget, its resumption, and a person as the reward."""

from __future__ import annotations

import json

import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.refine import Refinement, refine_schedule
from crdiff_ext.schedule import State
from crdiff_ext.settings import Ratios

START = State(Ratios(0.3, 0.2, 0.3), 1.5)


def worth(state: State) -> float:
    return -abs(state.ratios.down - 0.4) - abs(state.k - 1.8)


def judge(search: Refinement, rounds: int = 1000) -> Refinement:
    for _ in range(rounds):
        if search.done:
            break
        asked = search.ask()
        search.tell([worth(asked.state) + seed / 1000 for seed in asked.seeds])
    return search


@pytest.mark.parametrize(("budget", "seeds"), [(24, 1), (24, 2), (25, 3), (9, 3)])
def test_the_budget_is_spent_and_no_more(budget: int, seeds: int) -> None:
    search = judge(Refinement(START, range(seeds), budget))
    kinds = [judged.round.kind for judged in search.judged]
    assert kinds[:2] == ["dense", "start"]
    assert set(kinds[2:]) == {"candidate"}
    drawn = sum(len(judged.round.seeds) for judged in search.judged)
    assert budget - seeds < drawn <= budget
    assert len({judged.round.state for judged in search.judged}) == len(kinds)


def test_it_finds_better_than_where_it_starts_and_searches_k() -> None:
    gains = []
    for seed in range(10):
        search = judge(Refinement(START, (1, 2), 40, seed=seed))
        assert search.best.score is not None
        gains.append(search.best.score - 0.0015 - worth(START))
    assert min(gains) >= 0  # the start is kept when nothing beats it
    assert sum(gains) / len(gains) > 0.05
    fixed = judge(Refinement(START, (1, 2), 40, search_k=False))
    assert {judged.round.state.k for judged in fixed.judged} == {1.5}


def test_dense_wins_where_it_is_best() -> None:
    search = Refinement(START, (1,), 12)
    while not search.done:
        search.tell([1.0 if search.ask().kind == "dense" else 0.0])
    assert search.best.state.is_dense


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_it_goes_on_as_if_it_had_not_stopped(stop: int) -> None:
    whole = judge(Refinement(START, (1, 2), 24))
    part = judge(Refinement(START, (1, 2), 24), stop)
    part.ask()
    again = Refinement.from_dict(json.loads(json.dumps(part.to_dict())))
    assert judge(again).judged == whole.judged
    assert again.best == whole.best


def test_a_person_who_picks_leads_it_to_what_they_like() -> None:
    ends = []
    for seed in range(5):
        search = Refinement(START, (7,), 40, seed=seed)
        seen = []
        while not search.done:
            favourite, new = search.pair()
            seen.append(new.state)
            search.prefer(favourite is None or worth(new.state) > worth(favourite.state))
        # the favourite is what the person likes best of all that was shown
        assert search.best.state == max(seen, key=worth)
        ends.append(worth(search.best.state))
        again = Refinement.from_dict(json.loads(json.dumps(search.to_dict())))
        assert again.best == search.best
    assert sum(ends) / len(ends) > worth(START) + 0.05


def test_a_failed_round_is_no_score() -> None:
    search = Refinement(START, (1, 2), 12)
    search.tell(None)
    search.tell(None)
    search.tell([-9.0, -9.0])
    assert search.best.score == -9.0


def test_a_dense_start_is_drawn_once() -> None:
    search = judge(Refinement(State(Ratios(0, 0, 0)), (1,), 10))
    kinds = [judged.round.kind for judged in search.judged]
    assert kinds.count("dense") == 1
    assert len(kinds) == 10


def test_k_of_zero_is_no_trap() -> None:
    """At k = 0 every ratio is dense, and no move of one value leads away."""
    search = Refinement(State(Ratios(0.3, 0.2, 0.3), 0.0), seeds=(1,), budget=8)
    assert search.start == State(Ratios(0.3, 0.2, 0.3), 1.5)
    judge(search)
    assert [j.round.kind for j in search.judged] == ["dense", "start"] + ["candidate"] * 6
    assert len({j.round.state for j in search.judged}) == 8
    again = Refinement.from_dict(search.to_dict())
    assert [j.round for j in again.judged] == [j.round for j in search.judged]
    with pytest.raises(CRDiffError, match="k is 0, which is the dense model"):
        Refinement(State(Ratios(0.3, 0.2, 0.3), 0.0), seeds=(1,), budget=8, search_k=False)


def test_misuse_is_told() -> None:
    with pytest.raises(CRDiffError, match="too small for 4 seeds: 12"):
        Refinement(START, range(4), 11)
    with pytest.raises(CRDiffError, match="twice"):
        Refinement(START, (1, 1), 24)
    search = Refinement(START, (1, 2), 24)
    with pytest.raises(CRDiffError, match="2 scores"):
        search.tell([1.0])
    with pytest.raises(CRDiffError, match="judged yet"):
        _ = search.best


def test_the_schedule_holds_the_start_wherever_it_is() -> None:
    far = State(Ratios(0.9, 0.0, 0.1), 2.5)
    assert refine_schedule(far, 5).first == far
    assert judge(Refinement(far, (1,), 9)).judged[1].round.state == far


def test_one_ratio_for_all_groups() -> None:
    start = State(Ratios(0.2, 0.2, 0.2))
    search = judge(Refinement(start, (1, 2), 24, uniform=True))
    states = [judged.round.state for judged in search.judged]
    assert all(state.ratios.shared is not None for state in states)
    assert len(set(states)) == len(states) == 12
    assert search.best.score is not None
    assert search.best.score > worth(start)
    again = Refinement.from_dict(json.loads(json.dumps(search.to_dict())))
    assert [judged.round.state for judged in again.judged] == states
    with pytest.raises(CRDiffError, match="must start from three equal ones"):
        Refinement(State(Ratios(0.2, 0.2, 0.3)), (1, 2), 24, uniform=True)
