"""A generation without a host: a job, its stretches, and a few calls in each."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from crdiff_ext.amplify import Place
from crdiff_ext.blocks import PrunableWeight
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.job import Job, ModelFacts

PRESETS = [
    Preset("sdxl", 512, 512, Ratios(0.397, 0.434, 0.387), "paper, Figure 7a", "SDXL 1.0"),
    Preset("sdxl", 2048, 2048, Ratios(0.1, 0.2, 0.25), 'found: "by hand"', "SDXL 1.0"),
    Preset("sdxl-refiner", 512, 512, Ratios(0.11, 0.12, 0.13), "somebody", "refiner"),
    Preset("sd15", 400, 560, Ratios(0.2, 0.25, 0.15), "paper, Table 4", "SD1.5"),
]


class Model:
    """What a host has as a model: something to hold by identity."""

    def __init__(self, family: str = "sdxl", refused: str | None = None) -> None:
        self.family, self.refused = family, refused

    def facts(self) -> ModelFacts:
        return ModelFacts(FAMILIES[self.family], f"{self.family}.safetensors", refused=self.refused)


class Source:
    """A hundred weights a group, and a record of what was done with them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.version = 0
        self.calm = False  # whether weights never change in a forward (Forge)
        self.lazy = False  # whether they don't once a plan is known (A1111)
        self.factors: list[float] = []
        self.values = torch.linspace(0.01, 1, 100).reshape(10, 10)

    def key(self):
        return id(self), self.version

    def weights(self):
        self.events.append("weights")
        places = {"down": "down_blocks.0", "mid": "mid_block", "up": "up_blocks.0"}
        for group, place in places.items():
            name = f"{place}.attentions.0.transformer_blocks.0.attn1.to_q"
            yield PrunableWeight(f"{name}.weight", name, group, self.values.clone())

    def settled(self, known):
        return self.calm or (self.lazy and known())

    @contextmanager
    def pruned(self, plan, factor):
        self.factors.append(factor)
        self.events.append("enter")
        try:
            yield
        finally:
            self.events.append("leave")

    def free(self) -> None:
        self.events.append("free")


@dataclass(frozen=True)
class Stretch:
    """One part of a generation: the first or the hires pass, before or after the refiner switch."""

    part: str
    family: str
    height: int
    width: int
    refiner: bool = False


SQUARE = [Stretch("first", "sdxl", 512, 512)]
NATIVE_THEN_LARGE = [Stretch("first", "sdxl", 1024, 1024), Stretch("hires", "sdxl", 2048, 2048)]
SMALL_THEN_NATIVE = [Stretch("first", "sdxl", 512, 512), Stretch("hires", "sdxl", 1024, 1024)]
SMALL_THEN_LARGE = [Stretch("first", "sdxl", 512, 512), Stretch("hires", "sdxl", 2048, 2048)]
WITH_REFINER = [
    Stretch("first", "sdxl", 512, 512),
    Stretch("first", "sdxl-refiner", 512, 512, refiner=True),
]


def generate(settings: Settings, stretches, presets=tuple(PRESETS)) -> tuple[Job, list]:
    """The job of a generation, and what ran: for each call the ratios and k, None if dense."""
    job = Job(settings, presets)
    ran = []
    for stretch in stretches:
        model = Model(stretch.family)
        for step in range(4):
            record = job.record(
                stretch.part,
                model,
                model.facts,
                (stretch.height, stretch.width),
                refiner=stretch.refiner,
                source=Source,
            )
            before = record.pruned_passes
            if record.actor is not None:
                record.actor(lambda: torch.ones(1), Place(step / 4, level=4.0 - step))
            acted = record.pruned_passes > before
            ran.append((record.decision.ratios, record.decision.k) if acted else None)
    return job, ran
