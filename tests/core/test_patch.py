from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
import torch

from crdiff_ext.amplify import Window
from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.outputs import prediction_of
from crdiff_ext.patch import CRDiff, fresh
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import pruned_weights
from tests.core.tiny import LDM_BLOCKS, Matrix, TinyUNet

RATIOS = Ratios(0.3, 0.4, 0.5)
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


@dataclass
class Output:
    sample: torch.Tensor
    other: str = "as the dense pass says"


class Plain:
    def __init__(self, sample):
        self.sample = sample


def plan_of(unet, ratios=RATIOS):
    return make_plan(prunable_parameters(unet), ratios)


def wrapped(kind, blocks=None):
    """A TinyUNet whose forward gives another kind of output."""
    unet = TinyUNet() if blocks is None else TinyUNet(blocks)
    plain = TinyUNet.forward
    kinds = {
        "tensor": lambda y: y,
        "tuple": lambda y: (y, "extra"),
        "list": lambda y: [y, "extra"],
        "dataclass": lambda y: Output(y),
        "object": lambda y: Plain(y),
    }
    unet.forward = lambda x, *a, **k: kinds[kind](plain(unet, x, *a, **k))
    return unet


def sample_of(output):
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, (tuple, list)) else output.sample


def dense_and_pruned(unet, plan):
    dense = sample_of(unet(X))
    with pruned_weights(unet, plan):
        return dense, sample_of(unet(X))


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dataclass", "object"])
@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_amplified_output_of_every_kind(kind, memory):
    unet = wrapped(kind)
    plan = plan_of(unet)
    dense, pruned = dense_and_pruned(unet, plan)
    forward = unet.__dict__["forward"]
    handle = CRDiff(unet, plan, 1.5, memory)
    with handle.attached():
        output = unet(X)
    assert torch.equal(sample_of(output), torch.lerp(dense, pruned, 1.5))
    assert type(output) is type(unet(X))
    if kind in ("tuple", "list"):
        assert output[1] == "extra"
    assert unet.__dict__["forward"] is forward
    assert handle.note is None
    assert handle.memory == memory


@pytest.mark.parametrize("memory", ["recompute", "copy", "auto"])
def test_ldm_modules(memory):
    unet = TinyUNet(LDM_BLOCKS)
    plan = plan_of(unet)
    dense, pruned = dense_and_pruned(unet, plan)
    with CRDiff(unet, plan, 2.0, memory).attached():
        assert torch.equal(unet(X), torch.lerp(dense, pruned, 2.0))
    assert "forward" not in unet.__dict__
    assert torch.equal(unet(X), dense)


def test_stats_count_passes_and_copies_end_with_the_handle():
    unet = TinyUNet()
    handle = CRDiff(unet, plan_of(unet), 1.5, "copy")
    with handle.attached():
        for _ in range(3):
            unet(X)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (3, 3)
    assert all(layer.copy is None for layer in handle._weights._layers)
    with handle.attached():  # it can be used again
        unet(X)
    assert (handle.stats.dense_passes, unet.calls) == (4, 8)


def test_k_one_is_the_pruned_pass_alone():
    unet = TinyUNet()
    plan = plan_of(unet)
    _, pruned = dense_and_pruned(unet, plan)
    handle = CRDiff(unet, plan, 1.0)
    with handle.attached():
        assert torch.equal(unet(X), pruned)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (0, 1)


@pytest.mark.parametrize(
    ("unet", "ratios", "k", "said"),
    [
        (TinyUNet(), RATIOS, 0.0, "k is 0"),
        (TinyUNet(), Ratios(0, 0, 0), 1.5, "ratios are 0"),
        (TinyUNet(), Ratios(0, 1e-9, 0), 1.0, "too small"),
        (Matrix(torch.eye(8)), RATIOS, 1.5, "no prunable layer"),
    ],
)
def test_nothing_to_do_is_one_dense_pass_and_says_so(unet, ratios, k, said, caplog):
    expected = unet(X)
    handle = CRDiff(unet, plan_of(unet, ratios), k)
    assert said in handle.note
    with caplog.at_level(logging.INFO, "crdiff_ext"), handle.attached():
        output = unet(X)
    assert torch.equal(output, expected)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (1, 0)
    assert said in caplog.text


def test_window_by_fraction():
    unet = TinyUNet()
    plan = plan_of(unet)
    dense, _ = dense_and_pruned(unet, plan)
    handle = CRDiff(unet, plan, window=Window(0.0, 0.5))
    acted = []
    with handle.attached():
        with pytest.raises(CRDiffError, match="fraction"):
            unet(X)
        for step in range(4):
            handle.fraction = step / 4
            acted.append(not torch.equal(unet(X), dense))
    assert acted == [True, True, False, False]


def test_attaching_twice():
    unet = TinyUNet()
    plan = plan_of(unet)
    handle = CRDiff(unet, plan)
    with handle.attached() as same:
        assert same is handle
        once = unet(X)
        with handle.attached():
            assert torch.equal(unet(X), once)
        assert torch.equal(unet(X), once)
        other = CRDiff(unet, plan)
        with pytest.raises(CRDiffError, match="attached"), other.attached():
            pass
        assert torch.equal(unet(X), once)
    assert "forward" not in unet.__dict__


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("failing_pass", [1, 2])
@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_undone_when_a_pass_raises(error, failing_pass, memory):
    unet = TinyUNet()
    plan = plan_of(unet)
    weights = list(unet.parameters())
    expected = unet(X)
    unet.calls = 0
    last = unet.order[-1]

    def interrupted(x):
        if unet.calls == failing_pass:
            raise error
        return Matrix.forward(last, x)

    last.forward = interrupted
    with pytest.raises(error), CRDiff(unet, plan, memory=memory).attached():
        unet(X)
    del last.forward
    assert "forward" not in unet.__dict__
    assert all(a is b for a, b in zip(weights, unet.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    assert torch.equal(unet(X), expected)


def test_root_hooks_run_once_a_call():
    unet = TinyUNet()
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    with CRDiff(unet, plan_of(unet)).attached():
        unet(X)
    assert calls == [1]
    assert unet.calls == 2


def test_each_pass_gets_containers_of_its_own():
    """As diffusers' T2I-adapter residuals and LDM's control, from which the UNet pops."""
    seen = []

    class Popping(TinyUNet):
        def forward(self, x, control=None, residuals=None):
            seen.append((control["output"].pop(), residuals.pop(0)))
            control["done"] = True
            return super().forward(x)

    unet = Popping()
    extra = torch.ones(1)
    control = {"output": [extra]}
    residuals = [extra, extra]
    with CRDiff(unet, plan_of(unet)).attached():
        unet(X, control, residuals=residuals)
    assert len(seen) == 2
    assert all(tensor is extra for pair in seen for tensor in pair)
    assert list(control) == ["output"]
    assert len(control["output"]) == 1
    assert len(residuals) == 2
    assert fresh((X, {"a": [X]}))[1]["a"][0] is X


def test_outputs_that_are_not_understood():
    with pytest.raises(CRDiffError, match="dict"):
        prediction_of({})
    with pytest.raises(CRDiffError, match="tuple"):
        prediction_of(())


def test_wrong_k_and_memory():
    unet = TinyUNet()
    with pytest.raises(CRDiffError, match="k is"):
        CRDiff(unet, plan_of(unet), -1)
    with pytest.raises(CRDiffError, match="memory"):
        CRDiff(unet, plan_of(unet), memory="disk")
