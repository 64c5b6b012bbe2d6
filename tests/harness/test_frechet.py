"""The Frechet distance and the interval of a difference of two: definitions, limits, coverage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import linalg
from scipy.stats import t as student

from harness.frechet import Frechet, _pairs, _Sample, root_losses

N, D = 64, 32
SIMULATIONS = 1500
Pair = tuple[np.ndarray, np.ndarray]


def covariance(seed: int, power: float = 0.7, scale: float = 1.0) -> np.ndarray:
    """[D, D] with random axes and variances that fall as rank^-power, their mean ``scale``."""
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))
    variances = np.arange(1, D + 1.0) ** -power
    return scale * D / variances.sum() * (axes * variances) @ axes.T


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


class Population(Frechet):
    """A reference whose mean (zero) and covariance are given, not estimated."""

    def __init__(self, covariance: np.ndarray) -> None:
        self.mean, self.covariance = np.zeros(len(covariance)), covariance
        self.root = root(covariance)

    def true_distance(self, mean: np.ndarray, covariance: np.ndarray) -> float:
        inner = np.linalg.eigvalsh(self.root @ covariance @ self.root)
        spread = np.trace(covariance) + np.trace(self.covariance) - 2 * np.sqrt(inner).sum()
        return float(np.square(mean).sum() + spread)


class Case:
    """Paired images of two methods: means, covariances, the correlation of an image's features."""

    def __init__(self, means: Pair, covariances: Pair, correlation: float, skewed: bool = False):
        self.reference = Population(covariance(1))
        self.means, self.roots = means, [root(c) for c in covariances]
        self.correlation, self.skewed = correlation, skewed
        ours, theirs = map(self.reference.true_distance, means, covariances)
        self.truth = ours - theirs

    def draw(self, rng: np.random.Generator) -> Pair:
        z = rng.normal(size=(2, N, D))
        if self.skewed:
            z = (rng.gamma(2.0, size=(2, N, D)) - 2) / np.sqrt(2)
        own = self.correlation * z[0] + np.sqrt(1 - self.correlation**2) * z[1]
        return self.means[0] + z[0] @ self.roots[0], self.means[1] + own @ self.roots[1]


def shift(seed: int, length: float = 1.0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=D)
    return length * found / np.linalg.norm(found)


def equally_far(scale: float) -> Case:
    """The reference's covariance times ``scale``, against a shifted mean at the same distance."""
    other, ours = covariance(1, scale=scale), shift(4)
    gap = Population(covariance(1)).true_distance(ours, other)
    return Case((ours, shift(5, np.sqrt(gap))), (other, covariance(1)), 0.6)


CASES: dict[str, Callable[[], Case]] = {
    "equal distributions": lambda: Case((shift(4), shift(4)), (covariance(2), covariance(2)), 0.7),
    # both distances are zero there: nothing of first order is left
    "both at the reference": lambda: Case(
        (np.zeros(D), np.zeros(D)), (covariance(1), covariance(1)), 0.0
    ),
    "wide, equally far": lambda: equally_far(2.2),
    "narrow, equally far": lambda: equally_far(0.3),
    "unequal": lambda: Case((shift(4, 2), shift(4)), (covariance(3, 1.2), covariance(2)), 0.6),
    "skewed, unequal": lambda: Case(
        (shift(4), shift(4, 0.5)), (covariance(1, scale=2.2), covariance(2)), 0.7, skewed=True
    ),
}


def share_covered(case: Case, simulations: int, seed: int = 7) -> float:
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(simulations):
        interval = case.reference.difference(*case.draw(rng))
        hits += interval.low <= case.truth <= interval.high
    return hits / simulations


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_intervals_cover_as_often_as_they_say(name: str) -> None:
    """95 % intervals at n = 64, d = 32 hold the difference of the populations in 93-97 %."""
    case = CASES[name]()
    equal = name not in ("unequal", "skewed, unequal")
    assert (abs(case.truth) < 1e-9) is equal
    assert 0.93 <= share_covered(case, SIMULATIONS) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide, equally far", "narrow, equally far"])
def test_a_plain_bootstrap_would_not_do(name: str) -> None:
    """The coverage test is one that the usual intervals fail: percentiles, and t times SE."""
    case, rng = CASES[name](), np.random.default_rng(7)
    simulations, hits = 100, np.zeros(2)
    for _ in range(simulations):
        method, dense = case.draw(rng)
        plain = case.reference.distance(method) - case.reference.distance(dense)
        again = []
        for _ in range(100):
            rows = rng.integers(0, N, N)
            ours, theirs = map(case.reference.distance, (method[rows], dense[rows]))
            again.append(ours - theirs)
        low, high = np.quantile(again, [0.025, 0.975])
        half = student.ppf(0.975, N - 1) * np.std(again) * np.sqrt(N / (N - 1))
        hits += [low <= case.truth <= high, abs(plain - case.truth) <= half]
    assert (hits / simulations < 0.9).all()


