"""A stage that trains in a second; importable, because the workers are processes of their own."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from harness.embedded.training.loop import Stage

STAGE = Stage("toy", steps=12, learning_rate=0.05, seed=4, warmup=2)


class ToyTrainee:
    """Fits a line; with ``die_at`` the first worker is gone at that step, as after a kill."""

    def __init__(self, die_at: int | None = None) -> None:
        self.module = nn.Linear(3, 1)
        self.die_at = die_at

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """Mean squared error against the sum of the inputs."""
        if step == self.die_at:
            os._exit(9)
        x = torch.randn(8, 3, generator=generator)
        return (self.module(x) - x.sum(1, keepdim=True)).square().mean()


def healthy() -> ToyTrainee:
    return ToyTrainee()


def dies_at_seven() -> ToyTrainee:
    return ToyTrainee(7)
