"""Frechet distances to one reference, and a paired interval of the difference of two of them.

``d = |mu - mu_r|^2 + tr(C + C_r - 2 (C_r^1/2 C C_r^1/2)^1/2)``, means and covariances over images.

At small n the distance is biased upwards, by an amount that depends on the covariance and so
differs between methods; no unbiased estimator exists (Binkowski et al., "Demystifying MMD GANs",
2018; Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find them",
2020). Resampling doubles the bias, so a bootstrap interval around a difference misses the truth far
too often. The interval here is the jackknife's:

- estimate: the difference less its jackknife estimate of bias (Quenouille, "Notes on bias in
  estimation", 1956). It aims at the difference that infinitely many images would show;
- variance: the jackknife's (Tukey, 1958) less its own bias. Efron and Stein, "The jackknife
  estimate of variance", 1981, show that it counts the second-order part twice and subtract that
  part once, which can't be more than half. They find it by leaving out two images at a time, which
  at few images a feature sees too much of it; the distance's second derivatives at the sample see
  too little. The mean of the two is taken, which covers best;
- half width: Student's quantile with n - 1 degrees of freedom times the root of that.

``tests/harness/test_frechet.py`` simulates the coverage. For two methods that give nearly the same
images the interval is a little wider than it needs to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.stats import LEVEL, Array, Interval, around

IntArray = np.ndarray[Any, np.dtype[np.int_]]

IMAGES_PER_FEATURE = 2
"""An interval needs this many images a feature: with fewer its coverage was not shown."""

_PAIRS = 128
_CHUNK = 256
_STEP = 0.4
_NOTHING = 1e-12


class Frechet:
    """Frechet distances of feature sets to one fixed reference set."""

    def __init__(self, reference: Array) -> None:
        """Take the reference's features [m, d], m >= 2."""
        reference = np.asarray(reference, float)
        self.mean = reference.mean(0)
        self.covariance = _covariance(reference - self.mean)
        values, vectors = np.linalg.eigh(self.covariance)
        self.root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    @property
    def fewest(self) -> int:
        """The least number of images of which ``difference`` gives an interval."""
        return IMAGES_PER_FEATURE * len(self.mean)

    def distance(self, features: Array) -> float:
        """Distance of one feature set [n, d]."""
        return _Sample(self, np.asarray(features, float)).distance

    def difference(self, method: Array, dense: Array, level: float = LEVEL) -> Interval:
        """Interval of d(method) - d(dense), the two [n, d] given image by image.

        Takes about n^2 d^2 multiplications: well below a second for n = 1000, d = 32, but out of
        reach with Inception's 2048 features, for the second-order part of the variance alone.
        Raises ValueError below ``fewest`` images.
        """
        ours, theirs = (_Sample(self, np.asarray(x, float)) for x in (method, dense))
        n = ours.n
        if n != theirs.n:
            raise ValueError(f"{n} and {theirs.n} images can't be paired")
        if n < self.fewest:
            raise ValueError(f"an interval needs at least {self.fewest} images, not {n}")
        plain = ours.distance - theirs.distance
        each = np.arange(n)[:, None]
        single = ours.without(each) - theirs.without(each)
        pseudo = n * plain - (n - 1) * single
        pairs = _pairs(n)
        double = ours.without(pairs) - theirs.without(pairs)
        interaction = n * plain - (n - 1) * single[pairs].sum(1) + (n - 2) * double
        too_much = float(interaction.var()) / 2
        too_little = _mean_square(ours.curvature, theirs.curvature) / (2 * n**2)
        variance = float(pseudo.var(ddof=1)) / n
        corrected = max(variance - (too_much + too_little) / 2, variance / 2)
        return around(float(pseudo.mean()), float(np.sqrt(corrected)), n, level)


