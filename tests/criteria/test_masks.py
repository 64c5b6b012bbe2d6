"""Masks against brute force, and how many weights go where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crdiff_ext.blocks import PrunableWeight, prunable_parameters
from crdiff_ext.pruning import by_pool
from crdiff_ext.settings import Ratios
from harness.criteria.masks import allot, by_taylor, by_wanda, taylor_score, wanda_mask
from tests.core.tiny import TinyUNet

RATIOS = Ratios(0.437, 0.31, 0.05)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_wanda_against_brute_force_per_row() -> None:
    weight, inputs = rand(5, 7), rand(20, 7, seed=1) * torch.arange(1, 8)
    norms = inputs.norm(dim=0)
    gone = wanda_mask(weight, norms, 5 * 3)
    for i in range(5):
        scores = [
            abs(float(weight[i, j])) * float(np.sqrt((inputs[:, j].numpy() ** 2).sum()))
            for j in range(7)
        ]
        smallest = sorted(range(7), key=lambda j: scores[j])[:3]
        assert sorted(smallest) == gone[i].nonzero().flatten().tolist()


def test_wanda_is_not_magnitude() -> None:
    """A large weight on an input that is never on goes first."""
    weight = torch.tensor([[9.0, 1.0, 2.0]])
    assert wanda_mask(weight, torch.tensor([0.0, 5.0, 1.0]), 2).tolist() == [[True, False, True]]


def test_wanda_takes_what_is_left_over_from_the_rows_that_lose_least() -> None:
    weight = torch.tensor([[1.0, 2.0, 9.0], [1.0, 8.0, 9.0], [1.0, 3.0, 9.0]])
    gone = wanda_mask(weight, torch.ones(3), 5)
    assert gone.tolist() == [[True, True, False], [True, False, False], [True, True, False]]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 34, 35])
def test_wanda_takes_exactly_as_many_as_asked(count: int) -> None:
    gone = wanda_mask(rand(5, 7), rand(7, seed=2).abs(), count)
    assert int(gone.sum()) == count
    assert set(gone.sum(1).tolist()) <= {count // 5, count // 5 + 1}


def test_ties_and_zero_inputs_are_cut_exactly() -> None:
    assert int(wanda_mask(torch.ones(4, 6), torch.zeros(6), 9).sum()) == 9


def test_layers_share_their_groups_number_to_the_last_weight() -> None:
    weights = prunable_parameters(TinyUNet())
    counts = allot(weights, RATIOS)
    for group, members in ((pool.name, pool.members) for pool in by_pool(weights)):
        ratio, total = RATIOS.as_dict()[group], sum(w.tensor.numel() for w in members)
        assert sum(counts[w.canonical] for w in members) == int(total * ratio)
        assert all(abs(counts[w.canonical] - w.tensor.numel() * ratio) <= 1 for w in members)


def test_wanda_and_taylor_prune_int_n_r_of_each_group_and_change_nothing_else() -> None:
    weights = prunable_parameters(TinyUNet())
    norms = {w.canonical: rand(w.tensor.shape[1], seed=3).abs() for w in weights}
    gradients = {w.canonical: rand(*w.tensor.shape, seed=i) for i, w in enumerate(weights)}
    for chosen in (by_wanda(weights, RATIOS, norms), by_taylor(weights, RATIOS, gradients)):
        for group, members in ((pool.name, pool.members) for pool in by_pool(weights)):
            total = sum(w.tensor.numel() for w in members)
            zeros = sum(int((chosen[w.canonical] == 0).sum()) for w in members)
            assert zeros == int(total * RATIOS.as_dict()[group])
        for weight in weights:
            kept = chosen[weight.canonical] != 0
            assert torch.equal(chosen[weight.canonical][kept], weight.tensor[kept])
            assert chosen[weight.canonical].dtype == weight.tensor.dtype


def test_taylor_ranks_a_whole_group_by_gradient_times_weight() -> None:
    def weight(name: str, values: list[list[float]]) -> PrunableWeight:
        return PrunableWeight(name, name, "mid", torch.tensor(values))

    weights = [weight("a", [[1.0, -2.0]]), weight("b", [[3.0, 0.5]])]
    gradients = {"a": torch.tensor([[5.0, 0.1]]), "b": torch.tensor([[-0.2, 4.0]])}
    # |g w|: 5, 0.2 | 0.6, 2
    score = taylor_score(weights[0].tensor, gradients["a"])
    assert torch.allclose(score, torch.tensor([[5.0, 0.2]]))
    chosen = by_taylor(weights, Ratios(0, 0.5, 0), gradients)
    assert chosen["a"].tolist() == [[1.0, 0.0]]
    assert chosen["b"].tolist() == [[0.0, 0.5]]


def test_half_precision_keeps_its_type() -> None:
    weight = rand(6, 8).half()
    one = PrunableWeight("x", "x", "up", weight)
    for chosen in (
        by_wanda([one], Ratios(0, 0, 0.5), {"x": torch.ones(8, dtype=torch.float64)}),
        by_taylor([one], Ratios(0, 0, 0.5), {"x": torch.ones(6, 8)}),
    ):
        assert chosen["x"].dtype == torch.float16
        assert int((chosen["x"] == 0).sum()) == 24
