"""SD3 and FLUX in a host that samples by pipelines: diffusers' own, in a small SD.Next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.job import Job
from tests.core.pruned import Snapshot
from tests.dit.models import PIPELINES
from tests.webui.fakes import sdnext as fake

STEPS = 4


class Bench:
    """A host with one of the pipelines loaded, and what was said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
        self.host, module = fake.install(monkeypatch)
        module.DiffusersAdapter().install()
        pipe.set_progress_bar_config(disable=True)
        pipe.sd_checkpoint_info = SimpleNamespace(model_name="tiny", filename="/models/tiny")
        self.pipe = self.host.model_data.sd_model = pipe
        self.said: list[str] = []
        self.calls = 0
        pipe.transformer.register_forward_hook(self._count)
        monkeypatch.setattr(self.host, "_pipeline", self._call)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def _call(self, p: Any, pipe: Any, *_: Any, **__: Any) -> Any:
        self.host.module.set_pipeline_args(p=p, model=pipe)
        return pipe(
            "a cat",
            height=p.height,
            width=p.width,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        ).images

    def draw(self, job: Job | None = None) -> Any:
        return self.host.draw(fake.Processing(job, latent=(1, 16, 8, 12)))

    def job(self, ratios: Ratios = Ratios(0.3, 0.3, 0.3), **more: Any) -> Job:  # noqa: B008
        return Job(Settings(mode="always", ratios=ratios, **more), [], say=self.said.append)


@pytest.fixture(params=["sd3", "flux-dev", "flux-schnell"])
def bench(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, known: Any) -> Bench:
    PLANS.clear()
    made = Bench(monkeypatch, PIPELINES[request.param](tmp_path))
    made.family = request.param  # type: ignore[attr-defined]
    return made


def test_off_on_and_off_again(bench: Bench) -> None:
    off = bench.draw()
    snapshot = Snapshot(bench.pipe.transformer)  # after its first call: FLUX keeps something
    job = bench.job()
    on = bench.draw(job)
    (record,) = job.records
    assert (record.height, record.width) == (64, 96)
    assert record.actor is not None
    assert record.actor.stats.dense_passes == record.actor.stats.pruned_passes == STEPS
    assert not torch.equal(on, off)
    assert torch.equal(bench.draw(), off)
    nothing = bench.draw(bench.job(Ratios(1e-9, 1e-9, 1e-9)))
    assert torch.equal(nothing, off)
    snapshot.check()


@pytest.mark.parametrize(("way", "dense"), [("folded", 0), ("reuse-2", 2)])
def test_cheaper_ways_and_a_window(bench: Bench, way: str, dense: int) -> None:
    job = bench.job(amplification=way)
    bench.draw(job)
    actor = job.records[0].actor
    assert (actor.stats.dense_passes, actor.pruned_passes) == (dense, STEPS)
    half = bench.job(start=0.5)
    bench.draw(half)
    assert half.records[0].actor.pruned_passes == STEPS / 2


def test_unequal_ratios_are_refused_with_a_sentence(bench: Bench) -> None:
    off = bench.draw()
    job = bench.job(Ratios(0.1, 0.2, 0.3))
    assert torch.equal(bench.draw(job), off)
    assert "one ratio for all layers" in bench.said[0]
