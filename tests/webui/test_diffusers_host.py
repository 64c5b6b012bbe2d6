"""The adapter for diffusers pipelines on an SD.Next in miniature: what acts when, and is undone."""

from __future__ import annotations

import copy

import pytest
import torch

from crdiff_ext.blocks import prunable_layers
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.job import Job, ModelFacts
from tests.core.pruned import Snapshot
from tests.webui.fakes import sdnext as fake

RATIOS = Ratios(0.3, 0.2, 0.4)


class Bench:
    """A host with the adapter installed."""

    def __init__(self, monkeypatch) -> None:
        self.host, self.module = fake.install(monkeypatch)
        self.adapter = self.module.DiffusersAdapter()
        self.adapter.install()
        self.said: list[str] = []

    def job(self, ratios=RATIOS, mode="always", **more):
        settings = Settings(mode=mode, ratios=ratios, **more)
        return Job(settings, [], say=self.said.append)

    def draw(self, job=None, **more):
        """The image, and "d" or "p" for each forward of the network."""
        self.host.unet.ran = ""
        image = self.host.draw(fake.Processing(job, **more))
        return image, self.host.unet.ran


@pytest.fixture
def bench(monkeypatch):
    PLANS.clear()
    made = Bench(monkeypatch)
    snapshot = Snapshot(made.host.unet)
    made.check = snapshot.check
    yield made
    assert made.host.foreign == 0  # LoRAs were merged into dense weights alone


def test_each_forward_becomes_a_dense_and_a_pruned_one(bench) -> None:
    off, ran = bench.draw()
    assert ran == "dddd"
    job = bench.job()
    on, ran = bench.draw(job)
    assert ran == "dp" * 4
    assert not torch.equal(on, off)
    assert job.records[0].pruned_passes == 4
    assert (job.records[0].height, job.records[0].width) == (128, 128)
    assert torch.equal(bench.draw(bench.job())[0], on)
    assert torch.equal(bench.draw()[0], off)
    bench.check()


@pytest.mark.parametrize("way", ["exact", "folded"])
def test_the_image_is_that_of_two_networks_mixed_by_hand(bench, way) -> None:
    on, ran = bench.draw(bench.job(amplification=way, k=1.3))
    assert ran == ("dp" * 4 if way == "exact" else "pppp")
    dense = bench.host.unet
    pruned = copy.deepcopy(dense)
    layers = prunable_layers(pruned)
    for group, ratio in RATIOS.as_dict().items():
        members = [layer.module.weight for layer in layers if layer.group == group]
        values = torch.cat([weight.detach().abs().flatten() for weight in members])
        threshold = values.sort().values[int(len(values) * ratio) - 1]
        for weight in members:
            weight.data[weight.abs() <= threshold] *= 0 if way == "exact" else 1 - 1.3

    def mixed(*args, **kwargs):
        z = pruned.forward(*args, **kwargs)[0]
        if way == "exact":
            z = torch.lerp(type(dense).forward(dense, *args, **kwargs)[0], z, 1.3)
        return (z,)

    dense.__dict__["forward"] = mixed
    bench.host.process_post = lambda p: None
    bench.host.module.process_post = lambda p: None
    expected = bench.draw()[0]
    del dense.__dict__["forward"]
    torch.testing.assert_close(on, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(mode="always", ratios=Ratios(0, 0, 0)),
        Settings(mode="always", ratios=Ratios(1e-6, 0, 0)),  # less than one weight
        Settings(mode="always", ratios=RATIOS, k=0),
        Settings(mode="auto", ratios=RATIOS),  # a model whose native size nobody knows
        Settings(mode="off", ratios=RATIOS),
    ],
)
def test_what_prunes_nothing_changes_no_bit(bench, settings) -> None:
    off = bench.draw()[0]
    job = Job(settings, [])
    image, ran = bench.draw(job)
    assert torch.equal(image, off)
    assert "p" not in ran
    assert job.acted() == []
    bench.check()


def test_auto_acts_at_unseen_sizes_alone(bench, monkeypatch) -> None:
    facts = ModelFacts(FAMILIES["embedded"], "embedded")  # native: 128x128
    monkeypatch.setattr(bench.module, "facts_of", lambda model: facts)
    stored = [Preset("embedded", 64, 64, RATIOS, "a test", "none")]
    for latent, expected in (
        (fake.LATENT, "dddd"),
        ((1, 4, 8, 8), "dp" * 4),  # stored
        ((1, 4, 8, 9), "dp" * 4),  # the nearest
        ((1, 4, 24, 24), "dddd"),  # the other side of the native area
    ):
        job = Job(Settings(), stored)
        assert bench.draw(job, latent=latent)[1] == expected, latent
    bench.check()


