"""A cheap objective on which whole searches run in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule, State
from harness.searching.run import SearchConfig, Worker
from harness.searching.study import open_storage, open_study

CAPTIONS = 32


class Synthetic:
    """Captions of different difficulty; the best ratios are (0.6, anything, 0.2)."""

    batches = tuple(tuple(range(i, i + 8)) for i in range(0, CAPTIONS, 8))

    def __init__(self, noise: float = 0.1, fails: float = 2.0) -> None:
        self.noise, self.fails = noise, fails
        self.asked: list[tuple[State, int]] = []

    def values(self, state: State, batch: int) -> np.ndarray:
        self.asked.append((state, batch))
        if state.ratios.up > self.fails:
            raise CRDiffError("the model gave pixels that are not numbers")
        members = list(self.batches[batch])
        base = np.linspace(-2, 2, CAPTIONS)[members]
        if state.is_dense:
            return base
        noise = np.random.default_rng(int(1e4 * state.ratios.down)).normal(size=CAPTIONS)
        gain = 0.3 - abs(state.ratios.down - 0.6) - abs(state.ratios.up - 0.2)
        return base + gain + self.noise * noise[members]


def config(sampler: str = "anneal", iterations: int = 25, **more: object) -> SearchConfig:
    schedule = more.pop("schedule", None) or Schedule(iterations=iterations)
    return SearchConfig(
        "hash", 64, 64, "synthetic", "captions", "sha", sampler=sampler, schedule=schedule, **more
    )


def study_in(folder: Path, settings: SearchConfig) -> optuna.Study:
    return open_study(open_storage(None, folder), "test", settings.settings())


def work(folder: Path, settings: SearchConfig, number: int = 0, objective: object = None) -> Worker:
    worker = Worker(study_in(folder, settings), settings, objective or Synthetic(), number)
    worker.run()
    return worker


def told(worker: Worker) -> list[tuple]:
    """What counts of a worker's trials, in their order."""
    from harness.searching.sampler import counts, was_stopped

    return [
        (tuple(trial.params.items()), trial.value, was_stopped(trial))
        for trial in worker.mine()
        if counts(trial)
    ]