@dataclass(frozen=True)
class _Sample:
    """One feature set [n, d] beside a reference."""

    reference: Frechet
    features: Array

    @property
    def n(self) -> int:
        return len(self.features)

    @cached_property
    def centred(self) -> Array:
        """Features less their mean [n, d]."""
        return self.features - self.features.mean(0)

    @cached_property
    def _axes(self) -> tuple[Array, Array]:
        """Eigenvalues [d] of C_r^1/2 C C_r^1/2, and the centred features [n, d] in their basis."""
        rotated = self.centred @ self.reference.root
        values, vectors = np.linalg.eigh(_covariance(rotated))
        return np.clip(values, 0, None), rotated @ vectors

    @property
    def distance(self) -> float:
        """The distance as it is usually computed."""
        shift = self.features.mean(0) - self.reference.mean
        traces = np.square(self.centred).sum() / (self.n - 1) + np.trace(self.reference.covariance)
        return float(np.square(shift).sum() + traces - 2 * np.sqrt(self._axes[0]).sum())

    def without(self, rows: IntArray) -> Array:
        """The distance when one image, or two, are left out: row numbers [m, 1 or 2] -> [m].

        The scatter that goes is sum c_i c_i' + (sum c_i) (sum c_i)' / left, c_i centred features.
        """
        left = self.n - rows.shape[1]
        shift = self.features.mean(0) - self.reference.mean
        squares, gone = np.square(self.centred).sum(1), self.centred[rows].sum(1)
        shifts = np.square(shift - gone / left).sum(1)
        scatter = squares.sum() - squares[rows].sum(1) - np.square(gone).sum(1) / left
        values, y = self._axes
        roots = np.sqrt(values).sum() - np.concatenate(
            [
                root_losses(values, y[rows[chunk]] / np.sqrt(self.n - 1), 1 / left)
                for chunk in _chunks(len(rows))
            ]
        )
        traces = scatter / (left - 1) + np.trace(self.reference.covariance)
        return shifts + traces - 2 * roots * np.sqrt((self.n - 1) / (left - 1))

    @cached_property
    def curvature(self) -> Array:
        """F [n, d + d (d + 1) / 2]: F_i . F_j is the second derivative by the weights of i and j.

        With y in the eigenbasis of C_r^1/2 C C_r^1/2 = diag(s^2), C over n and not n - 1, it is
        ``2 sum_a y_ia y_ja / s_a + sum_ab H_iab H_jab / (s_a s_b (s_a + s_b))`` with H_i = y_i y_i'
        less its mean: from C's own second derivative and from the root's (|mu|^2 and tr C cancel).
        Directions without any variance have no part in it.
        """
        values, y = self._axes
        some = values > _NOTHING * values[-1]
        s = np.where(some, np.sqrt(np.where(some, values, 1) * (self.n - 1) / self.n), np.inf)
        a, b = np.triu_indices(len(s))
        products = y[:, a] * y[:, b]
        weight = np.sqrt(np.where(a == b, 1, 2) / s[a] / s[b] / (s[a] + s[b]))
        return np.concatenate([y * np.sqrt(2 / s), (products - products.mean(0)) * weight], axis=1)


def root_losses(values: Array, y: Array, common: float) -> Array:
    """What the trace of A^1/2 loses when Y' K Y is taken from A, for each Y of ``y`` [m, r, d].

    A = diag(values [d]); r is 1 or 2; K is 1 + common on the diagonal and common beside it;
    A - Y' K Y has no negative eigenvalue. All eigenvalue problems at once: for each eigenvalue
    pi (sqrt(a) - sqrt(b)) = int_0^inf log((a + s^2) / (b + s^2)) ds, so the loss is
    -1/pi int log det(1 - K Y (A + s^2)^-1 Y') ds, here by the trapezoidal rule in log s.
    """
    s = np.exp(np.log(np.sqrt(values.max()) or 1.0) + np.arange(-30, 24, _STEP))
    some = values > _NOTHING * values.max()
    inverse = 1 / (values[some, None] + s**2)
    first, last = y[:, 0, some], y[:, -1, some]
    a = np.square(first) @ inverse
    less = (1 + common) * a  # the determinant less than 1
    if y.shape[1] == 2:
        b, c = (first * last) @ inverse, np.square(last) @ inverse
        less += (1 + common) * c + 2 * common * b - (1 + 2 * common) * (a * c - b * b)
    return -np.log1p(-np.minimum(less, 1 - _NOTHING)) @ s * _STEP / np.pi


def _pairs(n: int) -> IntArray:
    """About 128 or n different pairs of rows [m, 2], each row in as many as any other."""
    lags = range(1, 1 + min((n - 1) // 2, max(1, _PAIRS // n)))
    rows = np.arange(n)
    return np.concatenate([np.stack([rows, (rows + lag) % n], 1) for lag in lags])


def _covariance(centred: Array) -> Array:
    """Unbiased covariance [d, d] of features [n, d] whose mean is zero."""
    return centred.T @ centred / (len(centred) - 1)


def _mean_square(ours: Array, theirs: Array) -> float:
    """Mean over pairs i != j of (F_i . F_j - G_i . G_j)^2, F and G [n, ...]."""
    n, total = len(ours), 0.0
    for rows in _chunks(n):
        difference = ours[rows] @ ours.T - theirs[rows] @ theirs.T
        total += float(np.square(difference).sum())
    own = np.square(ours).sum(1) - np.square(theirs).sum(1)
    return (total - float(np.square(own).sum())) / (n * (n - 1))


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
