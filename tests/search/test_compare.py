"""Measuring samplers: the stopping rule's errors, the landscapes, the grid's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import State
from crdiff_ext.settings import Ratios
from harness.embedded.weights import embedded_model_dir
from harness.modelhash import model_hash
from harness.searching.compare import PLAIN, Curve, contenders, makers, race, winners_curse
from harness.searching.grid import GRID, Grid
from harness.searching.landscapes import synthetic
from harness.searching.refine_gain import IMAGES, gain, gains, schedules
from harness.searching.stopping import (
    LEVEL,
    Looks,
    by_caption,
    estimate,
    surely_below,
    wilcoxon_prunes,
)


def a_grid(captions: int = 24) -> Grid:
    draws = np.random.default_rng(0)
    rewards = draws.normal(size=(3, 2, 3, captions))
    return Grid(((0.0, 0.5, 0.8), (0.0, 0.8), (0.0, 0.5, 0.8)), rewards, {"made": "here"})


def given_up(gaps: np.ndarray, batch: int) -> int:
    """After how many captions a state with these gaps is given up, where 0 is needed; else 0."""
    looks = Looks(0.0, len(gaps))
    ends = range(batch, len(gaps), batch)
    return next((n for n in ends if looks.hopeless(gaps[:n], n / len(gaps))), 0)


@pytest.mark.parametrize(
    ("captions", "batch", "skew", "most"),
    [
        (32, 8, 0, LEVEL), (32, 1, 0, LEVEL), (128, 8, 0, LEVEL), (128, 1, 0, LEVEL),
        (32, 1, 1, 4 * LEVEL), (128, 1, 1, 4 * LEVEL),
    ],
)  # fmt: skip
def test_a_move_that_would_be_accepted_is_hardly_ever_given_up(
    captions: int, batch: int, skew: int, most: float
) -> None:
    """At the very edge of acceptance, whatever the batch; a long tail, of which a few captions
    tell too little, costs more."""
    draws = np.random.default_rng(1)
    n = 250
    wrong = 0
    for _ in range(n):
        gaps = draws.exponential(size=captions) if skew else draws.normal(size=captions)
        wrong += given_up(gaps - gaps.mean() + 1e-9, batch) > 0
    assert wrong / n < most + 2 * np.sqrt(most / n)


def test_a_hopeless_state_is_given_up_and_a_hopeful_one_is_not() -> None:
    noise = np.random.default_rng(2).normal(0, 0.1, 32)
    assert given_up(noise - 1, 1) == given_up(noise - 1, 8) == 8
    assert given_up(noise - 0.08, 8) > 8
    assert given_up(noise + 0.1, 1) == 0
    tail = np.random.default_rng(3).exponential(size=32) ** 2
    for far in (1, 4, 9, 99):  # the allowance for the tail does not grow without end
        assert 0 < given_up(tail - tail.mean() - far * tail.std(), 8) <= (24 if far < 9 else 8)
    assert not Looks(-np.inf, 32).hopeless(noise - 9, 0.5)
    assert not Looks(0.0, 32).hopeless(noise[:4] - 9, 4 / 32)  # too few say anything
    assert estimate(noise[:8] - 1, noise[:8], 0.5) == pytest.approx(-0.5)


def test_seeds_of_a_caption_are_no_further_captions() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan])
    assert by_caption(values, 2).tolist() == [2.0, 5.0]
    assert by_caption(values[:2], 1).tolist() == [1.0, 3.0]
    looked = []
    looks = Looks(-0.1, 16)
    for n in range(1, 64):  # all captions are seen in part long before the end
        before = looks._due
        looks.hopeless(np.zeros(min(n, 16)), n / 64)
        looked += [n] if looks._due != before else []
    assert looked == [32]
    gaps = np.random.default_rng(4).normal(-0.4, 1, 8)
    assert surely_below(np.repeat(gaps, 4), 0.0, 0.25, 0.02)  # what four seeds would pretend
    assert not surely_below(by_caption(np.repeat(gaps, 4), 4), 0.0, 0.25, 0.02)


def test_optunas_wilcoxon_pruner_is_asked_rightly() -> None:
    best = np.linspace(-1, 1, 32)
    values = np.full(32, np.nan)
    seen = [3, 9, 11, 14, 20, 21, 27, 30]
    values[seen] = best[seen] - 1
    assert wilcoxon_prunes(values, best)
    values[seen] = best[seen] + 1
    assert not wilcoxon_prunes(values, best)


def test_the_synthetic_optimum_is_where_it_is_said_to_be() -> None:
    landscape, top = synthetic(4000, seed=3)
    here = landscape.function(top).mean()
    for group in ("down", "mid", "up"):
        for step in (-0.1, 0.1):
            moved = top.as_dict() | {group: top.as_dict()[group] + step}
            assert landscape.function(Ratios(**moved)).mean() < here
    spread = (landscape.function(Ratios(0.5, 0, 0)) - landscape.function(Ratios(0, 0, 0))).std()
    assert 0.2 < spread < 0.4  # as measured: 0.29


def test_the_grid_is_exact_at_its_points_and_smooth_between(tmp_path: Path) -> None:
    grid = a_grid()
    assert grid.values(Ratios(0.5, 0.8, 0.8)) == pytest.approx(grid.rewards[1, 1, 2])
    assert grid.values(Ratios(0.9, 0, 0)) == pytest.approx(grid.rewards[2, 0, 0])
    half = grid.values(Ratios(0, 0.4, 0))
    assert half == pytest.approx((grid.rewards[0, 0, 0] + grid.rewards[0, 1, 0]) / 2)
    grid.save(tmp_path / "grid.npz")
    again = Grid.load(tmp_path / "grid.npz")
    assert (again.levels, again.provenance) == (grid.levels, grid.provenance)
    assert again.rewards == pytest.approx(grid.rewards, abs=1e-6)
    (tmp_path / "grid.npz").write_bytes(b"no")
    with pytest.raises(CRDiffError, match="can't be read"):
        Grid.load(tmp_path / "grid.npz")


def test_the_grid_that_ships_is_real_and_says_where_it_is_from(tmp_path: Path) -> None:
    grid = Grid.load()
    assert GRID.stat().st_size < 1_000_000
    assert grid.rewards.shape == (3, 2, 3, 192)
    assert np.isfinite(grid.rewards).all()
    known = {"model_hash", "prompts_sha256", "captions", "seed", "size", "steps", "k", "command"}
    assert known <= set(grid.provenance)
    assert grid.provenance["model_hash"] == model_hash(
        embedded_model_dir(), tmp_path / "hashes.json"
    )


def test_a_curve_says_when_a_score_was_reached() -> None:
    curve = Curve(np.array([32, 64, 80]), np.array([0.1, 0.1, 0.4]))
    assert (curve.until(0.1), curve.until(0.2), curve.until(0.5)) == (32, 80, np.inf)


def test_a_race_counts_the_plain_schedule_as_one() -> None:
    runners = [r for r in contenders(iterations=12) if r.sampler == "anneal"]
    make = makers(None, 16)["synthetic"]
    rows = race(make, range(2), runners)
    assert race(make, range(2), runners[:1], jobs=2) == rows[:1]
    assert [row["sampler"] for row in rows] == [PLAIN, "anneal, repaired", "anneal, brisk"]
    assert rows[0]["share"] == 1.0
    assert rows[0]["median_images"] == 13 * 16


def test_the_winners_curse_is_seen_where_there_is_nothing_to_win() -> None:
    """Rewards of pure chance: what the search gains on its captions is not there on others."""
    grid = a_grid(64)
    schedule = replace(contenders(iterations=12)[0].schedule, step=0.3)
    few = winners_curse(grid, [4], repeats=6, schedule=schedule)[0]
    assert few["search"] > 0.2
    assert few["held_out"] < few["search"] / 2
    assert State(Ratios(0, 0, 0)).is_dense


def test_a_search_for_one_prompt_gains_more_by_large_moves() -> None:
    rows = {(row["images"], row["moves"]): row for row in gains(makers(None, IMAGES), range(40))}
    assert rows[24, "as shipped"]["gain"] > rows[24, "small moves"]["gain"] > 0
    assert rows[48, "as shipped"]["gain"] > rows[12, "as shipped"]["gain"]
    land = makers(None, IMAGES)["synthetic"](3)
    schedule = schedules(10)["as shipped"]
    found = gain(schedule, land, 3)
    assert land.images == IMAGES * 12  # dense, the start and ten candidates, none drawn in vain
    assert found >= 0
