"""Exact selection against a plain sort."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crdiff_ext import counting
from crdiff_ext.counting import NotANumberError, chunks, kth_magnitude
from crdiff_ext.errors import CRDiffError
from crdiff_ext.pruning import group_threshold, keep_mask, prune

BITS = {
    torch.float16: (torch.int16, 16),
    torch.bfloat16: (torch.int16, 16),
    torch.float32: (torch.int32, 32),
    torch.float64: (torch.int64, 64),
    torch.float8_e4m3fn: (torch.uint8, 8),
    torch.float8_e5m2: (torch.uint8, 8),
}
dtypes = st.sampled_from(sorted(BITS, key=str))
ratios = st.one_of(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.0, 1e-9, 0.01, 0.4, 0.5, 0.99, 1 - 2**-53]),
)


@st.composite
def any_numbers(draw, min_size=1, max_size=120):
    """A tensor of any bit patterns but NaN: ties, both zeros, subnormals, infinities."""
    dtype = draw(dtypes)
    integer, bits = BITS[dtype]
    signed = integer is not torch.uint8
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    sign_bit = low if signed else 128
    common = [0, sign_bit, 1, sign_bit + 1, 2, 3]  # zeros and the smallest subnormals
    common += [int(torch.tensor(x).to(dtype).view(integer)) for x in (0.01, -0.01, 1.0, math.inf)]
    values = draw(
        st.lists(
            st.integers(low, high) | st.sampled_from(common), min_size=min_size, max_size=max_size
        )
    )
    patterns = torch.tensor(values, dtype=integer)
    return patterns[~patterns.view(dtype).double().isnan()].view(dtype)


def magnitudes(tensors):
    """All |w| as float64, which holds every value of every type, sorted."""
    return torch.cat([t.double().flatten() for t in tensors]).abs().sort().values


def split(tensor, cuts):
    edges = [0, *sorted(min(cut, tensor.numel()) for cut in cuts), tensor.numel()]
    return [tensor[a:b] for a, b in pairwise(edges)]


@settings(max_examples=300)
@given(any_numbers(), ratios, st.lists(st.integers(0, 120), max_size=3))
def test_threshold_is_the_one_of_a_sort(tensor, ratio, cuts):
    layers = split(tensor, cuts)
    n = int(tensor.numel() * ratio)
    found = group_threshold(layers, ratio)
    if n == 0:
        assert found is None
        return
    assert found is not None
    assert found == float(magnitudes(layers)[n - 1])
    assert math.copysign(1, found) == 1
    kept = keep_mask(tensor, found)
    assert torch.equal(kept, tensor.double().abs() > found)
    assert int((~kept).sum()) >= n
    after = prune(tensor, found).double()
    assert torch.equal(after, torch.where(kept, tensor.double(), 0.0))


@settings(max_examples=100)
@given(st.lists(any_numbers(), min_size=2, max_size=4), st.data())
def test_mixed_types_are_compared_exactly(tensors, data):
    everything = magnitudes(tensors)
    if not everything.numel():
        return
    n = data.draw(st.integers(1, everything.numel()))
    found = kth_magnitude(tensors, n)
    assert found == float(everything[n - 1])
    for tensor in tensors:
        kept = keep_mask(tensor, found)
        assert torch.equal(kept, tensor.double().abs() > found)
        expected = torch.where(kept, tensor.double(), 0.0)
        assert torch.equal(prune(tensor, found).double(), expected)


@settings(max_examples=100)
@given(any_numbers(), st.data())
def test_every_nan_is_refused_and_its_tensor_named(tensor, data):
    dtype = tensor.dtype
    integer, bits = BITS[dtype]
    nans = {torch.float8_e4m3fn: [0x7F], torch.float8_e5m2: [0x7D, 0x7F]}
    top = int(torch.tensor(math.inf).to(dtype).view(integer)) if dtype not in nans else 0
    pattern = data.draw(st.sampled_from(nans.get(dtype, [top + 1, 2 ** (bits - 1) - 1])))
    if data.draw(st.booleans()):  # a negative one
        pattern = pattern + 128 if bits == 8 else pattern - 2 ** (bits - 1)
    bad = torch.tensor([pattern], dtype=integer).view(dtype)
    assert bool(bad.double().isnan().all())
    with pytest.raises(NotANumberError) as caught:
        kth_magnitude([tensor, bad, tensor], data.draw(st.integers(1, 2 * tensor.numel() + 1)))
    assert caught.value.index == 1


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_over_many_chunks(dtype, monkeypatch):
    monkeypatch.setattr(counting, "CHUNK_BYTES", 1000)
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(50, 70, generator=generator).to(dtype) for _ in range(4)]
    everything = magnitudes(layers)
    for n in (1, 140, 5600, 13860, 14000):
        assert kth_magnitude(layers, n) == float(everything[n - 1])
    views = [layers[0].view(BITS[dtype][0]).T.view(dtype), *layers[1:]]
    assert not views[0].is_contiguous()
    assert kth_magnitude(views, 5600) == float(everything[5599])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0, 3), (7, 11), (3, 4, 5)])
def test_chunks_are_the_elements_in_order(shape, monkeypatch):
    monkeypatch.setattr(counting, "CHUNK_BYTES", 40)
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    views = [tensor, tensor.transpose(0, 1)] if tensor.dim() > 1 else [tensor]
    for view in views:
        pieces = list(chunks(view))
        assert torch.equal(torch.cat(pieces) if pieces else torch.empty(0), view.reshape(-1))


def test_bounded_chunks():
    big = torch.zeros(3000, 1000, dtype=torch.float16)
    for tensor in (big, big.T):
        assert max(piece.nbytes for piece in chunks(tensor)) <= counting.CHUNK_BYTES


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_infinities_count_as_the_largest(dtype):
    tensor = torch.tensor([math.inf, -1.0, 2.0, -math.inf], dtype=dtype)
    assert [kth_magnitude([tensor], n) for n in (1, 2, 3, 4)] == [1.0, 2.0, math.inf, math.inf]
    assert not keep_mask(tensor, math.inf).any()
    assert not prune(tensor, math.inf).any()


def test_weights_are_not_touched():
    tensor = torch.randn(100)
    before, version = tensor.clone(), tensor._version
    kth_magnitude([tensor], 50)
    keep_mask(tensor, 0.1)
    prune(tensor, 0.1)
    assert torch.equal(tensor, before)
    assert tensor._version == version


def test_types_that_are_no_floats():
    with pytest.raises(CRDiffError, match="int8"):
        kth_magnitude([torch.zeros(3, dtype=torch.int8)], 1)


def test_the_threshold_is_not_rounded_to_a_narrower_type():
    """0.01 in fp32 lies between two fp16 numbers; rounding it would prune the upper one too."""
    threshold = float(torch.tensor(0.01, dtype=torch.float32))
    upper = torch.tensor([0.01], dtype=torch.float16)  # 0.010002...
    assert float(upper) > threshold
    assert keep_mask(upper, threshold).all()
    assert torch.equal(prune(upper, threshold), upper)


def test_pruned_weights_carry_no_gradient():
    weight = torch.nn.Parameter(torch.randn(4, 4))
    assert not prune(weight, 0.1).requires_grad
    assert not prune(weight.half().float(), 1e-30).requires_grad
