"""How many images each sampler needs, and how much of a search's score is luck."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
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


def contenders(iterations: int = ITERATIONS) -> list[Contender]:
    """The plain schedule first: all captions of 120 states, patience and restarts as they are."""
    plain = Schedule(iterations=iterations)
    return [
        Contender(PLAIN, "anneal", False, plain),
        Contender("anneal, repaired", "anneal", True, plain),
        Contender("anneal, brisk", "anneal", True, plain.brisk()),
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
    jobs: int = 1,
) -> list[dict[str, Any]]:
    """Median images until the plain schedule's final score, on the same landscape, seed by seed.

    The plain schedule itself counts by what it draws until its end; a search that never gets there
    counts as infinite. ``share``: median of the ratio to the plain schedule's images, beside its
    quartiles. ``jobs`` processes search at once; their number changes nothing but the time.
    """
    goals, spent = {}, {}
    rows = []
    for runner in runners:
        needed, shares = [], []
        for seed, curve in zip(
            seeds, _each(partial(_curve, runner, make), seeds, jobs), strict=True
        ):
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
                "share_quartiles": [_quantile(shares, part) for part in (0.25, 0.75)],
                "reached": float(reached.mean()),
            }
        )
    return rows


def _quantile(values: Sequence[float], part: float) -> float:
    """One of the values: between a number and infinity there is no other."""
    return float(np.quantile(values, part, method="higher"))


def _each(one: Callable[[int], Any], seeds: Sequence[int], jobs: int) -> Iterator[Any]:
    """``one`` of every seed, in their order, in ``jobs`` processes."""
    if jobs == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(one, seeds)


def _curve(runner: Contender, make: Maker, seed: int) -> Curve:
    return search(runner, make(seed), seed)[0]


def winners_curse(
    grid: Grid, counts: Sequence[int], repeats: int, schedule: Schedule, jobs: int = 1
) -> list[dict[str, Any]]:
    """Search score against held-out score of the winner, as differences to dense, by captions.

    Every repeat draws its captions from the grid anew; the rest is held out.
    """
    rows = []
    for n in counts:
        one = partial(_luck, grid, n, schedule)
        gains = np.array(list(_each(one, range(repeats), jobs)))
        rows.append(
            {
                "captions": n,
                "repeats": repeats,
                "search": float(gains[:, 0].mean()),
                "held_out": float(gains[:, 1].mean()),
                "search_error": float(gains[:, 0].std(ddof=1) / np.sqrt(repeats)),
                "held_out_error": float(gains[:, 1].std(ddof=1) / np.sqrt(repeats)),
                "gap": float((gains[:, 0] - gains[:, 1]).mean()),
                "gap_error": float((gains[:, 0] - gains[:, 1]).std(ddof=1) / np.sqrt(repeats)),
            }
        )
    return rows


def _luck(grid: Grid, n: int, schedule: Schedule, seed: int) -> tuple[float, float]:
    """What one search on ``n`` captions gained over dense there, and on the others."""
    landscape, rest = stored(grid, n, seed)
    curve, ratios = search(Contender(PLAIN, "anneal", False, schedule), landscape, seed)
    dense = landscape.function(Ratios(0, 0, 0)).mean()
    held_out = (grid.values(ratios) - grid.dense)[rest].mean()
    return float(curve.best[-1] - dense), float(held_out)


def makers(grid: Grid | None, captions: int) -> dict[str, Maker]:
    """The landscapes by name; the grid's only if there is one."""
    made: dict[str, Maker] = {"synthetic": partial(_synthetic, captions)}
    if grid is not None:
        made["grid"] = partial(_stored, grid, captions)
    return made


def _synthetic(captions: int, seed: int) -> Landscape:
    return synthetic(captions, seed)[0]


def _stored(grid: Grid, captions: int, seed: int) -> Landscape:
    return stored(grid, captions, seed)[0]
