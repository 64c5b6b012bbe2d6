"""A fake A1111 with the adapter installed, and what a sampling should give, computed by hand."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch

from crdiff_ext.blocks import prunable_layers
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.job import Job
from tests.webui.fakes import a1111 as fake

RATIOS = Ratios(0.3, 0.2, 0.4)
STEPS = 4


class Bench:
    """A host with the adapter installed, and its sampling."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.module = fake.install(monkeypatch)
        self.weights = importlib.import_module("crdiff_ext.webui.a1111_weights")
        self.adapter = self.module.A1111Adapter()
        self.adapter.install()
        self.said: list[str] = []

    def checksums(self) -> list[bytes]:
        """Every weight of the UNet, to the bit."""
        return [p.detach().numpy().tobytes() for p in self.unet.parameters()]

    def job(self, ratios: Ratios | None = RATIOS, presets: list[Preset] | None = None, **more: Any):
        settings = Settings(mode="always", ratios=ratios, **more)
        return Job(settings, presets or [], say=self.said.append)

    def run(self, job: Job | None = None, steps: int = 4, order: int = 1, **more: Any):
        latent = more.pop("latent", fake.LATENT)
        p = fake.Processing(job, **more)
        return self.host.sample(p, steps, order=order, latent=latent)

    @property
    def unet(self) -> Any:
        return self.host.sd_model.model.diffusion_model


def counts(job: Job) -> list[tuple[int, int]]:
    return [
        (record.actor.stats.dense_passes, record.actor.stats.pruned_passes)
        for record in job.records
        if record.actor is not None
    ]


def passes(bench: Bench, **more: Any) -> tuple[int, int]:
    """Dense and pruned passes of one generation, and that the UNet really made them."""
    run = {
        name: more.pop(name) for name in ("order", "conds", "apart", "skip_uncond") if name in more
    }
    before = bench.unet.calls
    job = bench.job(**more)
    bench.run(job, **run)
    job.free()
    (found,) = counts(job)
    assert bench.unet.calls == before + sum(found)
    return found


def by_hand(
    bench: Bench, ratios: Ratios, k: float, steps: int = 4, factor: float = 0.0, every: int = 1
) -> torch.Tensor:
    """The sampling with CR-Diff, computed without the adapter: a pruned copy beside the model.

    ``factor`` 1 - k: the copy's small weights are scaled, and it alone is run. ``every`` N: the
    difference of the two is taken at every N-th step and held.
    """
    dense = bench.host.sd_model
    pruned = copy.deepcopy(dense)
    layers = prunable_layers(pruned.model.diffusion_model)
    for group, ratio in ratios.as_dict().items():
        members = [layer.module.weight for layer in layers if layer.group == group]
        values = torch.cat([weight.detach().abs().flatten() for weight in members])
        threshold = values.sort().values[int(len(values) * ratio) - 1]
        for weight in members:
            weight.data[weight.abs() <= threshold] *= factor
    delta = torch.zeros(0)
    x = torch.randn(fake.LATENT, generator=torch.Generator().manual_seed(7))
    for step in range(steps):
        sigma = torch.full((2,), float(steps - step))
        context = torch.cat([torch.ones(1, 2, 3), torch.zeros(1, 2, 3)])
        call = (torch.cat([x, x]), sigma, context)
        with torch.no_grad():
            z_dense = dense.model.diffusion_model(*call)
            z_pruned = pruned.model.diffusion_model(*call)
        if step % every == 0:
            delta = z_pruned - z_dense
        z = z_pruned.add(delta, alpha=k - 1) if step % every else torch.lerp(z_dense, z_pruned, k)
        out, uncond = (z_pruned if factor else z).chunk(2)
        x = x + 0.1 * (uncond + 7.0 * (out - uncond))
    return x


def move(unet: torch.nn.Module) -> None:
    """What Module.to does to go to another device (modules/lowvram.py): new data, same object."""
    for parameter in unet.parameters():
        parameter.data = parameter.data.clone()