def test_the_distance_is_the_textbooks() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 6)), rng.normal(0.4, 1.3, size=(300, 6))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    product = np.real(linalg.sqrtm(ca @ cb))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * product)
    assert Frechet(b).distance(a) == pytest.approx(float(expected), rel=1e-9)
    assert Frechet(b).distance(b) == pytest.approx(0.0, abs=1e-9)


def small() -> tuple[Frechet, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    reference = Frechet(rng.normal(size=(100, 4)))
    dense = rng.normal(0.3, 1.2, size=(20, 4))
    return reference, dense + rng.normal(0.1, 0.5, size=(20, 4)), dense


@pytest.mark.parametrize("rows", [[[0], [7], [19]], [[0, 1], [7, 3], [2, 19]]])
def test_images_are_left_out_one_or_two_at_a_time(rows: list[list[int]]) -> None:
    reference, method, _ = small()
    expected = [reference.distance(np.delete(method, row, 0)) for row in rows]
    found = _Sample(reference, method).without(np.array(rows))
    assert found == pytest.approx(np.array(expected), rel=1e-9)


def test_losses_of_a_root_are_those_of_its_eigenvalues() -> None:
    """Over eight orders of magnitude; one eigenvalue goes to zero, and one is zero."""
    rng = np.random.default_rng(6)
    values = np.array([1e4, 30.0, 1.0, 1e-2, 1e-4, 0.0])
    y = rng.normal(size=(9, 1, 6)) * np.sqrt(values) / 4
    y[0] = [0, 0, 1, 0, 0, 0]
    after = np.linalg.eigvalsh(np.diag(values) - y.transpose(0, 2, 1) * y)
    expected = np.sqrt(values).sum() - np.sqrt(np.clip(after, 0, None)).sum(1)
    assert root_losses(values, y, 0.0) == pytest.approx(expected, rel=1e-6)
    assert root_losses(np.zeros(2), np.zeros((3, 2, 2)), 0.1) == pytest.approx(np.zeros(3))


def test_pairs_are_different_and_even() -> None:
    for n in (4, 8, 64, 1000):
        pairs = _pairs(n)
        assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)
        assert len(set(np.bincount(pairs.ravel(), minlength=n).tolist())) == 1


def test_curvature_is_the_second_derivative_by_two_images_weights() -> None:
    """Against central differences of the distance of a weighted sample, at equal weights."""
    reference, method, _ = small()
    n, step = len(method), 1e-3

    def weighted(*more: tuple[int, float]) -> float:
        """The distance (covariance over n) when weight is moved from all images to some."""
        weights = np.full(n, 1 / n)
        for index, amount in more:
            weights -= amount / n
            weights[index] += amount
        mean = weights @ method
        scatter = (method - mean).T * weights @ (method - mean)
        inner = np.linalg.eigvalsh(reference.root @ scatter @ reference.root)
        return float(
            np.square(mean - reference.mean).sum() + np.trace(scatter) - 2 * np.sqrt(inner).sum()
        )

    rows = _Sample(reference, method).curvature
    for i, j in ((0, 1), (3, 17), (5, 5)):
        corners = [a * b * weighted((i, a * step), (j, b * step)) for a in (1, -1) for b in (1, -1)]
        assert rows[i] @ rows[j] == pytest.approx(sum(corners) / (4 * step**2), rel=1e-3)


def test_pairing_matters() -> None:
    reference, method, dense = small()
    paired = reference.difference(method, dense)
    shuffled = reference.difference(method, dense[::-1])
    assert paired.estimate == pytest.approx(shuffled.estimate)
    assert paired.high - paired.low < 0.8 * (shuffled.high - shuffled.low)
    assert (paired.n, paired.level) == (20, 0.95)
    back = reference.difference(dense, method)
    assert (back.low, back.high) == pytest.approx((-paired.high, -paired.low))


def test_equal_images_differ_by_nothing() -> None:
    reference, method, _ = small()
    interval = reference.difference(method, method)
    assert (interval.estimate, interval.low, interval.high, interval.side) == (0, 0, 0, 0)


def test_a_feature_that_never_varies_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    sets = [rng.normal(size=(n, 3)) for n in (100, 20, 20)]
    more = [np.column_stack([features, np.full(len(features), 7.0)]) for features in sets]
    expected = Frechet(sets[0]).difference(*sets[1:])
    found = Frechet(more[0]).difference(*more[1:])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_large_sets_are_done_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, method, dense = small()
    whole = reference.difference(method, dense)
    monkeypatch.setattr("harness.frechet._CHUNK", 7)
    pieces = reference.difference(method, dense)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), rel=1e-9)


def test_too_few_images_have_no_interval() -> None:
    reference, method, dense = small()
    assert reference.fewest == 8
    assert reference.difference(method[:8], dense[:8]).n == 8
    with pytest.raises(ValueError, match="at least 8 images, not 7"):
        reference.difference(method[:7], dense[:7])
    with pytest.raises(ValueError, match="can't be paired"):
        reference.difference(method, dense[:9])
