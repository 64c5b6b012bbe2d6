"""What each call of the UNet becomes: passes, their order, plans, what is let go of."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext.amplify import Amplifier, Place, Window
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.actor import PLANS, Actor
from tests.core.pruned import X
from tests.webui.acting import (
    RATIOS,
    WAYS,
    UNetSource,
    acting,
    actor,
    job_with_record,
    reference_ldm,
    sampled,
)
from tests.webui.jobs import Source


@pytest.fixture(autouse=True)
def empty_cache():
    PLANS.clear()
    yield
    PLANS.clear()


def test_a_call_is_a_dense_pass_a_pruned_pass_and_their_mix():
    source = UNetSource()
    with torch.no_grad():
        dense = source.unet(X)
        pruned = reference_ldm(source, RATIOS)(X)
    act = actor(source)
    outputs = sampled(source, act, 3)
    assert not torch.equal(dense, pruned)
    assert all(torch.equal(z, torch.lerp(dense, pruned, 1.5)) for z in outputs)
    assert (act.stats.dense_passes, act.stats.pruned_passes) == (3, 3)
    assert source.events.count("weights") == 1


@pytest.mark.parametrize("k", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("way", WAYS)
def test_the_dense_pass_comes_first_while_weights_may_change(k, way):
    source, calls = Source(), []

    def call():
        calls.append(source.events.count("enter") > source.events.count("leave"))
        return torch.ones(1)

    act = actor(source, k=k, amplification=way)
    act(call, Place(level=2.0))
    act(call, Place(level=1.0))
    assert calls == [False, True] * 2
    assert source.events == ["weights", "enter", "leave", "enter", "leave"]
    assert set(source.factors) == {1 - k if way == "folded" else 0}


def test_settled_weights_need_no_dense_pass_first():
    source = Source()
    source.calm = True
    act = actor(source, amplification="folded")
    for level in (2.0, 1.0):
        act(lambda: torch.ones(1), Place(level=level))
    assert (act.stats.dense_passes, act.stats.pruned_passes) == (0, 2)
    assert source.events.count("weights") == 1
    assert source.factors == [-0.5, -0.5]
    single = actor(source, k=1.0)
    single(lambda: torch.ones(1), Place())
    assert (single.stats.dense_passes, single.stats.pruned_passes) == (0, 1)


def test_settled_is_asked_for_only_where_it_matters():
    source = Source()
    source.settled = None  # would fail if it were called
    actor(source)(lambda: torch.ones(1), Place())


def test_a_plan_is_known_by_the_actor_or_by_the_cache():
    source = Source()
    source.lazy = True
    acts = [actor(source, amplification="folded") for _ in range(2)]
    for act in acts:
        act(lambda: torch.ones(1), Place())
    assert [act.stats.dense_passes for act in acts] == [1, 0]
    PLANS.clear()  # as if others had pushed it out
    acts[1](lambda: torch.ones(1), Place())
    assert acts[1].stats.dense_passes == 0
    source.version += 1
    acts[1](lambda: torch.ones(1), Place())
    assert acts[1].stats.dense_passes == 1


def test_free_lets_differences_go():
    source = Source()
    act = actor(source, amplification="reuse-4")
    act(lambda: torch.ones(1), Place(level=2.0))
    assert act._amplifier._deltas._kept
    act.free()
    assert act._amplifier._deltas._kept == {}


def test_thresholds_see_what_the_dense_pass_merged():
    # as LoRA does it: extensions-builtin/Lora/networks.py merges inside the first forward
    source = UNetSource()
    act = actor(source)
    merged = []

    def call():
        if not merged:
            merged.append(True)
            for parameter in source.unet.parameters():
                parameter.mul_(3)
        return source.unet(X)

    with torch.no_grad():
        found = act(call, Place())
        expected = torch.lerp(source.unet(X), reference_ldm(source, RATIOS)(X), 1.5)
    assert torch.equal(found, expected)


def test_thresholds_are_made_again_when_the_weights_have_changed():
    source = UNetSource()
    act = actor(source)
    sampled(source, act)
    before = act.plan()
    with torch.no_grad():
        for parameter in source.unet.parameters():
            parameter.mul_(2)
    after = act.plan()
    assert after.thresholds["up"] == pytest.approx(2 * before.thresholds["up"])
    assert source.events.count("weights") == 2


def test_thresholds_are_shared_between_generations_but_not_between_ratios():
    source = UNetSource()
    first, second, other = actor(source), actor(source), actor(source, Ratios(0.1, 0.1, 0.1))
    for act in (first, second, other):
        sampled(source, act)
    assert first.plan() is second.plan()
    assert other.plan() is not first.plan()
    assert source.events.count("weights") == 2


def test_ratios_too_small_to_prune_anything_change_nothing():
    source = UNetSource()
    act = actor(source, Ratios(1e-9, 0, 0))
    with torch.no_grad():
        dense = source.unet(X)
    assert all(torch.equal(z, dense) for z in sampled(source, act, 2))
    assert act.is_noop
    record = job_with_record(actor_=act).records[0]
    assert record.pruned_passes == 0


def test_only_inside_the_window():
    source = UNetSource()
    act = actor(source, window=Window(0.25, 0.75))
    with torch.no_grad():
        dense = source.unet(X)
        outputs = [act(lambda: source.unet(X), Place(step / 4)) for step in range(4)]
    assert [torch.equal(z, dense) for z in outputs] == [True, False, False, True]
    assert (act.stats.dense_passes, act.stats.pruned_passes) == (4, 2)


def test_the_cache_of_plans_is_bounded():
    for index in range(100):
        source = Source()
        source.version = index
        actor(source)(lambda: torch.ones(1), Place())
    assert len(PLANS) == 32


def test_an_output_in_a_buffer_that_the_next_call_clears_is_kept():
    """Mixture of Diffusers answers so."""
    source, buffer, values = Source(), torch.zeros(1), iter((1.0, 3.0))

    def call():
        return buffer.fill_(next(values))

    assert actor(source)(call, Place()).item() == pytest.approx(1 + 1.5 * (3 - 1))


def test_both_passes_draw_the_same_noise():
    """What draws inside the UNet must not look like an effect of pruning."""
    seen = []

    def call():
        seen.append(torch.randn(3))
        return seen[-1]

    torch.manual_seed(0)
    mixed = actor(Source())(call, Place())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(mixed, seen[0])
    after = torch.randn(1)
    torch.manual_seed(0)
    torch.randn(3)
    assert torch.equal(torch.randn(1), after)  # as if there had been one pass


def test_began_is_told_once_after_the_first_pruned_pass():
    told = []
    source = Source()
    act = Actor(
        acting(), Amplifier(), source, lambda s: None, lambda: told.append(list(source.events))
    )
    for _ in range(3):
        act(lambda: torch.ones(1), Place())
    assert told == [["weights", "enter", "leave"]]
