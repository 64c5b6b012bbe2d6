"""A pruned pass sees pruned weights, and whatever happens the dense ones are back afterwards."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext import weights as weights_module
from crdiff_ext.blocks import prunable_layers, prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.pruning import make_plan, prune
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import PrunedWeights, free_bytes, pruned_weights
from tests.core.pruned import Snapshot, X, make, reference
from tests.core.tiny import LDM_BLOCKS, Matrix, TinyUNet

MEMORY = ["recompute", "copy", "auto"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", MEMORY)
def test_the_pass_is_pruned_and_undone(memory, dtype):
    unet, plan = make(dtype)
    x = X.to(dtype)
    before = Snapshot(unet)
    dense = unet(x)
    with pruned_weights(unet, plan, memory):
        assert torch.equal(unet(x), reference(unet, plan)(x))
        assert torch.equal(unet(x), reference(unet, plan)(x))
        assert not torch.equal(unet(x), dense)
    before.check()
    assert torch.equal(unet(x), dense)


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_ldm_names_too(memory):
    unet, plan = make()
    ldm = TinyUNet(LDM_BLOCKS)
    with pruned_weights(ldm, plan, memory):
        assert torch.equal(ldm(X), reference(unet, plan)(X))


def test_recompute_holds_one_layer_at_a_time():
    unet, plan = make()
    layers = prunable_layers(unet)
    dense = {id(layer.module): layer.module.weight for layer in layers}
    seen = []

    def spy(module, _args, _output):
        seen.append([m for m in layers if m.module.weight is not dense[id(m.module)]])

    with pruned_weights(unet, plan, "recompute"):
        for layer in layers:
            layer.module.register_forward_hook(spy, prepend=True)
        unet(X)
    assert [len(held) for held in seen].count(1) == 36  # the middle's 6 layers are left alone
    assert max(len(held) for held in seen) == 1


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_nesting_with_the_same_thresholds_changes_nothing(memory):
    unet, plan = make()
    before = Snapshot(unet)
    expected = reference(unet, plan)(X)
    with pruned_weights(unet, plan, memory):
        for inner in ("recompute", "copy"):
            with pruned_weights(unet, plan, inner):
                assert torch.equal(unet(X), expected)
            assert torch.equal(unet(X), expected)
    before.check()


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_nesting_with_other_thresholds_is_refused(memory):
    unet, plan = make()
    other = make_plan(prunable_parameters(unet), Ratios(0.5, 0.5, 0.5))
    before = Snapshot(unet)
    with pruned_weights(unet, plan, memory):
        with pytest.raises(CRDiffError, match="another threshold"), pruned_weights(unet, other):
            pass
        assert torch.equal(unet(X), reference(unet, plan)(X))
    before.check()


def test_copies_follow_the_dense_weights():
    unet, plan = make()
    pruned = PrunedWeights(unet, plan, "copy")
    weight = unet.order[0].weight
    with pruned.active():
        first = unet.order[0].weight
    with pruned.active():
        assert unet.order[0].weight is first
    with torch.no_grad():
        weight.mul_(2)
    with pruned.active():
        changed = unet.order[0].weight
        assert changed is not first
        assert torch.equal(changed, prune(weight, plan.thresholds["down"]))
    pruned.free()
    with pruned.active():
        assert unet.order[0].weight is not changed
    assert unet.order[0].weight is weight


def test_auto_looks_at_free_memory(monkeypatch):
    unet, plan = make()
    need = PrunedWeights(unet, plan).copy_bytes
    assert need == 4 * sum(plan.totals[group] for group in ("down", "up"))
    for free, expected in [(2 * need, "copy"), (2 * need - 1, "recompute"), (None, "recompute")]:
        monkeypatch.setattr(weights_module, "free_bytes", lambda device, free=free: free)
        assert PrunedWeights(unet, plan, "auto").memory == expected
    assert PrunedWeights(unet, plan, "copy").memory == "copy"


def test_auto_takes_more_of_it_for_folded_copies(monkeypatch):
    unet, plan = make()
    need = PrunedWeights(unet, plan).copy_bytes
    for free, expected in [(-(-4 * need // 3), "copy"), (4 * need // 3 - 4, "recompute")]:
        monkeypatch.setattr(weights_module, "free_bytes", lambda device, free=free: free)
        assert PrunedWeights(unet, plan, "auto", factor=-0.5).memory == expected


def run_out_of_memory(monkeypatch, after):
    """Have the ``after``-th weight and all later ones not fit."""
    made = []

    def short(weight, threshold, factor=0.0):
        made.append(weight)
        if len(made) == after:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return prune(weight, threshold, factor)

    monkeypatch.setattr(weights_module, "prune", short)


def test_auto_falls_back_when_memory_runs_out_while_copying(monkeypatch, caplog):
    unet, plan = make()
    expected = reference(unet, plan)(X)
    monkeypatch.setattr(weights_module, "free_bytes", lambda device: 2**50)
    pruned = PrunedWeights(unet, plan, "auto")
    run_out_of_memory(monkeypatch, after=2)
    with caplog.at_level("WARNING"), pruned.active():
        assert torch.equal(unet(X), expected)
    assert pruned.memory == "recompute"
    assert all(layer.copy is None for layer in pruned._layers)
    assert "not enough memory" in caplog.text


def test_copy_that_was_asked_for_does_not_fall_back(monkeypatch):
    unet, plan = make()
    dense = unet(X)
    run_out_of_memory(monkeypatch, after=2)
    pruned = PrunedWeights(unet, plan, "copy")
    with pytest.raises(torch.cuda.OutOfMemoryError), pruned.active():
        pass
    assert torch.equal(unet(X), dense)


def test_free_memory_is_plausible():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert free_bytes(torch.device("meta")) is None


def test_works_in_inference_mode():
    with torch.inference_mode():
        unet, plan = make()
        for memory in ("recompute", "copy"):
            with pruned_weights(unet, plan, memory):
                assert torch.equal(unet(X), reference(unet, plan)(X))
    with torch.inference_mode(), pruned_weights(TinyUNet(), plan, "copy"):
        pass


def test_copies_made_in_inference_mode_work_outside():
    unet, plan = make()
    pruned = PrunedWeights(unet, plan, "copy")
    with torch.inference_mode(), pruned.active():
        unet(X)
    with pruned.active():
        unet(X).sum().backward()


@pytest.mark.parametrize("memory", ["recompute", "copy", "auto"])
def test_compiled_modules_are_refused(memory):
    unet, plan = make()
    wrapper = torch.nn.Module()  # as torch.compile(unet) wraps it
    wrapper.add_module("_orig_mod", unet)
    with pytest.raises(CRDiffError, match=r"torch\.compile"):
        PrunedWeights(wrapper, plan, memory)
    unet.order[0]._compiled_call_impl = lambda x: x  # as Module.compile() does
    with pytest.raises(CRDiffError, match=r"torch\.compile"):
        PrunedWeights(unet, plan, memory)


def test_no_gradient_through_the_pruned_weights():
    unet, plan = make()
    with pruned_weights(unet, plan):
        unet(X).sum().backward()
    assert unet.order[0].weight.grad is None
    assert unet.order[12].weight.grad is not None  # the middle's, left alone


def test_a_weight_in_a_buffer_or_attribute():
    for kind in ("buffer", "attribute"):
        unet, plan = make()
        expected = reference(unet, plan)(X)
        layer = unet.order[0]
        weight = layer.weight.detach()
        del layer.weight
        if kind == "buffer":
            layer.register_buffer("weight", weight)
        else:
            layer.__dict__["weight"] = weight
        with pruned_weights(unet, plan):
            assert torch.equal(unet(X), expected)
        assert layer.weight is weight


def test_what_cannot_be_pruned_is_refused():
    unet, plan = make()
    with pytest.raises(CRDiffError, match="memory"):
        PrunedWeights(unet, plan, "fold")
    layer = unet.order[0]
    layer.weight = torch.nn.Parameter(torch.empty(8, 8, device="meta"))
    for memory in ("recompute", "copy"):
        with pytest.raises(CRDiffError, match="meta device"), pruned_weights(unet, plan, memory):
            unet(X)
    torch.nn.utils.parametrize.register_parametrization(unet.order[1], "weight", torch.nn.Tanh())
    with pytest.raises(CRDiffError, match="parametrization"):
        PrunedWeights(unet, plan)


def test_nothing_to_prune_touches_nothing():
    module = Matrix(torch.eye(8))
    unet, plan = make()
    with pruned_weights(module, plan, "auto"):
        assert torch.equal(module(X), X)
    with pruned_weights(unet, make_plan(prunable_parameters(unet), Ratios(0, 0, 0))):
        assert not any(layer._forward_pre_hooks for layer in unet.order)
