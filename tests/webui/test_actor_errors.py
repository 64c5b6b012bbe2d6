"""Errors in the middle of a call of the UNet: what is told, and what the image becomes."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext.amplify import Place, Window
from crdiff_ext.errors import CRDiffError
from crdiff_ext.webui.actor import PLANS
from tests.core.pruned import X
from tests.webui.acting import (
    UNetSource,
    actor,
    job_with_record,
)
from tests.webui.jobs import Source


@pytest.fixture(autouse=True)
def empty_cache():
    PLANS.clear()
    yield
    PLANS.clear()


@pytest.mark.parametrize("way", ["folded", "reuse-2"])
def test_an_error_without_a_dense_output_in_hand_gives_a_dense_image(way):
    """With the noise that one dense pass would have drawn."""
    source, told, seen = Source(), [], []
    source.calm = True

    def call():
        inside = source.events.count("enter") > source.events.count("leave")
        seen.append("pruned" if inside else "dense")
        if inside and seen.count("pruned") == 2:
            torch.randn(5)
            raise CRDiffError("the weights are damaged")
        return torch.randn(1)

    act = actor(source, fail=told.append, amplification=way)
    act(call, Place(level=2.0))
    seen_before = len(seen)
    torch.manual_seed(3)
    output = act(call, Place(level=1.0))
    torch.manual_seed(3)
    assert torch.equal(output, torch.randn(1))
    assert seen[seen_before:] == ["pruned", "dense"]
    assert told == ["the weights are damaged"]
    assert act.stats.dense_passes == (1 if way == "folded" else 2)
    torch.manual_seed(3)
    act(call, Place(level=0.5))
    assert seen[-1] == "dense"
    assert act.failed


def test_an_error_after_a_discarded_dense_pass_gives_that_one():
    source = UNetSource()
    with torch.no_grad():
        next(source.unet.parameters())[0, 0] = float("nan")
        calls = []

        def call():
            calls.append(True)
            return torch.full((1,), float(len(calls)))

        act = actor(source, amplification="folded")
        assert act(call, Place()).item() == 1.0
        assert act(call, Place()).item() == 2.0


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", [0, 1])
def test_an_exception_in_either_pass_passes_and_lets_copies_go(error, when):
    source, calls = UNetSource(), []
    before = [p.detach().clone() for p in source.unet.parameters()]

    def call():
        calls.append(True)
        if len(calls) > when:
            raise error
        return source.unet(X)

    with pytest.raises(type(error)), torch.no_grad():
        actor(source)(call, Place())
    assert len(calls) == when + 1
    assert source.events[-1] == "free"
    assert all(torch.equal(a, b) for a, b in zip(source.unet.parameters(), before, strict=True))


def test_damaged_weights_are_told_and_the_image_is_finished_densely():
    source, told = UNetSource(), []
    with torch.no_grad():
        next(source.unet.parameters())[0, 0] = float("nan")
        act = actor(source, fail=told.append)
        calls = []

        def call():
            calls.append(True)
            return torch.full((1,), float(len(calls)))

        assert [act(call, Place()).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert len(told) == 1
    assert act.failed
    assert source.events[-1] == "free"
    assert job_with_record(actor_=act).acted() == []


def test_through_the_api_damaged_weights_end_the_generation():
    def fail(sentence):
        raise LookupError(sentence)  # as session.answer raises an HTTPException

    source = UNetSource()
    with torch.no_grad():
        next(source.unet.parameters())[0, 0] = float("nan")
        with pytest.raises(LookupError):
            actor(source, fail=fail)(lambda: torch.ones(1), Place())


def test_the_pruned_output_must_be_one_that_can_be_mixed():
    told = []
    act = actor(Source(), fail=told.append)
    assert act(lambda: "text", Place()) == "text"
    assert "gave a str" in told[0]
    with pytest.raises(CRDiffError):
        Window(0.5, 0.5)


def test_a_pass_that_was_not_finished_is_not_counted():
    source, calls = Source(), []

    def call():
        calls.append(None)
        if len(calls) == 4:
            raise CRDiffError("the weights are damaged")
        return torch.ones(1)

    act = actor(source)
    act(call, Place())
    act(call, Place())
    assert (act.pruned_passes, act.failed) == (1, True)
