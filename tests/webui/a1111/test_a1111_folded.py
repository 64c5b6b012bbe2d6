"""Folded and reused amplification in A1111: fewer passes, and LoRAs merged lazily around them."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crdiff_ext.blocks import prunable_layers
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.actor import PLANS
from tests.core.pruned import Snapshot
from tests.webui.a1111.bench import RATIOS, STEPS, Bench, by_hand, counts, move, passes
from tests.webui.fakes import a1111 as fake

NOTHING = Ratios(1e-9, 1e-9, 1e-9)


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_folded_is_one_pass_with_the_small_weights_scaled(bench: Bench, memory: str) -> None:
    off = bench.run()
    before = Snapshot(bench.unet)
    exact = bench.run(bench.job())
    job = bench.job(memory=memory, amplification="folded")
    on = bench.run(job)
    job.free()
    assert counts(job) == [(0, STEPS)]  # the plan is known from the exact image
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5, factor=-0.5))
    assert len({t.numpy().tobytes() for t in (on, exact, off)}) == 3
    assert (on - exact).norm() < (exact - off).norm()
    before.check()
    assert torch.equal(bench.run(), off)


@pytest.mark.parametrize("more", [{"amplification": "folded"}, {"k": 1.0}])
def test_one_discarded_pass_when_weights_are_not_known_yet(bench: Bench, more: Any) -> None:
    assert passes(bench, **more) == (1, STEPS)
    assert passes(bench, **more) == (0, STEPS)
    with torch.no_grad():
        prunable_layers(bench.unet)[0].module.weight.mul_(2)
    assert passes(bench, **more) == (1, STEPS)
    move(bench.unet)  # another device: the same weights
    assert passes(bench, **more) == (0, STEPS)
    PLANS.clear()
    assert passes(bench, **more) == (1, STEPS)


def test_k_of_one_is_the_pruned_model_alone(bench: Bench) -> None:
    expected = by_hand(bench, RATIOS, 1.0)
    for way in ("exact", "folded", "reuse-3"):
        assert torch.equal(bench.run(bench.job(k=1.0, amplification=way)), expected)


@pytest.mark.parametrize(
    "more", [{"amplification": "folded"}, {"k": 1.0}, {"amplification": "reuse-4"}]
)
def test_loras_on_off_and_changed_around_it(bench: Bench, plans: list, more: Any) -> None:
    """Weights, LoRA merged, are as they would be had CR-Diff never run."""
    off, plain = bench.run(), bench.checksums()
    dense = {}
    for strength in (1.0, 0.5):
        bench.host.networks["style"] = strength
        dense[strength] = bench.run(), bench.checksums()
    bench.host.networks.clear()
    assert torch.equal(bench.run(), off)
    assert bench.checksums() == plain

    images = []
    for strength in (None, 1.0, 0.5, None, 1.0, 1.0):
        bench.host.networks.clear()
        if strength is not None:
            bench.host.networks["style"] = strength
        job = bench.job(**more)
        images.append(bench.run(job))
        job.free()
        assert bench.checksums() == (plain if strength is None else dense[strength][1])
    assert torch.equal(images[0], images[3])
    assert torch.equal(images[1], images[4])
    assert torch.equal(images[4], images[5])
    assert len({image.numpy().tobytes() for image in images}) == 3
    assert len({str(plan.thresholds) for plan in plans}) == 3
    bench.host.networks.clear()
    assert torch.equal(bench.run(), off)
    assert bench.checksums() == plain


def test_a_queue_with_one_lora_makes_one_discarded_pass(bench: Bench) -> None:
    bench.host.networks["style"] = 1.0
    assert passes(bench, amplification="folded") == (1, STEPS)
    assert passes(bench, amplification="folded") == (0, STEPS)
    bench.host.networks["style"] = 0.5
    assert passes(bench, amplification="folded") == (1, STEPS)


def test_the_first_generation_with_a_lora_is_the_folded_model_with_it(bench: Bench) -> None:
    bench.run(bench.job(amplification="folded"))
    bench.host.networks["style"] = 1.0
    on = bench.run(bench.job(amplification="folded"))
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5, factor=-0.5))  # it is merged by now


@pytest.mark.parametrize("way", ["folded", "reuse-4"])
def test_a_lora_that_comes_in_the_middle(bench: Bench, plans: list, way: str) -> None:
    def late(params: Any) -> None:
        if params.denoiser.step == 2:
            bench.host.networks["style"] = 1.0

    bench.host.script_callbacks.on_cfg_denoiser(late)
    found = passes(bench, amplification=way)
    # at the start and at its coming; reuse-4 would have needed the first one alone
    assert found == (2, STEPS)
    assert plans[0].thresholds != plans[1].thresholds


@pytest.mark.parametrize("before", [False, True], ids=["fresh", "merged before"])
def test_lora_functional_beside_folded_weights(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    off, plain = bench.run(), bench.checksums()
    bench.host.networks["style"] = 1.0
    if before:  # taken out in the first forward after the switch
        bench.run(bench.job(amplification="folded"))
    monkeypatch.setattr(fake.Linear, "functional", True)
    on = bench.run(bench.job(amplification="folded"))
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5, factor=-0.5))
    assert bench.checksums() == plain
    assert passes(bench, amplification="folded") == (0, STEPS)
    bench.host.networks.clear()
    assert torch.equal(bench.run(), off)


def test_merges_by_unknown_accounts_are_never_settled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(bench.job())
    monkeypatch.setitem(fake.sys.modules, "lycoris", SimpleNamespace())
    assert passes(bench, amplification="folded") == (STEPS, STEPS)
    monkeypatch.delitem(fake.sys.modules, "lycoris")
    other = SimpleNamespace(loaded_networks=[SimpleNamespace(name="style")])
    monkeypatch.setitem(fake.sys.modules, "networks", other)
    assert passes(bench, amplification="folded") == (STEPS, STEPS)


def test_without_the_lora_extension_the_key_alone_tells(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(fake.sys.modules, "networks")
    assert passes(bench, amplification="folded") == (1, STEPS)
    assert passes(bench, amplification="folded") == (0, STEPS)


def test_layers_that_the_lora_extension_does_not_know_hold_nothing_up(bench: Bench) -> None:
    prunable_layers(bench.unet)[3].module.network_layer_name = None
    bench.host.networks["style"] = 1.0
    assert passes(bench, amplification="folded") == (1, STEPS)
    assert passes(bench, amplification="folded") == (0, STEPS)


@pytest.mark.parametrize("way", ["folded", "reuse-2", "reuse-3", "reuse-4"])
def test_nothing_pruned_is_off_bit_for_bit(bench: Bench, way: str) -> None:
    off = bench.run()
    job = bench.job(NOTHING, amplification=way)
    assert torch.equal(bench.run(job), off)
    assert job.records[0].decision.act
    assert job.acted() == []
    job = bench.job(Ratios(0, 0, 0), amplification=way)
    assert torch.equal(bench.run(job), off)
    assert counts(job) == []


@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("error", [RuntimeError("no memory"), fake.InterruptedException()])
@pytest.mark.parametrize("way", ["folded", "reuse-4"])
def test_a_failure_in_a_single_pass_leaves_nothing(
    bench: Bench, way: str, error: BaseException, memory: str
) -> None:
    off = bench.run()
    bench.run(bench.job(amplification=way))
    before = Snapshot(bench.unet)
    watched = prunable_layers(bench.unet)[20].module
    own, seen = watched.weight, [0]

    def strike(module: Any, *_: Any) -> None:
        seen[0] += module.weight is not own
        if seen[0] == 2:
            raise error

    hook = watched.register_forward_hook(strike)
    job = bench.job(memory=memory, amplification=way)
    with suppress(RuntimeError):  # an interrupt gives the image so far
        bench.run(job)
    hook.remove()
    assert seen[0] == 2
    assert job.records[0].actor._amplifier._deltas._kept == {}
    before.check()
    assert torch.equal(bench.run(), off)
    assert passes(bench, amplification=way, memory=memory)[1] == STEPS


@pytest.mark.parametrize("way", ["folded", "reuse-3"])
def test_damaged_weights_give_a_dense_image(bench: Bench, way: str) -> None:
    layer = prunable_layers(bench.unet)[0]
    with torch.no_grad():
        layer.module.weight[0, 0] = float("nan")
    off = bench.run()
    job = bench.job(amplification=way)
    on = bench.run(job)
    assert torch.equal(on.isnan(), off.isnan())
    assert counts(job) == [(STEPS, 1)]  # one pruned pass was begun, and its thresholds refused
    assert job.acted() == []
    assert len(bench.said) == 1


def test_layers_with_an_account_that_nobody_known_keeps_are_not_settled(bench: Bench) -> None:
    """Some other module took the name of the host's LoRA extension."""
    layer = SimpleNamespace(network_current_names=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench.weights.sys.modules, "networks", SimpleNamespace())
        assert not bench.weights.merges_nothing([layer])
        assert bench.weights.merges_nothing([SimpleNamespace()])
