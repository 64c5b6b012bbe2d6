"""The cache of thresholds: bounded, right under threads, and empty-handed after an error."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.plan_cache import PlanCache
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from tests.core.tiny import TinyUNet

RATIOS = Ratios(0.3, 0.2, 0.1)


def plan_for(seed):
    return make_plan(prunable_parameters(TinyUNet(seed=seed)), RATIOS)


PLANS = [plan_for(seed) for seed in range(6)]


def test_computes_once_for_a_key():
    cache = PlanCache()
    assert cache.get("a", lambda: PLANS[0]) is PLANS[0]
    assert cache.get("a", lambda: pytest.fail("it is there")) is PLANS[0]
    assert cache.get(("a", RATIOS), lambda: PLANS[1]) is PLANS[1]
    assert len(cache) == 2


def test_drops_the_least_recently_used():
    cache = PlanCache(size=2)
    for key in "ab":
        cache.get(key, lambda: PLANS[0])
    cache.get("a", lambda: pytest.fail("it is there"))  # now b is the oldest
    cache.get("c", lambda: PLANS[2])
    cache.get("a", lambda: pytest.fail("it was used after b"))
    assert cache.get("b", lambda: PLANS[3]) is PLANS[3]
    assert len(cache) == 2


@given(st.integers(-1, 4), st.lists(st.integers(0, 5), max_size=40))
def test_behaves_like_a_bounded_dictionary(size, keys):
    cache = PlanCache(size)
    kept: list[int] = []  # the oldest first
    for key in keys:
        computed: list[int] = []
        found = cache.get(key, lambda k=key, c=computed: c.append(k) or PLANS[k])
        assert found is PLANS[key]
        assert bool(computed) == (key not in kept)
        kept = [*(k for k in kept if k != key), key][-max(1, size) :]
        assert len(cache) == len(kept)


@pytest.mark.parametrize("error", [CRDiffError("NaN"), KeyboardInterrupt()])
def test_an_error_passes_and_leaves_nothing(error):
    cache = PlanCache()

    def fail():
        raise error

    with pytest.raises(type(error)):
        cache.get("a", fail)
    assert len(cache) == 0
    assert cache.get("a", lambda: PLANS[0]) is PLANS[0]  # and holds no lock


def test_computing_may_use_the_cache():
    cache = PlanCache()
    assert cache.get("a", lambda: cache.get("b", lambda: PLANS[1])) is PLANS[1]
    assert len(cache) == 2


def test_clear():
    cache = PlanCache()
    cache.get("a", lambda: PLANS[0])
    cache.clear()
    assert len(cache) == 0
    assert cache.get("a", lambda: PLANS[1]) is PLANS[1]


def test_holds_no_tensor_and_no_module():
    cache = PlanCache()
    gone = []

    def compute():
        unet = TinyUNet()
        gone.extend([weakref.ref(unet), weakref.ref(next(unet.parameters()))])
        return make_plan(prunable_parameters(unet), RATIOS)

    cache.get("a", compute)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    plan = cache.get("a", lambda: pytest.fail("it is there"))
    assert not any(isinstance(value, torch.Tensor) for value in vars(plan).values())


def test_many_threads():
    cache = PlanCache(size=3)

    def work(index):
        key = index % len(PLANS)
        return cache.get(key, lambda: PLANS[key]) is PLANS[key]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(2000)))
    assert len(cache) == 3
