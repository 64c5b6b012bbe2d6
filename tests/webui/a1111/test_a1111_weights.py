"""Weights in A1111: LoRAs merged in place, moves between devices, and the key of thresholds."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from crdiff_ext.blocks import prunable_layers
from tests.webui.a1111.bench import RATIOS, Bench, by_hand, counts, move
from tests.webui.fakes import a1111 as fake

# LoRA: extensions-builtin/Lora/networks.py merges in place, in the first forward that sees it


def test_lora_is_merged_into_dense_weights_and_comes_out_again(bench: Bench, plans: list) -> None:
    off = bench.run()
    values = [layer.module.weight.detach().clone() for layer in prunable_layers(bench.unet)]
    bench.host.networks["style"] = 1.0
    on = bench.run(bench.job())
    assert torch.equal(on, by_hand(bench, RATIOS, 1.5))  # the weights hold the LoRA by now
    bench.host.networks.clear()
    assert torch.equal(bench.run(), off)
    for layer, value in zip(prunable_layers(bench.unet), values, strict=True):
        assert torch.equal(layer.module.weight, value)
    bench.run(bench.job())
    assert len(plans) == 2
    assert plans[0].thresholds != plans[1].thresholds


def test_a_lora_that_comes_in_the_middle_gives_new_thresholds(bench: Bench, plans: list) -> None:
    def late(params: Any) -> None:
        if params.denoiser.step == 2:
            bench.host.networks["style"] = 1.0

    bench.host.script_callbacks.on_cfg_denoiser(late)
    bench.run(bench.job())
    assert len(plans) == 2
    assert plans[0].thresholds != plans[1].thresholds


def test_lora_functional_stays_beside_the_pruned_weights(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.Linear, "functional", True)
    off, before = bench.run(), bench.checksums()
    bench.host.networks["style"] = 1.0
    assert torch.equal(bench.run(bench.job()), by_hand(bench, RATIOS, 1.5))
    bench.host.networks.clear()
    assert bench.checksums() == before
    assert torch.equal(bench.run(), off)


# The key of thresholds


def test_thresholds_are_computed_once_for_many_generations(bench: Bench, plans: list) -> None:
    bench.run(bench.job())
    bench.run(bench.job())
    assert len(plans) == 1


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_a_move_between_devices_keeps_thresholds(bench: Bench, plans: list, memory: str) -> None:
    before = bench.run(bench.job(memory=memory))
    move(bench.unet)
    assert torch.equal(bench.run(bench.job(memory=memory)), before)
    assert len(plans) == 1


def test_lowvram_moves_in_every_forward_and_never_copies(bench: Bench, plans: list) -> None:
    expected = bench.run(bench.job())
    hooks = [
        layer.module.register_forward_pre_hook(lambda module, _: move(module))
        for layer in prunable_layers(bench.unet)
    ]
    bench.host.sd_model.lowvram = True
    job = bench.job(memory="copy")
    assert torch.equal(bench.run(job), expected)
    assert len(plans) == 1
    assert job.records[0].actor._source._weights.memory == "recompute"
    for hook in hooks:
        hook.remove()


def other_dtype(bench: Bench) -> None:
    bench.unet.to(torch.bfloat16)
    bench.unet.to(torch.float32)
    for layer in prunable_layers(bench.unet):
        layer.module.weight.data = layer.module.weight.data.double()


def other_weights(bench: Bench) -> None:
    with torch.no_grad():
        for layer in prunable_layers(bench.unet):
            layer.module.weight.copy_(layer.module.weight * 1.5)


def other_checkpoint(bench: Bench) -> None:
    """modules/sd_models.py loads a checkpoint of the same shape into the model that is there."""
    model = bench.host.sd_model
    model.sd_checkpoint_info = fake.CheckpointInfo("other", "/models/other.safetensors")


def other_lora(bench: Bench) -> None:
    for layer in prunable_layers(bench.unet):
        layer.module.network_current_names = (("style", 0.5),)


@pytest.mark.parametrize("change", [other_dtype, other_weights, other_checkpoint, other_lora])
def test_what_changes_weights_changes_the_key(bench: Bench, change: Any) -> None:
    source = bench.weights.UNetWeights(bench.host.sd_model, "auto")
    before = source.key()
    assert source.key() == before
    hash(before)
    move(bench.unet)
    assert source.key() == before
    change(bench)
    assert source.key() != before


def test_inference_tensors_have_no_version_and_do_no_harm(bench: Bench) -> None:
    with torch.inference_mode():
        for layer in prunable_layers(bench.unet):
            weight = layer.module.weight.detach().clone()
            layer.module.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert prunable_layers(bench.unet)[0].module.weight.is_inference()
    job = bench.job()
    on = bench.run(job)
    assert counts(job) == [(4, 4)]
    assert not torch.equal(on, bench.run())


def test_a_new_model_is_never_taken_for_an_old_one(
    bench: Bench, plans: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if each new weight came to lie where an old one was.
    monkeypatch.setattr(bench.weights, "id", lambda _: 1, raising=False)
    bench.run(bench.job())
    for seed in (7, 8, 9):
        bench.host.models.clear()
        bench.host.model = None
        gc.collect()
        bench.host.load("base", seed)
        bench.run(bench.job())
    assert len(plans) == 4


def test_a_finished_job_keeps_no_model_alive(bench: Bench) -> None:
    job = bench.job(memory="copy")
    bench.run(job)
    job.free()
    unet, layer = weakref.ref(bench.unet), weakref.ref(prunable_layers(bench.unet)[0].module)
    bench.host.models.clear()
    bench.host.model = None
    bench.host.load("next", 3)
    gc.collect()
    assert unet() is layer() is None
    assert job.acted()
