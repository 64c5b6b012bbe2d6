"""How many images each sampler needs, and how much of a search's score is luck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna

from crdiff_ext.schedule import Schedule
from crdiff_ext.settings import Ratios
from harness.searching.grid import Grid
from harness.searching.landscapes import Landscape, stored, synthetic
from harness.searching.run import SearchConfig, Worker
from harness.searching.sampler import best_trial, is_whole, values_of

PLAIN = "plain"
ITERATIONS = 120
Maker = Callable[[int], Landscape]


@dataclass(frozen=True)
class Contender:
    """A way to search: a sampler, whether it gives up early, its schedule."""

    name: str
    sampler: str
    stop: bool
    schedule: Schedule


def contenders(iterations: int = ITERATIONS, temperature: float = 0.02) -> list[Contender]:
    """The plain schedule first: all captions of 120 states, patience and restarts as they are."""
    plain = Schedule(iterations=iterations)
    cool = replace(plain, temperature=temperature)
    return [
        Contender(PLAIN, "anneal", False, plain),
        Contender("anneal", "anneal", True, plain),
        Contender(f"anneal, T0 {temperature:g}", "anneal", True, cool),
        Contender("tpe", "tpe", True, plain),
        Contender("cmaes", "cmaes", True, plain),
        Contender("gp", "gp", True, plain),
    ]


@dataclass(frozen=True)
class Curve:
    """Best score so far [m] against images drawn so far [m], at every whole state."""

    images: np.ndarray
    best: np.ndarray

    def until(self, score: float) -> float:
        """Images until the best so far reaches ``score``; infinite if it never does."""
        reached = np.flatnonzero(self.best >= score - 1e-12)
        return float(self.images[reached[0]]) if len(reached) else float("inf")


def search(contender: Contender, landscape: Landscape, seed: int) -> tuple[Curve, Ratios]:
    """One search in memory. Returns its curve and its best ratios."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = SearchConfig(
        "", 1, 1, "", "", "", seed=seed, sampler=contender.sampler, stop=contender.stop,
        schedule=contender.schedule, captions=max(2, landscape.n),
    )  # fmt: skip
    worker = Worker(optuna.create_study(direction="maximize"), config, landscape)
    worker.run()
    images: list[int] = []
    best: list[float] = []
    total = 0
    for trial in worker.mine():
        total += len(values_of(trial))
        if is_whole(trial) and trial.value is not None:
            images.append(total)
            best.append(max(trial.value, best[-1] if best else trial.value))
    found = best_trial(worker.mine())
    assert found is not None
    ratios = contender.schedule.state(found.params).ratios
    return Curve(np.array(images), np.array(best)), ratios


def race(
    make: Maker,
    seeds: Sequence[int],
    runners: Sequence[Contender],
    told: Callable[[str, int], None] = lambda name, seed: None,
) -> list[dict[str, Any]]:
    """Median images until the plain schedule's final score, on the same landscape, seed by seed.

    The plain schedule itself counts by what it draws until its end; a search that never gets there
    counts as infinite. ``share``: median of the ratio to the plain schedule's images.
    """
    goals, spent = {}, {}
    rows = []
    for runner in runners:
        needed, shares = [], []
        for seed in seeds:
            curve, _ = search(runner, make(seed), seed)
            if runner.name == PLAIN:
                goals[seed], spent[seed] = float(curve.best[-1]), float(curve.images[-1])
                needed.append(spent[seed])
            else:
                needed.append(curve.until(goals[seed]))
            shares.append(needed[-1] / spent[seed])
            told(runner.name, seed)
        reached = np.isfinite(needed)
        rows.append(
            {
                "sampler": runner.name,
                "seeds": len(seeds),
                "median_images": float(np.median(needed)),
                "share": float(np.median(shares)),
                "reached": float(reached.mean()),
            }
        )
    return rows


def winners_curse(
    grid: Grid, counts: Sequence[int], repeats: int, schedule: Schedule
) -> list[dict[str, Any]]:
    """Search score against held-out score of the winner, as differences to dense, by captions.

    Every repeat draws its captions from the grid anew; the rest is held out.
    """
    contender = Contender(PLAIN, "anneal", False, schedule)
    rows = []
    for n in counts:
        inside, outside = [], []
        for seed in range(repeats):
            landscape, rest = stored(grid, n, seed)
            curve, ratios = search(contender, landscape, seed)
            dense = landscape.function(Ratios(0, 0, 0)).mean()
            inside.append(float(curve.best[-1] - dense))
            outside.append(float((grid.values(ratios) - grid.dense)[rest].mean()))
        rows.append(
            {
                "captions": n,
                "repeats": repeats,
                "search": float(np.mean(inside)),
                "held_out": float(np.mean(outside)),
                "held_out_error": float(np.std(outside, ddof=1) / np.sqrt(repeats)),
            }
        )
    return rows


def makers(grid: Grid | None, captions: int) -> dict[str, Maker]:
    """The landscapes by name; the grid's only if there is one."""
    made: dict[str, Maker] = {"synthetic": lambda seed: synthetic(captions, seed)[0]}
    if grid is not None:
        made["grid"] = lambda seed: stored(grid, captions, seed)[0]
    return made
