"""Models that A1111's adapter refuses, 1.10, reloads, and other extensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crdiff_ext import dit_shapes
from tests.webui.a1111.bench import RATIOS, Bench, by_hand, counts
from tests.webui.fakes import a1111 as fake
from tests.webui.fakes.transformers import FINGERPRINTS, SD3

# Unsupported models, and 1.10


def test_a_tensorrt_unet_is_refused_with_one_notice(bench: Bench) -> None:
    off = bench.run()
    bench.host.sd_unet.current_unet = object()
    job = bench.job()
    assert torch.equal(bench.run(job), off)
    assert [record.decision.code for record in job.records] == ["refused"]
    assert len(bench.said) == 1
    assert "not supported" in bench.said[0]


def test_sd3_of_1_10_is_dense_with_one_notice(bench: Bench) -> None:
    bench.host.model_data.sd_model = fake.SD3Inferencer(bench.host.networks, fake.MMDiT())
    off = bench.run()
    job = bench.job()
    p = fake.Processing(job)
    bench.adapter.before_sampling(p)  # 1.10 calls process_before_every_sampling
    assert torch.equal(bench.host.sample(p), off)
    assert [record.decision.code for record in job.records] == ["refused"]
    assert len(bench.said) == 1


def test_sd3_is_refused_here_though_the_core_knows_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a native size, not unequal ratios, nothing else is said of it: it can't be pruned."""
    monkeypatch.setitem(dit_shapes.KNOWN, FINGERPRINTS["sd3"], "sd3")
    bench.host.model_data.sd_model = fake.SD3Inferencer(bench.host.networks, SD3())
    facts = bench.adapter.loaded_model()
    assert facts.family.name == "unknown"
    assert "not supported" in facts.refused
    assert bench.adapter.transformers == frozenset()


def test_an_inferencer_that_bypasses_model_forward_is_caught_too(bench: Bench) -> None:
    unet = fake.UNet(bench.host.networks, 4)
    bench.host.model_data.sd_model = fake.SD3Inferencer(bench.host.networks, unet)
    off = bench.run()
    job = bench.job()
    on = bench.run(job)
    assert counts(job) == [(4, 4)]
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5))
    assert not torch.equal(on, off)


def test_the_loaded_model_is_told_and_never_loaded(bench: Bench) -> None:
    facts = bench.adapter.loaded_model()
    assert (facts.checkpoint, facts.family.name, facts.refused) == ("base", "unknown", None)
    assert facts.hash == ""
    bench.host.sd_model.sd_checkpoint_info.shorthash = "0123456789"
    assert bench.adapter.loaded_model().hash == "0123456789"
    bench.host.model_data.sd_model = None
    assert bench.adapter.loaded_model() is None
    assert bench.host.loads == 0


# Living with reloads and other extensions


def test_installing_twice_and_a_reload_change_nothing(bench: Bench) -> None:
    forward = bench.host.CFGDenoiser.forward
    bench.adapter.install()
    assert len(bench.host.script_callbacks.callbacks) == 1
    bench.host.script_callbacks.clear_callbacks()  # modules/scripts.py, load_scripts
    bench.module.A1111Adapter().install()
    assert bench.host.CFGDenoiser.forward is forward
    job = bench.job()
    bench.run(job)
    assert counts(job) == [(4, 4)]


def test_another_extension_around_ours_and_a_reload(bench: Bench) -> None:
    ours = bench.host.CFGDenoiser.forward
    bench.host.CFGDenoiser.forward = lambda self, *args: ours(self, *args)
    bench.adapter.install()  # can't see itself any more, and wraps again
    calls = bench.unet.calls
    job = bench.job()
    bench.run(job)
    assert counts(job) == [(4, 4)]
    assert bench.unet.calls == calls + 8


def test_another_extension_that_drops_our_wrapper_is_told(bench: Bench) -> None:
    off = bench.run()
    bench.host.CFGDenoiser.forward = bench.host.CFGDenoiser.forward.__wrapped__
    job = bench.job()
    assert torch.equal(bench.run(job), off)
    assert len(bench.said) == 1
    assert "another extension" in bench.said[0]


def test_an_apply_model_of_another_extension_is_called_in_both_passes(bench: Bench) -> None:
    model = bench.host.sd_model
    calls = []

    def theirs(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return type(model).apply_model(model, *args, **kwargs) * 0.5

    model.apply_model = theirs
    job = bench.job()
    bench.run(job)
    assert counts(job) == [(4, 4)]
    assert len(calls) == 8
    assert model.apply_model is theirs
    del model.apply_model


def test_one_that_is_set_above_ours_stays_and_ours_is_inert(bench: Bench) -> None:
    model = bench.host.sd_model
    off = bench.run()

    def above(params: Any) -> None:
        below = model.apply_model
        model.apply_model = lambda *args, **kwargs: below(*args, **kwargs)

    bench.host.script_callbacks.on_cfg_denoiser(above)
    bench.run(bench.job(), steps=1)
    bench.host.script_callbacks.callbacks.remove(above)
    assert "apply_model" in model.__dict__
    assert torch.equal(bench.run(), off), "what they kept of ours must do nothing by now"
    del model.apply_model
