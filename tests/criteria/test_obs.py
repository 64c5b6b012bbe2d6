"""OBS against direct solutions with brute-force inverses, and against plain magnitude."""

from __future__ import annotations

import math

import pytest
import torch

from crdiff_ext.errors import CRDiffError
from harness.criteria.obs import inverse_factor, obs_prune, timestep_weight


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(columns: int, tokens: int, seed: int = 1) -> torch.Tensor:
    """Correlated inputs X [in, tokens], as a layer has them; else there is nothing to make up."""
    return rand(columns, columns, seed=seed) @ rand(columns, tokens, seed=seed + 1)


def loss(weight: torch.Tensor, other: torch.Tensor, x: torch.Tensor) -> float:
    return float(((weight - other).double() @ x).square().sum())


def direct(weight, hessian, count, damping, block):
    """The same column-wise OBS with an explicit inverse of the remaining Hessian every time."""
    rows, columns = weight.shape
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(columns).double()
    work, mask = weight.clone(), torch.zeros(rows, columns, dtype=torch.bool)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        scores = []
        for j in range(start, end):
            corner = float(torch.linalg.inv(hessian[j:, j:])[0, 0])
            scores += [(float(work[i, j]) ** 2 / corner, i, j) for i in range(rows)]
        number = count * end // columns - count * start // columns
        for _, i, j in sorted(scores)[:number]:
            mask[i, j] = True
        for j in range(start, end):
            inverse = torch.linalg.inv(hessian[j:, j:])
            for i in range(rows):
                if mask[i, j]:
                    work[i, j:] -= work[i, j].clone() / inverse[0, 0] * inverse[0]
                    work[i, j] = 0
    return work, mask


@pytest.mark.parametrize("block", [3, 4, 12, 128])
@pytest.mark.parametrize("count", [1, 20, 31, 59])
def test_equals_a_direct_solution(block: int, count: int) -> None:
    weight, x = rand(5, 12), inputs_of(12, 60)
    expected, mask = direct(weight, x @ x.T, count, 0.01, block)
    found = obs_prune(weight, x @ x.T, count, 0.01, block)
    assert torch.equal(found == 0, mask)
    assert int(mask.sum()) == count
    assert torch.allclose(found, expected, atol=2e-4)


def test_one_weight_equals_the_textbook_surgeon() -> None:
    """Hassibi & Stork 1993: delta w = - w_q / [H^-1]_qq H^-1_:,q, loss = w_q^2 / 2[H^-1]_qq.

    In the first column all others are to the right, so the column-wise update is the whole one.
    """
    weight, x = torch.tensor([[0.01, 1.0, -2.0, 1.5]], dtype=torch.float64), inputs_of(4, 40)
    inverse = torch.linalg.inv(x @ x.T)
    expected = weight[0] - weight[0, 0] / inverse[0, 0] * inverse[0]
    found = obs_prune(weight, x @ x.T, 1, damping=0.0)
    assert found[0, 0] == 0
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert loss(weight, found, x) == pytest.approx(
        float(weight[0, 0] ** 2 / inverse[0, 0]), rel=1e-2
    )
    # The least error that any weights with this zero have.
    best = torch.linalg.lstsq(x[1:].T, (weight @ x)[0]).solution
    assert torch.allclose(found[0, 1:], best, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_reconstructs_better_than_magnitude_and_than_its_own_mask(seed: int) -> None:
    weight, x = rand(16, 32, seed=seed), inputs_of(32, 200, seed=seed + 10)
    count = weight.numel() // 2
    found = obs_prune(weight, x @ x.T, count, block=8)
    smallest = weight.abs().flatten().argsort()[:count]
    magnitude = weight.flatten().clone()
    magnitude[smallest] = 0
    assert int((found == 0).sum()) == int((magnitude == 0).sum()) == count
    assert loss(weight, found, x) < loss(weight, magnitude.view_as(weight), x)
    assert loss(weight, found, x) < loss(weight, weight.masked_fill(found == 0, 0), x)


def test_the_factor_gives_every_remaining_inverse() -> None:
    x = inputs_of(9, 50)
    hessian = x @ x.T
    upper = inverse_factor(hessian, damping=0.0).double()
    for i in range(9):
        expected = torch.linalg.inv(hessian[i:, i:])[0]
        assert torch.allclose(upper[i, i] * upper[i, i:], expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_never_on_are_pruned_first_and_disturb_nobody() -> None:
    x = inputs_of(6, 30)
    x[2] = 0
    weight = rand(4, 6)
    found = obs_prune(weight, x @ x.T, 4)
    assert torch.isfinite(found).all()
    assert int((found == 0).sum()) == 4
    assert torch.equal(found[:, [2]], torch.zeros(4, 1).double())
    kept = [0, 1, 3, 4, 5]
    assert torch.allclose(found[:, kept], weight[:, kept], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_type_and_the_input(dtype: torch.dtype) -> None:
    weight, x = rand(4, 8).to(dtype), inputs_of(8, 40)
    before, hessian = weight.clone(), x @ x.T
    known = hessian.clone()
    found = obs_prune(weight, hessian, 10)
    assert found.dtype == dtype
    assert torch.equal(weight, before)
    assert torch.equal(hessian, known)
    assert int((found == 0).sum()) == 10


def test_a_hessian_that_is_no_number_is_told() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(CRDiffError, match="has no inverse"):
            obs_prune(rand(2, 3), torch.full((3, 3), bad), 1)


def test_early_steps_weigh_more() -> None:
    """OBS-Diff's script: np.log(1 + arange(T)), from 0.8 to 1.2, turned round."""
    for steps in (2, 10, 25):
        given = [0.8 + 0.4 / math.log(steps) * math.log(1 + s) for s in range(steps)][::-1]
        assert [timestep_weight(s, steps) for s in range(steps)] == pytest.approx(given)
    assert timestep_weight(0, 1) == 1.2
