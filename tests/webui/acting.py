"""An actor of a small UNet, for tests of what a call of the UNet becomes."""

from __future__ import annotations

import torch

from crdiff_ext.amplify import Amplifier, Place, Window
from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.decide import decide
from crdiff_ext.families import FAMILIES
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.actor import Actor
from crdiff_ext.webui.job import Job
from crdiff_ext.weights import PrunedWeights
from tests.core.pruned import X, reference
from tests.core.tiny import LDM_BLOCKS, TinyUNet
from tests.webui.jobs import PRESETS, Model, Source

RATIOS = Ratios(0.3, 0.2, 0.6)
WAYS = ["exact", "folded", "reuse-2"]


def job_with_record(settings=Settings(), actor_=None, **options):  # noqa: B008
    job = Job(settings, PRESETS, **options)
    model = Model()
    job.record("first", model, model.facts, (512, 512), source=Source)
    if actor_ is not None:
        job.records[0].actor = actor_
    return job


class UNetSource(Source):
    """The weights of a small LDM UNet, as an adapter would give them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.unet = TinyUNet(blocks=LDM_BLOCKS, seed=seed)

    def key(self):
        return id(self.unet), tuple(p._version for p in self.unet.parameters())

    def weights(self):
        self.events.append("weights")
        return prunable_parameters(self.unet)

    def settled(self, known):
        return False

    def pruned(self, plan, factor):
        self.events.append("pruned")
        return PrunedWeights(self.unet, plan, "recompute", factor).active()


def acting(ratios=RATIOS, k=1.5):
    settings = Settings(mode="always", ratios=ratios, k=k)
    return decide(FAMILIES["sd15"], 512, 512, settings, [])


def actor(
    source,
    ratios=RATIOS,
    k=1.5,
    window=Window(),  # noqa: B008
    fail=lambda sentence: None,
    amplification="exact",
):
    return Actor(acting(ratios, k), Amplifier(k, window, amplification), source, fail)


def sampled(source, act, calls=1):
    """Calls the UNet through ``act``; the outputs."""
    with torch.no_grad():
        return [act(lambda: source.unet(X.clone()), Place()) for _ in range(calls)]


def reference_ldm(source, ratios):
    """The same UNet with its weights pruned for good, under diffusers names."""
    plan = make_plan(prunable_parameters(source.unet), ratios)
    twin = TinyUNet(seed=0)  # the same weights in the same order
    theirs = list(source.unet.parameters())
    with torch.no_grad():
        for mine, other in zip(twin.parameters(), theirs, strict=True):
            mine.copy_(other)
    return reference(twin, plan)
