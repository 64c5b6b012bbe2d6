"""Whatever happens in a pruned pass, the dense weights are back afterwards, bit for bit."""

from __future__ import annotations

import sys

import pytest
import torch

from crdiff_ext import weights as weights_module
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import pruned_weights
from tests.core.pruned import Snapshot, X, make
from tests.core.tiny import TinyUNet


class Boom(Exception):
    pass


def failing(error, at):
    """A forward that raises in the middle of its layer, after its weight was swapped."""

    def forward(x):
        assert not torch.equal(at.weight, at.dense)
        raise error

    return forward


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("position", [0, 20, 41])
def test_undone_when_a_layer_raises(memory, error, position):
    unet, plan = make(ratios=Ratios(0.3, 0.4, 0.7))
    layer = unet.order[position]
    layer.dense = layer.weight.detach().clone()
    layer.forward = failing(error, layer)
    before = Snapshot(unet)
    with pytest.raises(error), pruned_weights(unet, plan, memory):
        unet(X)
    before.check()
    del layer.forward
    assert torch.equal(unet(X), TinyUNet()(X))


def test_a_layer_that_raises_is_right_again_within_the_pass():
    unet, plan = make()
    layer = unet.order[0]
    dense = layer.weight
    layer.dense = dense.detach().clone()
    layer.forward = failing(Boom, layer)
    with pruned_weights(unet, plan, "recompute"):
        with pytest.raises(Boom):
            unet(X)
        assert layer.weight is dense


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_undone_wherever_an_interrupt_strikes(memory):
    """Raise KeyboardInterrupt at every line of weights.py in turn, until none is left."""
    unet, plan = make()
    before = Snapshot(unet)
    cleanup = {"_release", "restore", "free"}  # nothing can be promised inside the undoing itself

    def interrupt_at(count):
        left = count

        def trace(frame, event, _arg):
            nonlocal left
            code = frame.f_code
            if code.co_filename != weights_module.__file__ or code.co_name in cleanup:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        old = sys.gettrace()
        sys.settrace(trace)
        try:
            with pruned_weights(unet, plan, memory):
                unet(X)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(old)
        return False

    struck = 0
    while interrupt_at(struck + 1):
        struck += 1
        before.check()
        if struck > 60:  # the rest repeats per layer: go on in larger steps
            break
    step = struck
    while interrupt_at(step):
        before.check()
        step += 17
    before.check()
    assert step > 300
    assert torch.equal(unet(X), TinyUNet()(X))
