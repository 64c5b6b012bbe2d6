from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crdiff_ext.amplify import Amplifier, Place, Window, combine, expected_cost
from crdiff_ext.errors import CRDiffError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30),
    st.floats(0, 3),
)
def test_equal_inputs_come_back_exactly(dtype, values, k):
    z = torch.tensor(values, dtype=torch.float64).to(dtype)
    assert torch.equal(combine(z, z.clone(), k), z)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_at_one_and_zero(dtype):
    generator = torch.Generator().manual_seed(0)
    dense, pruned = (torch.randn(1000, generator=generator).to(dtype) for _ in range(2))
    assert torch.equal(combine(dense, pruned, 1.0), pruned)
    assert torch.equal(combine(dense, pruned, 0.0), dense)
    assert combine(dense, pruned, 1.5).dtype == dtype


@pytest.mark.parametrize("k", [0.3, 1.0, 1.5, 3.0])
def test_is_the_papers_formula(k):
    generator = torch.Generator().manual_seed(0)
    dense, pruned = (torch.randn(2, 3, 4, generator=generator).double() for _ in range(2))
    expected = k * pruned + (1 - k) * dense
    assert torch.allclose(combine(dense, pruned, k), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("wrong", [(-0.1, 1), (0, 1.1), (0.5, 0.5), (0.6, 0.5), (float("nan"), 1)])
def test_wrong_windows(wrong):
    with pytest.raises(CRDiffError, match="window"):
        Window(*wrong)


def test_a_window_is_half_open():
    window = Window(0.25, 0.5)
    steps = 8
    assert [step for step in range(steps) if window.active(step / steps)] == [2, 3]
    halves = Window(0, 0.5), Window(0.5, 1)
    for step in range(steps):
        assert sum(half.active(step / steps) for half in halves) == 1
        assert Window().active(step / steps)
    assert Window().active(None)
    with pytest.raises(CRDiffError, match="fraction"):
        window.active(None)


class Passes:
    """Two fake passes that note the order in which they are called."""

    def __init__(self):
        self.called = []

    def dense(self):
        self.called.append("dense")
        return torch.zeros(2)

    def pruned(self):
        self.called.append("pruned")
        return torch.ones(2)


@pytest.mark.parametrize(
    ("k", "options", "called", "value"),
    [
        (1.5, {}, ["dense", "pruned"], 1.5),
        (0.5, {}, ["dense", "pruned"], 0.5),
        (1.0, {}, ["pruned"], 1.0),
        (1.0, {"settled": False}, ["dense", "pruned"], 1.0),
        (1.5, {"settled": False}, ["dense", "pruned"], 1.5),
        (1.5, {"amplification": "folded"}, ["pruned"], 1.0),
        (1.5, {"amplification": "folded", "settled": False}, ["dense", "pruned"], 1.0),
        (0.0, {"amplification": "folded"}, ["dense"], 0.0),
        (1.5, {"amplification": "folded", "window": Window(0.5, 1.0)}, ["dense"], 0.0),
        (1.5, {"amplification": "reuse-2"}, ["dense", "pruned"], 1.5),
        (1.0, {"amplification": "reuse-2"}, ["pruned"], 1.0),
        (0.0, {"amplification": "reuse-2"}, ["dense"], 0.0),
        (0.0, {}, ["dense"], 0.0),
        (1.5, {"window": Window(0.5, 1.0)}, ["dense"], 0.0),
        (1.0, {"window": Window(0.5, 1.0)}, ["dense"], 0.0),
        (1.5, {"window": Window(0.0, 0.5)}, ["dense", "pruned"], 1.5),
    ],
)
def test_which_passes_are_made(k, options, called, value):
    passes = Passes()
    place = Place(fraction=0.25, level=1.0, settled=options.pop("settled", True))
    amplifier = Amplifier(k, **options)
    output = amplifier(passes.dense, passes.pruned, place)
    assert passes.called == called
    assert output.tolist() == [value, value]
    assert amplifier.stats.dense_passes == called.count("dense")
    assert amplifier.stats.pruned_passes == called.count("pruned")


@pytest.mark.parametrize("k", [0.0, 1.0, 1.5])
def test_nothing_to_prune_is_one_dense_pass(k):
    passes = Passes()
    assert Amplifier(k)(passes.dense, None).tolist() == [0, 0]
    assert passes.called == ["dense"]


@pytest.mark.parametrize("k", [-0.001, 3.001, float("nan"), float("inf"), "x", None])
def test_wrong_k(k):
    with pytest.raises(CRDiffError, match="k is"):
        Amplifier(k)


def test_a_wrong_amplification_is_refused():
    with pytest.raises(CRDiffError, match="amplification is 'reuse-5'"):
        Amplifier(amplification="reuse-5")


@pytest.mark.parametrize(
    ("amplification", "k", "passes"),
    [
        ("exact", 1.5, 2.0),
        ("exact", 1.0, 1.0),
        ("folded", 1.5, 1.0),
        ("reuse-2", 1.5, 1.5),
        ("reuse-4", 1.5, 1.25),
        ("reuse-4", 0.0, 1.0),
    ],
)
def test_the_expected_cost_is_the_passes_that_are_made(amplification, k, passes):
    assert expected_cost(amplification, k) == passes
    made, amplifier = Passes(), Amplifier(k, amplification=amplification)
    for step in range(12):
        amplifier(made.dense, made.pruned, Place(level=12.0 - step))
    assert len(made.called) == 12 * passes
