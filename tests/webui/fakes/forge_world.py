"""Generations in the Forge in miniature, with the adapter in it, and what their forwards saw."""

from __future__ import annotations

import sys
from typing import Any

import torch

from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.forge import ForgeAdapter
from crdiff_ext.webui.job import Job
from tests.webui.fakes.forge import UNet
from tests.webui.fakes.forge_process import Engine, Host, Processing

RATIOS = Ratios(0.4, 0.3, 0.5)
ON = Settings(mode="always", ratios=RATIOS)
PER_BLOCK = 6


TO_Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
LORA = {TO_Q: [1.0, ("diff", (torch.full((8, 8), 0.25),)), 1.0, None, None]}


def unet_of(host):
    return host.data.sd_model.forge_objects.unet.model.diffusion_model


def worlds(monkeypatch):
    """``make(unet)`` gives a host with the adapter installed; no thresholds are cached."""
    PLANS.clear()

    def make(unet: UNet | None = None, online: bool = True) -> Any:
        host: Any = Host(Engine("base", unet or UNet()))
        attach(monkeypatch, host, host.modules(online))
        return host

    return make


def attach(monkeypatch, host, modules) -> None:
    """Put the adapter into a host that consists of these modules."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    host.adapter = ForgeAdapter()
    host.adapter.install()
    host.hooks.append(host.adapter.before_sampling)


def run(host, settings=ON, **more):
    """(image, job, effective weights of each forward of the UNet that was loaded at first)."""
    p = Processing(host, **more)
    unet = host.data.sd_model.forge_objects.unet.model.diffusion_model
    unet.passes.clear()
    said = []
    if settings is not None:
        p.crdiff_job = Job(settings, [], say=said.append)
    image = host.generate(p)
    if p.crdiff_job is not None:
        p.crdiff_job.free()
        p.crdiff_job.said = said
    return image, p.crdiff_job, list(unet.passes)


def zeros(weights):
    return sum(int((weight == 0).sum()) for weight in weights)


def pattern(passes):
    """One letter a forward: "d" for dense, "p" for pruned weights."""
    return "".join("p" if zeros(weights) else "d" for weights in passes)


def grouped(weights):
    """The weights by group, in the order of the fake's blocks: two down, one mid, four up."""
    return (
        weights[: 2 * PER_BLOCK],
        weights[2 * PER_BLOCK : 3 * PER_BLOCK],
        weights[3 * PER_BLOCK :],
    )


def masked(weights, ratios=RATIOS):
    """Brute force: the group's int(N * ratio) smallest magnitudes are zeros."""
    result = []
    for group, ratio in zip(grouped(weights), ratios.as_dict().values(), strict=True):
        magnitudes = torch.cat([weight.abs().flatten().double() for weight in group])
        n = int(len(magnitudes) * ratio)
        limit = magnitudes.sort().values[n - 1] if n else torch.tensor(-1.0)
        result += [weight * (weight.abs().double() > limit) for weight in group]
    return result


def assert_same(these, those):
    assert all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def state_of(unet):
    """Everything of each layer that has to be as before."""
    return [
        (
            id(linear.weight),
            linear.weight._version,
            linear.weight.detach().view(torch.uint8).sum(dtype=torch.int64).item(),
            sorted(set(linear.__dict__) - {"used"}),
            len(linear._forward_hooks) + len(linear._forward_pre_hooks),
        )
        for block in unet.order
        for linear in block
    ]
