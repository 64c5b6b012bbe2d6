"""What a search found: confirmed on captions that took no part, as a preset and as search.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from crdiff_ext.presets import Preset
from crdiff_ext.schedule import Schedule, State
from crdiff_ext.settings import GROUPS
from harness.searching.objective import Objective, all_values
from harness.searching.run import SearchConfig
from harness.searching.sampler import (
    FAILURE,
    best_trial,
    counts,
    is_whole,
    state_of,
    values_of,
    was_stopped,
    worker_of,
)
from harness.stats import paired_interval
from harness.store import write_atomically

VERSION = 2
STATE_FILE = "search.json"
METHODS = {
    "anneal": "simulated annealing",
    "tpe": "TPE (Optuna)",
    "cmaes": "CMA-ES (Optuna)",
    "gp": "Gaussian process (Optuna)",
}


@dataclass(frozen=True)
class Outcome:
    """The best of a study, and how it held up.

    Attributes:
        dense: dense's score on the search's captions; None if it was not evaluated.
        held_out: captions, dense's and the best's score there, their paired difference; None when
            dense was not beaten.
    """

    best: State
    score: float
    dense: float | None
    held_out: dict[str, Any] | None

    @property
    def beats_dense(self) -> bool:
        """Whether anything that is not dense scored better than dense."""
        return not self.best.is_dense

    @property
    def confirmed(self) -> bool:
        """Whether the held-out captions call it better than dense: its interval is above 0."""
        return self.held_out is not None and self.held_out["difference"]["low"] > 0

    @property
    def refuted(self) -> bool:
        """Whether the held-out captions call the best worse than dense: its interval is below 0."""
        return self.held_out is not None and self.held_out["difference"]["high"] < 0


def conclude(study: optuna.Study, config: SearchConfig, confirm: Objective) -> Outcome | None:
    """The best state, drawn on the held-out captions; None if no state could be evaluated.

    The confirmation is kept in the study, so that it is not drawn twice. What other processes find
    while it is drawn counts: the best is looked up again until it is one that was confirmed.
    """
    while True:
        best = best_trial(study.get_trials(deepcopy=False))
        state = best and state_of(config.schedule, best)
        if best is None or best.value is None or state is None:
            return None
        dense = dense_score(config.schedule, study)
        if state.is_dense:
            return Outcome(state, best.value, dense, None)
        kept = study.user_attrs.get("held_out")
        if kept is not None and kept["state"] == state.as_dict():
            return Outcome(state, best.value, dense, kept)
        plain = all_values(confirm, config.schedule.dense)
        chosen = all_values(confirm, state)
        kept = {
            "state": state.as_dict(),
            "captions": config.held_out,
            "images": len(plain),
            "dense": float(plain.mean()),
            "score": float(chosen.mean()),
            "difference": paired_interval(
                _by_caption(chosen, config.seeds), _by_caption(plain, config.seeds)
            ).as_dict(),
        }
        study.set_user_attr("held_out", kept)


def _by_caption(values: Any, seeds: int) -> Any:
    """Means over each caption's seeds: captions, not images, are independent of each other."""
    return values.reshape(-1, seeds).mean(1)


def dense_score(schedule: Schedule, study: optuna.Study) -> float | None:
    """Dense's score in a study."""
    for trial in study.get_trials(deepcopy=False):
        state = state_of(schedule, trial)
        if is_whole(trial) and state is not None and state.is_dense:
            return trial.value
    return None


def preset_of(
    outcome: Outcome, config: SearchConfig, study: optuna.Study, family: str, model: str
) -> Preset:
    """The best ratios as a stored entry, with the provenance that a reader needs."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
    schedule = config.schedule
    doubt = "" if outcome.confirmed else ", gain not confirmed"
    amplified = "amplification in the loop" if schedule.k != 1 else "without amplification"
    provenance = {
        "kind": "searched",
        "method": f"{METHODS[config.sampler]}, {amplified}",
        **config.to_dict(),
        "states": len(trials),
        "images": sum(len(values_of(trial)) for trial in trials),
        "workers": len({worker_of(trial) for trial in trials}),
        "search_score": outcome.score,
        "search_score_dense": outcome.dense,
        "held_out": outcome.held_out,
    }
    return Preset(
        family=family,
        height=config.height,
        width=config.width,
        ratios=outcome.best.ratios,
        source=f"crdiff search, {config.captions} captions{doubt}",
        model=model,
        k=outcome.best.k,
        provenance=provenance,
    )


def report(
    study: optuna.Study, config: SearchConfig, outcome: Outcome | None, cost: dict[str, float]
) -> dict[str, Any]:
    """Everything for search.json: the curve of Figure 7b is ``best_so_far`` against ``images``."""
    rows = []
    images, best = 0, -math.inf
    for trial in study.get_trials(deepcopy=False):
        state = state_of(config.schedule, trial)
        if state is None or not counts(trial):
            continue
        images += len(values_of(trial))
        if is_whole(trial) and trial.value is not None:
            best = max(best, trial.value)
        rows.append(
            {
                "number": trial.number,
                "worker": worker_of(trial),
                "ratios": {group: state.as_dict()[group] for group in GROUPS},
                "k": state.k,
                "score": trial.value,
                "stopped": was_stopped(trial),
                "failure": trial.user_attrs.get(FAILURE),
                "images": images,
                "best_so_far": None if best == -math.inf else best,
            }
        )
    found = None
    if outcome is not None:
        found = {"state": outcome.best.as_dict(), "score": outcome.score}
    return {
        "version": VERSION,
        "study": study.study_name,
        "config": config.to_dict(),
        "searched": "one shared ratio" if config.schedule.uniform else "block-wise ratios",
        "dense": dense_score(config.schedule, study),
        "trials": rows,
        "best": found,
        "held_out": outcome.held_out if outcome else None,
        "cost": cost,
    }


def write_report(folder: Path, data: dict[str, Any]) -> Path:
    """Replace search.json, whole or not at all."""
    path = folder / STATE_FILE
    write_atomically(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
    return path
