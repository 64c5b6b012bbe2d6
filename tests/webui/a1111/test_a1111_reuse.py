"""Reused amplification in A1111: whose difference is held, for how long, and what is left of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crdiff_ext.webui.job import Job
from tests.webui.a1111.bench import RATIOS, STEPS, Bench, by_hand, counts, passes
from tests.webui.fakes import a1111 as fake


@pytest.mark.parametrize("every", [2, 3, 4])
def test_the_difference_is_held_between_dense_steps(bench: Bench, every: int) -> None:
    job = bench.job(amplification=f"reuse-{every}")
    on = bench.run(job)
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5, every=every))
    assert counts(job) == [(-(-STEPS // every), STEPS)]
    assert not torch.equal(on, bench.run(bench.job()))


def test_second_order_samplers_count_steps_by_sigma(bench: Bench) -> None:
    """Heun: sigma 4, 3, 3, 2, 2, 1, 1, 0; a dense pass at 4, 2, 2 and 0."""
    assert passes(bench, amplification="reuse-2", order=2) == (4, 8)
    assert passes(bench, amplification="reuse-4", order=2) == (2, 8)


@pytest.mark.parametrize(
    ("how", "calls"),
    [({"conds": 1}, 2), ({"conds": 3}, 4)],
    ids=["cond and uncond", "AND"],
)
def test_calls_of_one_step_have_differences_of_their_own(
    bench: Bench, how: dict[str, int], calls: int
) -> None:
    """Apart or in one batch, the image is the same: no part is given another one's difference."""
    together = bench.run(bench.job(amplification="reuse-4"), **how)
    job = bench.job(amplification="reuse-4")
    apart = bench.run(job, **how, apart=True)
    assert counts(job) == [(calls, STEPS * calls)]
    exact = bench.run(bench.job(), **how, apart=True)
    rounding = (together - apart).norm()
    assert rounding < 1e-5 * apart.norm()
    assert (exact - apart).norm() > 100 * rounding


def test_a_skipped_uncond_has_a_key_of_its_own(bench: Bench) -> None:
    """Both at steps 0 and 2 (reused), cond alone at steps 1 (dense: not known yet) and 3."""
    assert passes(bench, amplification="reuse-4", skip_uncond=True) == (2, STEPS)
    assert passes(bench, amplification="reuse-2", skip_uncond=True) == (STEPS, STEPS)


def parts(job: Job) -> list[tuple[str, bool, tuple[int, int]]]:
    return [
        (r.part, r.refiner, (r.actor.stats.dense_passes, r.actor.stats.pruned_passes))
        for r in job.records
    ]


def test_hires_pass_and_batches_begin_anew(bench: Bench) -> None:
    job = bench.job(amplification="reuse-4")
    p = fake.Processing(job)
    for _ in range(2):
        p.is_hr_pass = False
        bench.host.sample(p)
        p.is_hr_pass = True
        bench.host.sample(p, latent=(1, 4, 24, 32))
    assert parts(job) == [("first", False, (2, 8)), ("hires", False, (2, 8))]


@pytest.mark.parametrize("way", ["reuse-4", "folded"])
def test_the_refiner_begins_anew(bench: Bench, way: str) -> None:
    refiner = bench.host.load("refiner", 2)
    bench.host.load("base", 1)
    job = bench.job(amplification=way)
    bench.run(job, refiner_checkpoint_info=refiner.sd_checkpoint_info)
    assert parts(job) == [("first", False, (1, 2)), ("first", True, (1, 2))]
    bench.host.load("base", 1)


def test_a_window_goes_with_every_way(bench: Bench) -> None:
    bench.run(bench.job())
    half = {"start": 0.5, "order": 1}
    assert passes(bench, amplification="folded", **half) == (2, 2)
    assert passes(bench, amplification="reuse-2", **half) == (3, 2)


def test_sigma_is_read_only_where_it_is_needed(bench: Bench) -> None:
    seen: list[str] = []

    class Sigma:
        def max(self) -> float:
            seen.append("read")
            return 1.0

    for way in ("exact", "folded", "reuse-2"):
        level = bench.module._level(bench.job(amplification=way), SimpleNamespace(sigma=Sigma()))
        assert level == (1.0 if way == "reuse-2" else None)
    assert seen == ["read"]


def test_freed_differences_do_not_outlive_a_batch(bench: Bench) -> None:
    job = bench.job(amplification="reuse-4")
    bench.run(job)
    deltas = job.records[0].actor._amplifier._deltas
    assert deltas._kept
    job.free()
    assert not deltas._kept


@pytest.mark.parametrize("amplification", ["exact", "folded", "reuse-4"])
def test_an_error_outside_of_our_passes_leaves_no_copies(
    bench: Bench, amplification: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the host's guidance, say, or its own check for NaN: no script is told of it."""
    calls: list[int] = []

    def fails(_: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("somebody else's")
        return 7.0

    monkeypatch.setattr(bench.module.CFGDenoiser, "cfg_scale", property(fails))
    job = bench.job(memory="copy", amplification=amplification)
    with pytest.raises(ValueError, match="somebody else's"):
        bench.run(job)
    (record,) = job.records
    assert record.pruned_passes  # there was something to let go of
    source, amplifier = record.actor._source, record.actor._amplifier
    assert source._weights is None
    assert not amplifier._deltas._kept
