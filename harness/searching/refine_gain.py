"""What a search for one prompt gains by its own score: with its moves, and with smaller ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crdiff_ext.anneal import Annealer
from crdiff_ext.refine import refine_schedule
from crdiff_ext.schedule import Schedule, State
from crdiff_ext.settings import Ratios
from harness.searching.compare import Maker
from harness.searching.landscapes import Landscape

BUDGETS = (12, 24, 48)
IMAGES = 2
"""A state's images; a landscape's captions stand for them."""
SEEDS = range(100, 180)
START = State(Ratios(0.3, 0.3, 0.3))


def schedules(rounds: int) -> dict[str, Schedule]:
    """The schedule of ``crdiff_ext.refine``, k left alone, and the one with smaller moves."""
    own = refine_schedule(START, rounds, search_k=False)
    small = replace(own, step=0.15, step_floor=0.02, temperature=0.1)  # T0 as the authors have it
    return {"as shipped": own, "small moves": small}


def gain(schedule: Schedule, landscape: Landscape, seed: int) -> float:
    """Score of the best state less dense's, both of the landscape's first batch."""
    search = Annealer(schedule, seed)
    while not search.done:
        search.tell(float(landscape.values(search.ask(), 0).mean()))
    assert search.best is not None
    assert search.best.score is not None
    assert search.baseline is not None
    return search.best.score - search.baseline


def gains(makers: Mapping[str, Maker], seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Mean gain over ``seeds`` and its standard error, by landscape, budget and schedule."""
    rows = []
    for on, make in makers.items():
        for budget in BUDGETS:
            for name, schedule in schedules(budget // IMAGES - 2).items():
                found = np.array([gain(schedule, make(seed), seed) for seed in seeds])
                error = float(found.std(ddof=1) / np.sqrt(len(found)))
                rows.append(
                    {"on": on, "images": budget, "moves": name, "gain": float(found.mean()),
                     "error": error, "n": len(found)}
                )  # fmt: skip
    return rows
