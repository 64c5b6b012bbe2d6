"""Parts of a generation in A1111: refiner, hires pass, batches, windows of the schedule."""

from __future__ import annotations

from typing import Any

import pytest

from crdiff_ext.settings import Ratios
from crdiff_ext.webui.job import Job
from tests.webui.a1111.bench import RATIOS, Bench, counts
from tests.webui.fakes import a1111 as fake


def refined(bench: Bench, **more: Any) -> Job:
    refiner = bench.host.load("refiner", 2)
    bench.host.load("base", 1)
    job = bench.job(memory="copy", **more)
    bench.run(job, refiner_checkpoint_info=refiner.sd_checkpoint_info)
    assert bench.host.sd_model is refiner
    for name in ("base", "refiner"):
        assert "apply_model" not in bench.host.models[name].__dict__
    return job


def test_the_refiner_has_thresholds_and_passes_of_its_own(bench: Bench, plans: list) -> None:
    job = refined(bench)
    assert [(r.refiner, r.checkpoint) for r in job.records] == [(False, "base"), (True, "refiner")]
    assert counts(job) == [(2, 2), (2, 2)]
    assert plans[0].thresholds != plans[1].thresholds
    base, refiner = (record.actor._source._weights for record in job.records)
    assert base is None, "copies of a model that is done with have to go"
    assert refiner is not None


def test_the_refiner_is_left_alone_as_set(bench: Bench) -> None:
    job = refined(bench, refiner=False)
    assert [record.decision.code for record in job.records] == ["set", "refiner-off"]
    assert counts(job) == [(2, 2)]


def test_a_refiner_of_the_same_shape_in_the_same_model_object(bench: Bench) -> None:
    """modules/sd_models.py, reload_model_weights: load_state_dict into the loaded model."""
    info = fake.CheckpointInfo("refiner", "/models/refiner.safetensors")
    other = fake.UNet(bench.host.networks, 5).state_dict()

    def load(name: str, seed: int) -> None:
        bench.host.sd_model.model.diffusion_model.load_state_dict(other)
        bench.host.sd_model.sd_checkpoint_info = info

    bench.host.load = load
    job = bench.job()
    bench.run(job, refiner_checkpoint_info=info)
    assert [(r.refiner, r.checkpoint) for r in job.records] == [(False, "base"), (True, "refiner")]
    assert counts(job) == [(2, 2), (2, 2)]


def test_the_hires_pass_has_its_own_ratios_and_size(bench: Bench) -> None:
    job = bench.job(hires="set", hires_ratios=Ratios(0.1, 0.1, 0.1))
    p = fake.Processing(job)
    bench.host.sample(p)
    p.is_hr_pass = True
    bench.host.sample(p, latent=(1, 4, 24, 32))
    first, hires = job.records
    assert (first.part, first.height, first.width) == ("first", 128, 128)
    assert (hires.part, hires.height, hires.width) == ("hires", 192, 256)
    assert first.decision.ratios == RATIOS
    assert hires.decision.ratios == Ratios(0.1, 0.1, 0.1)


def test_batches_share_one_record(bench: Bench, plans: list) -> None:
    job = bench.job()
    p = fake.Processing(job)
    for _ in range(3):
        bench.host.sample(p, latent=(2, 4, 16, 16))
    assert counts(job) == [(12, 12)]
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("order", "window", "expected"),
    [
        (1, (0.0, 0.5), (4, 2)),
        (1, (0.5, 1.0), (4, 2)),
        (2, (0.0, 0.5), (8, 4)),  # second order: half of the calls, not all of them
        (2, (0.75, 1.0), (8, 2)),
    ],
)
def test_the_window_counts_steps_and_not_calls(
    bench: Bench, order: int, window: tuple[float, float], expected: tuple[int, int]
) -> None:
    job = bench.job(start=window[0], end=window[1])
    bench.run(job, order=order)
    assert counts(job) == [expected]


def test_more_calls_than_foreseen_count_as_the_end(bench: Bench) -> None:
    denoiser = bench.host.CFGDenoiser()
    denoiser.step, denoiser.total_steps = 30, 20  # Restart, DPM adaptive
    assert 0.99 < bench.module.fraction_of(denoiser) < 1
    denoiser.total_steps = None
    assert bench.module.fraction_of(denoiser) is None


def test_timestep_samplers_go_the_same_way(bench: Bench) -> None:
    """modules/sd_samplers_timesteps.py: a subclass that doesn't override forward."""
    base = bench.host.CFGDenoiser

    class CFGDenoiserTimesteps(base):
        cfg_scale = 2.0

    bench.host.CFGDenoiser = CFGDenoiserTimesteps
    job = bench.job()
    bench.run(job)
    assert counts(job) == [(4, 4)]