@pytest.mark.parametrize("cfg", [7.0, 1.0])
def test_guidance_is_outside_of_both_passes(bench, cfg) -> None:
    assert bench.draw(bench.job(), cfg=cfg, latent=(2, 4, 16, 16))[1] == "dp" * 4


def test_the_window_goes_by_the_schedule(bench) -> None:
    window = {"start": 0.25, "end": 0.75}
    assert bench.draw(bench.job(**window))[1] == "d" + "dp" * 2 + "d"
    # From the middle of the schedule: the window is of the steps that are made.
    assert bench.draw(bench.job(**window), steps=8, strength=0.5)[1] == "d" + "dp" * 2 + "d"
    # Second order: 7 calls of 4 steps, of which those at the 2nd and 3rd step act.
    bench.host.model_data.sd_model.scheduler.order = 2
    assert bench.draw(bench.job(**window))[1] == "dd" + "dp" * 4 + "d"


def test_a_window_with_a_scheduler_that_counts_nothing(bench) -> None:
    scheduler = bench.host.model_data.sd_model.scheduler
    scheduler.step = lambda z, x, begin: x + 0.1 * z  # DDIM: no step_index
    assert bench.draw(bench.job(start=0.5))[1] == "dd" + "dp" * 2


@pytest.mark.parametrize(("way", "ran"), [("reuse-2", "dppdpp"), ("reuse-4", "dppppp"[:5])])
def test_reuse_makes_the_dense_pass_now_and_then(bench, way, ran) -> None:
    assert bench.draw(bench.job(amplification=way))[1] == ran
    assert bench.draw(bench.job(amplification=way))[1] == ran  # the next image begins anew


def test_folded_is_one_forward_for_one_from_the_first_on(bench) -> None:
    assert bench.draw(bench.job(amplification="folded"))[1] == "pppp"
    assert bench.draw(bench.job(k=1.0))[1] == "pppp"
    bench.check()


def test_the_hires_pass_has_a_size_of_its_own(bench) -> None:
    job = bench.job(passes="hires")
    ran = bench.draw(job, hires=(32, 24))[1]
    assert ran == "dddd" + "dp" * 2
    assert [(r.part, r.height, r.width, r.pruned_passes) for r in job.records] == [
        ("first", 128, 128, 0),
        ("hires", 256, 192, 2),
    ]
    bench.check()


@pytest.mark.parametrize("refiner", [True, False])
def test_the_refiner_is_a_network_of_its_own(bench, refiner) -> None:
    other = bench.host.model_data.sd_refiner = fake.Pipeline(fake.UNet(seed=3), "refiner")
    snapshot = Snapshot(other.unet)
    job = bench.job(refiner=refiner)
    assert bench.draw(job)[1] == "dp" * 4
    assert other.unet.ran == ("dp" * 2 if refiner else "dd")
    assert [(r.refiner, r.checkpoint) for r in job.records] == [(False, "tiny"), (True, "refiner")]
    snapshot.check()
    bench.check()


def test_a_refiners_window_goes_on_where_the_first_model_was(bench) -> None:
    other = bench.host.model_data.sd_refiner = fake.Pipeline(fake.UNet(seed=3), "refiner")
    bench.draw(bench.job(start=0.5, end=0.75))
    assert other.unet.ran == "dpd"  # of four steps it makes the last two


def test_another_model_in_the_middle_of_a_queue(bench) -> None:
    first = bench.draw(bench.job())[0]
    kept, bench.host.model_data.sd_model = (
        bench.host.model_data.sd_model,
        fake.Pipeline(fake.UNet(seed=5), "other"),
    )
    snapshot = Snapshot(bench.host.unet)
    off, on = bench.draw()[0], bench.draw(bench.job())[0]
    assert not torch.equal(on, off)
    snapshot.check()
    bench.host.model_data.sd_model = kept
    assert torch.equal(bench.draw(bench.job())[0], first)
    bench.check()


def test_an_earlier_generation_that_is_gone_on_with(bench) -> None:
    earlier = fake.Processing(bench.job())
    bench.host.draw(earlier)
    job = bench.job()
    assert bench.draw(job, go_on_with=earlier)[1] == "dp" * 4  # restore_state in the host
    assert job.records[0].pruned_passes == 4
    assert bench.draw(None, go_on_with=earlier)[1] == "dddd"
