"""Distances between feature sets, in float64, and paired intervals of their differences.

The intervals are those of a jackknife that leaves out one group of images at a time (the same of
both methods; groups are runs of neighbouring prompts, whose images stay together): the
estimate is corrected for the bias of order 1/n, and the half width is Student's quantile with
``groups - 1`` degrees of freedom times the jackknife's standard error. ``harness.frechet`` has a
finer one for few features, which is out of reach with Inception's 2048.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import linalg, stats

from harness.frechet import IMAGES_PER_FEATURE
from harness.scorers.reference import Reference
from harness.stats import LEVEL, Array, Interval

GROUPS = 32
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
KID_SEED = 2020
"""torch-fidelity's default seed of the subsets."""
FEWEST_FOR_KERNEL = 8
_CHUNK = 1024


def frechet_distance(features: Array, reference: Reference) -> float:
    """``|mu - mu_r|^2 + tr(C + C_r - 2 (C_r^1/2 C C_r^1/2)^1/2)`` of features [n, d], n >= 2.

    The last trace is the sum of the singular values of (X - mu) C_r^1/2 / sqrt(n - 1), which stays
    exact where C has no full rank. Raises ValueError for one image.
    """
    features = np.asarray(features, np.float64)
    n, d = features.shape
    if n < 2:
        raise ValueError("a Frechet distance needs at least two images")
    mean = features.mean(0)
    centred = (features - mean) / np.sqrt(n - 1)
    rotated = centred @ reference.root
    if n <= d:
        root = linalg.svdvals(rotated).sum()
    else:
        root = np.sqrt(np.clip(np.linalg.eigvalsh(rotated.T @ rotated), 0, None)).sum()
    traces = np.square(centred).sum() + np.trace(reference.covariance)
    return float(np.square(mean - reference.mean).sum() + traces - 2 * root)


def frechet_difference(
    method: Array, dense: Array, reference: Reference, prompts: Sequence[str] | None = None
) -> Interval | None:
    """Interval of d(method) - d(dense) from features [n, d] of paired images.

    ``prompts``: each image's, for several seeds of a prompt; without, each image has its own.
    None below ``IMAGES_PER_FEATURE`` images a feature, where its coverage was not shown.
    """
    if len(method) < IMAGES_PER_FEATURE * method.shape[1]:
        return None

    def statistic(rows: np.ndarray) -> float:
        ours, theirs = (frechet_distance(x[rows], reference) for x in (method, dense))
        return ours - theirs

    return jackknife(_same_length(method, dense), statistic, prompts=prompts)


def kernel_distance(features: Array, reference: Array) -> float:
    """KID of features [n, d] to [m, d] by torch-fidelity: mean over subsets, cubic kernel."""
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    ours, theirs = (torch.from_numpy(np.asarray(x, np.float64)) for x in (features, reference))
    found = kid_features_to_metric(
        ours,
        theirs,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, len(ours), len(theirs)),
        rng_seed=KID_SEED,
        verbose=False,
    )
    return float(found[KEY_METRIC_KID_MEAN])


def kernel_difference(
    method: Array, dense: Array, reference: Array, prompts: Sequence[str] | None = None
) -> Interval | None:
    """Interval of MMD^2(method) - MMD^2(dense), unbiased over all images; None for too few."""
    n = _same_length(method, dense)
    if n < FEWEST_FOR_KERNEL:
        return None
    kernels = [_Kernel(np.asarray(x, np.float64), reference) for x in (method, dense)]

    def statistic(rows: np.ndarray) -> float:
        ours, theirs = (kernel.distance(rows) for kernel in kernels)
        return ours - theirs

    return jackknife(n, statistic, prompts=prompts)


class _Kernel:
    """Unbiased squared MMD of any of the images to the reference, less the reference's own part."""

    def __init__(self, features: Array, reference: Array) -> None:
        self.within = np.empty((len(features), len(features)))
        self.across = np.empty(len(features))
        for start in range(0, len(features), _CHUNK):
            rows = slice(start, start + _CHUNK)
            self.within[rows] = cubic_kernel(features[rows], features)
            self.across[rows] = cubic_kernel(features[rows], reference).mean(1)
        np.fill_diagonal(self.within, 0.0)
        self.row_sums = self.within.sum(1)

    def distance(self, rows: np.ndarray) -> float:
        """Of the images with these row numbers."""
        n = len(rows)
        others = np.setdiff1d(np.arange(len(self.across)), rows, assume_unique=True)
        left_out = self.within[np.ix_(others, others)].sum()
        total = self.row_sums.sum() - 2 * self.row_sums[others].sum() + left_out
        return float(total / (n * (n - 1)) - 2 * self.across[rows].mean())


def cubic_kernel(a: Array, b: Array) -> Array:
    """KID's kernel ``(a . b / d + 1)^3`` of features [n, d] and [m, d]: [n, m]."""
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def jackknife(
    n: int,
    statistic: Callable[[np.ndarray], float],
    groups: int = GROUPS,
    level: float = LEVEL,
    prompts: Sequence[str] | None = None,
) -> Interval | None:
    """Interval of a statistic of ``n`` images, by leaving out one group of prompts at a time.

    ``statistic`` takes the row numbers that are left in. ``prompts`` [n] says which images belong
    together; without, each is its own. With fewer prompts than groups, each is a group.
    None where leaving one group out would leave fewer than two images.
    """
    everyone = np.arange(n)
    together: dict[object, list[int]] = {}
    for row, prompt in enumerate(everyone if prompts is None else prompts):
        together.setdefault(prompt, []).append(row)
    runs = list(together.values())
    places = np.array_split(np.arange(len(runs)), min(groups, len(runs)))
    blocks = [np.concatenate([runs[place] for place in block]) for block in places]
    g = len(blocks)
    if n - max(map(len, blocks)) < 2:
        return None
    without = np.array([statistic(np.setdiff1d(everyone, block)) for block in blocks])
    pseudo = g * statistic(everyone) - (g - 1) * without
    half = stats.t.ppf(0.5 + level / 2, g - 1) * pseudo.std(ddof=1) / np.sqrt(g)
    estimate = float(pseudo.mean())
    return Interval(estimate, float(estimate - half), float(estimate + half), level, n)


def _same_length(method: Array, dense: Array) -> int:
    if len(method) != len(dense):
        raise ValueError(f"{len(method)} and {len(dense)} images can't be paired")
    return len(method)
