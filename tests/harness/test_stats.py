"""Intervals of means: simulated coverage, pairing, levels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t as student

from harness import stats
from harness.stats import Interval, mean_interval, paired_interval

N = 64
SIMULATIONS = 4000
STEPS = (-0.5, -0.25, 0.0, 0.25, 0.5)
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def zero_one(gain: float, loss: float) -> Draw:
    """Differences of two 0/1 scores: +1 with probability gain, -1 with probability loss."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        u = rng.random(shape)
        return (u < gain).astype(float) - (u > 1 - loss)

    return draw


CASES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(0.1, 1.0, shape), 0.1),
    "laplace": (lambda rng, shape: rng.laplace(0.0, 1.0, shape), 0.0),
    "skewed": (lambda rng, shape: rng.gamma(2.0, 1.0, shape), 2.0),
    "facts": (
        lambda rng, shape: rng.choice(
            [-0.5, -0.25, 0, 0.25, 0.5], shape, p=[0.05, 0.1, 0.6, 0.15, 0.1]
        ),
        0.0375,
    ),
    "0/1, many": (zero_one(0.3, 0.1), 0.2),
    "0/1, some": (zero_one(0.1, 0.1), 0.0),
    "0/1, few": (zero_one(0.05, 0.02), 0.03),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_as_often_as_they_say(case: str) -> None:
    """95 % intervals of a paired mean difference at n = 64 hold the truth in 93-97 % of samples.

    Vectorised: ``mean_interval`` of many samples at once, by the same resamples and formula (the
    next test holds the two together).
    """
    draw, truth = CASES[case]
    samples = draw(np.random.default_rng(11), (SIMULATIONS, N))
    low, high = many_intervals(samples)
    coverage = np.mean((low <= truth) & (truth <= high))
    assert 0.93 <= coverage <= 0.97


def many_intervals(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = stats.resample_counts(N, 1000).astype(np.float32)
    spread = (counts @ samples.T.astype(np.float32) / N).std(0)
    half = student.ppf(0.975, N - 1) * spread * np.sqrt(N / (N - 1))
    return samples.mean(1) - half, samples.mean(1) + half


def test_simulated_formula_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    samples = CASES["facts"][0](np.random.default_rng(3), (5, N))
    low, high = many_intervals(samples)
    for index, sample in enumerate(samples):
        interval = mean_interval(sample)
        assert interval.low == pytest.approx(low[index], abs=1e-6)
        assert interval.high == pytest.approx(high[index], abs=1e-6)


def test_pairing_matters_and_seeds_are_fixed() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(0, 5, N)
    method = dense + 0.5 + rng.normal(0, 0.1, N)
    interval = paired_interval(method, dense)
    assert interval == paired_interval(method, dense)
    assert interval.side == 1
    assert interval.high - interval.low < 0.1
    assert interval.n == N


def test_equal_values_have_no_width() -> None:
    interval = paired_interval(np.ones(N), np.ones(N))
    assert (interval.low, interval.high, interval.side) == (0.0, 0.0, 0)


def test_one_prompt_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least two"):
        mean_interval(np.ones(1))


def test_large_sets_are_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=N)
    whole = mean_interval(values)
    monkeypatch.setattr(stats, "_CHUNK_VALUES", N * 700)
    pieces = mean_interval(values)
    assert pieces.high - pieces.low == pytest.approx(whole.high - whole.low, rel=0.05)


def test_side_at_another_level() -> None:
    interval = Interval(1.0, 0.1, 1.9, 0.95, N)
    assert interval.side == interval.side_at(0.95) == 1
    assert interval.side_at(0.999) == 0
    assert Interval(-1.0, -1.9, -0.1, 0.95, N).side_at(0.5) == -1
