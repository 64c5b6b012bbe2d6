"""Both passes of the A1111 adapter: the formula, off to the last bit, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crdiff_ext.blocks import prunable_layers
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.job import Job
from tests.core.pruned import Snapshot
from tests.webui.a1111.bench import RATIOS, Bench, by_hand, counts
from tests.webui.fakes import a1111 as fake

NOTHING = Ratios(1e-9, 1e-9, 1e-9)  # acts, and prunes not a single weight


@pytest.mark.parametrize("memory", ["recompute", "copy", "auto"])
def test_on_is_the_formula_and_off_again_is_off(bench: Bench, memory: str) -> None:
    off = bench.run()
    before = Snapshot(bench.unet)
    job = bench.job(memory=memory)
    on = bench.run(job)
    job.free()
    assert counts(job) == [(4, 4)]
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5))
    assert not torch.equal(on, off)
    before.check()
    assert torch.equal(bench.run(), off)


def test_nothing_pruned_is_off_bit_for_bit(bench: Bench) -> None:
    job = bench.job(NOTHING)
    assert torch.equal(bench.run(job), bench.run())
    assert job.records[0].decision.act
    assert job.acted() == []


def test_ratios_of_zero_make_no_second_pass(bench: Bench) -> None:
    job = bench.job(Ratios(0, 0, 0))
    off = bench.run()
    calls = bench.unet.calls
    assert torch.equal(bench.run(job), off)
    assert bench.unet.calls == calls + 4


def test_without_a_job_nothing_is_touched(bench: Bench) -> None:
    p = fake.Processing()
    del p.crdiff_job  # a generation that no script of ours ever saw
    seen: list[bool] = []
    bench.host.script_callbacks.on_cfg_denoiser(
        lambda params: seen.append("apply_model" in bench.host.sd_model.__dict__)
    )
    bench.host.sample(p)
    assert seen == [False] * 4


def fail_in_pruned_pass(bench: Bench, error: BaseException, memory: str) -> Job:
    """Raise ``error`` in the middle of the second pruned pass."""
    job = bench.job(memory=memory)
    watched = prunable_layers(bench.unet)[20].module
    seen = [0]

    def strike(module: Any, *_: Any) -> None:
        seen[0] += bool((module.weight == 0).any())
        if seen[0] == 2:
            raise error

    hook = watched.register_forward_hook(strike)
    try:
        bench.run(job)
    finally:
        hook.remove()
        assert seen[0] == 2
    return job


@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("error", [RuntimeError("no memory"), fake.InterruptedException()])
def test_a_failure_in_a_pruned_pass_leaves_nothing(
    bench: Bench, error: BaseException, memory: str
) -> None:
    off = bench.run()
    before = Snapshot(bench.unet)
    if isinstance(error, Exception):
        with pytest.raises(RuntimeError, match="no memory"):
            fail_in_pruned_pass(bench, error, memory)
    else:
        fail_in_pruned_pass(bench, error, memory)
    assert "apply_model" not in bench.host.sd_model.__dict__
    before.check()
    assert torch.equal(bench.run(), off)


def test_damaged_weights_are_said_once_and_the_image_is_dense(bench: Bench) -> None:
    layer = prunable_layers(bench.unet)[0]
    with torch.no_grad():
        layer.module.weight[0, 0] = float("nan")
    job = bench.job()
    bench.run(job)
    assert job.acted() == []
    assert len(bench.said) == 1
    assert layer.name in bench.said[0]
    assert "NaN" in bench.said[0]
