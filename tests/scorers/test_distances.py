"""Distances and the intervals of their differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers import Reference, open_reference
from harness.scorers.distances import (
    frechet_difference,
    frechet_distance,
    jackknife,
    kernel_difference,
    kernel_distance,
)

D = 6


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def plain_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD, pair by pair."""
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_definition() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, D)), rng.normal(0.3, 1.2, size=(9, D))
    assert kernel_distance(x, y) == pytest.approx(plain_mmd(x, y))
    subsets = kernel_distance(x, np.concatenate([y, rng.normal(0.3, 1.2, size=(40, D))]))
    assert subsets != pytest.approx(plain_mmd(x, y))


def test_kid_difference_is_that_of_the_definition() -> None:
    """The estimate of an unbiased statistic is the statistic; the reference's own part cancels."""
    rng = np.random.default_rng(2)
    x, reference = rng.normal(size=(12, D)), rng.normal(0.3, 1.2, size=(15, D))
    y = x + rng.normal(0.1, 0.3, size=(12, D))
    found = kernel_difference(x, y, reference)
    assert found is not None
    expected = plain_mmd(x, reference) - plain_mmd(y, reference)
    assert found.estimate == pytest.approx(expected)
    assert found.low < found.estimate < found.high
    assert found.n == 12
    back = kernel_difference(y, x, reference)
    assert back is not None
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert kernel_difference(x[:7], y[:7], reference) is None


def test_jackknife_of_a_mean_is_students() -> None:
    values = np.random.default_rng(3).normal(size=32)
    found = jackknife(32, lambda rows: float(values[rows].mean()))
    from scipy.stats import t

    half = t.ppf(0.975, 31) * values.std(ddof=1) / np.sqrt(32)
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.estimate == pytest.approx(half)


def test_groups_are_neighbours() -> None:
    """So that the seeds of one prompt, which lie side by side, are left out together."""
    left_out: list[set[int]] = []

    def statistic(rows: np.ndarray) -> float:
        left_out.append(set(range(100)) - set(rows.tolist()))
        return 0.0

    jackknife(100, statistic, groups=25)
    assert sorted(map(sorted, left_out[:25])) == [list(range(i, i + 4)) for i in range(0, 100, 4)]


def test_images_of_a_prompt_are_left_out_together_wherever_they_lie() -> None:
    prompts = [f"{i % 50}" for i in range(100)]  # the second seeds after all first ones
    left_out: list[set[int]] = []

    def statistic(rows: np.ndarray) -> float:
        left_out.append(set(range(100)) - set(rows.tolist()))
        return 0.0

    jackknife(100, statistic, groups=25, prompts=prompts)
    assert sorted(map(sorted, left_out[:25])) == [
        [i, i + 1, i + 50, i + 51] for i in range(0, 50, 2)
    ]


def test_seeds_that_repeat_a_prompt_add_no_certainty() -> None:
    """The same images twice: as wide as once."""
    rng = np.random.default_rng(6)
    values = rng.normal(size=64)
    once = jackknife(64, lambda rows: float(values[rows].mean()))
    doubled = np.concatenate([values, values])
    names = [str(i) for i in range(64)]
    twice = jackknife(128, lambda rows: float(doubled[rows].mean()), prompts=names + names)
    blind = jackknife(128, lambda rows: float(doubled[rows].mean()))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert blind.high - blind.low < 0.85 * (once.high - once.low)


def test_seeds_of_a_single_prompt_have_no_interval() -> None:
    rng = np.random.default_rng(7)
    x, y, big = rng.normal(size=(24, D)), rng.normal(size=(24, D)), rng.normal(size=(50, D))
    names = ["only"] * 24
    assert frechet_difference(x, y, Reference.of_features(big), names) is None
    assert kernel_difference(x, y, big, names) is None
    assert frechet_difference(x, y, Reference.of_features(big), [*names[:-1], "one"]) is None
    pairs = [str(i // 2) for i in range(24)]
    assert frechet_difference(x, y, Reference.of_features(big), pairs) is not None


def test_frechet_difference_needs_images_and_pairs() -> None:
    rng = np.random.default_rng(4)
    reference = Reference.of_features(rng.normal(size=(50, D)))
    x, y = rng.normal(size=(40, D)), rng.normal(size=(40, D))
    assert frechet_difference(x[:11], y[:11], reference) is None
    found = frechet_difference(x, y, reference)
    assert found is not None
    plain = frechet_distance(x, reference) - frechet_distance(y, reference)
    assert abs(found.estimate - plain) < found.high - found.low
    with pytest.raises(ValueError, match="can't be paired"):
        frechet_difference(x, y[:30], reference)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_intervals_cover_as_often_as_they_say(kind: str) -> None:
    """95 % intervals of equally good methods hold zero; their images are paired.

    A little more often is right too: a jackknife counts the second-order part of the variance twice
    (Efron and Stein, 1981), and here the methods differ by little else.
    """
    rng, hits, simulations = np.random.default_rng(5), 0, 600
    big = rng.normal(size=(4000, D))
    reference = Reference.of_features(big)
    for _ in range(simulations):
        common = rng.normal(size=(64, D))
        x, y = (0.7 * common + 0.5 * rng.normal(size=(64, D)) + 0.3 for _ in range(2))
        if kind == "frechet":
            found = frechet_difference(x, y, reference)
        else:
            found = kernel_difference(x, y, big[:200])
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert 0.925 <= hits / simulations <= 0.985


def test_reference_folder_and_npz(tmp_path: Path) -> None:
    with pytest.raises(CRDiffError, match="fewer than two images"):
        open_reference(tmp_path)
    for name in ("b.png", "a.JPG", "c.webp"):
        Image.new("RGB", (5, 4), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    source = open_reference(tmp_path)
    assert [file.name for file in source.files] == ["a.JPG", "b.png", "c.webp"]
    assert source.describe()["n"] == 3
    source.files[0].write_bytes(b"x")
    with pytest.raises(CRDiffError, match="cannot be read: remove it"):
        open_reference(tmp_path).pixels()
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert open_reference(tmp_path / "s.npz").describe()["kind"] == "statistics"
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(CRDiffError, match=r"must be \[d\] and \[d, d\]"):
        open_reference(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", mean=np.zeros(3))
    with pytest.raises(CRDiffError, match="no arrays mu and sigma"):
        open_reference(tmp_path / "s.npz")
    (tmp_path / "s.npz").write_bytes(b"not a zip")
    with pytest.raises(CRDiffError, match="no arrays mu and sigma"):
        open_reference(tmp_path / "s.npz")
    with pytest.raises(CRDiffError, match="is no reference"):
        open_reference(tmp_path / "s.csv")
