"""What holds in every host of the Forge family, whichever way it changes weights."""

from __future__ import annotations

import torch

from crdiff_ext.settings import Settings
from crdiff_ext.webui.actor import PLANS
from tests.webui.fakes.forge_world import (
    LORA,
    RATIOS,
    TO_Q,
    assert_same,
    masked,
    run,
    state_of,
    unet_of,
)


def layers_of(unet):
    """All linear layers, in the order of the UNet's blocks."""
    return [linear for block in unet.order for linear in block]


def a_merged_lora_is_pruned_and_goes(host):
    """Merged before thresholds are computed; gone afterwards, with the plan without it kept."""
    off = run(host, None)[0]
    before = state_of(unet_of(host))
    on, _, plain = run(host)
    host.data.sd_model.use_lora(LORA)
    with_lora, _, passes = run(host)
    assert not torch.equal(passes[0][0], plain[0][0])
    assert_same(passes[1], masked(passes[0]))
    assert not torch.equal(with_lora, on)
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host)[0], on)
    assert len(PLANS) == 2  # the plan without LoRA was found again
    assert torch.equal(run(host, None)[0], off)
    assert state_of(unet_of(host)) == before


def casts_are_pruned_by_a_function(host, way):
    """One more function on each layer, and the stored weights as they were; returns the job."""
    off = run(host, None)[0]
    before = state_of(unet_of(host))  # after the first one, for which a host prepares its layers
    seen = []

    def look(unet, index):
        seen.append(len(unet.order[0][0].weight_function))

    unet_of(host).interrupt = look
    settings = Settings(mode="always", ratios=RATIOS, amplification=way)
    image, job, passes = run(host, settings)
    assert max(seen) == 1, "masked before the cast, outside of the host's stream"
    stored = [linear.weight.float() for linear in layers_of(unet_of(host))]
    if way == "exact":
        assert_same(passes[0], stored)
        assert_same(passes[1], masked(stored))
    else:
        expected = [
            torch.where(kept != 0, weight, weight * -0.5)
            for weight, kept in zip(stored, masked(stored), strict=True)
        ]
        assert_same(passes[0], expected)
    assert not torch.equal(image, off)
    assert state_of(unet_of(host)) == before
    return job


def a_lora_function_comes_before_ours(host):
    """A LoRA added at each forward is pruned with the weight; its list is not written to."""
    plain = run(host)[0]
    host.data.sd_model.use_lora(LORA, online=True)
    with_lora, job, passes = run(host)
    assert job.acted()
    assert_same(passes[1], masked(passes[0]))
    first = layers_of(unet_of(host))[0]
    assert not torch.equal(passes[0][0], first.weight.float())
    functions, before = first.weight_function, state_of(unet_of(host))
    run(host)
    assert first.weight_function is functions
    assert len(functions) == 1
    assert state_of(unet_of(host)) == before
    twice = {TO_Q: [2.0, *LORA[TO_Q][1:]]}
    host.data.sd_model.use_lora(twice, online=True)  # the stored weights are the same
    stronger, _, passes = run(host)
    assert_same(passes[1], masked(passes[0]))
    assert len(PLANS) == 3
    assert not torch.equal(stronger, with_lora)
    host.data.sd_model.use_lora(None)
    assert torch.equal(run(host)[0], plain)
