"""Samplers of a study by name; our annealer is one of Optuna's kind.

Nothing of a sampler lives longer than a trial: its state is rebuilt from the study, its random
numbers come from (seed, worker, number of the worker's trials). So a search that was killed at any
moment, and is started again, makes the trials that it would have made.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from crdiff_ext.anneal import Annealer, Trial
from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule, State
from harness.searching.stopping import by_caption

WORKER, FAILURE, REPEATED, EVALUATION = "worker", "failure", "repeated", "evaluation"
"""User attributes of a study's trials. A failed trial with neither ``failure`` (the reason) nor
``repeated`` was interrupted, and does not count. ``evaluation``: ``values`` (item -> reward),
``stopped`` (given up early), ``seconds``; one attribute, as each is a write to disk of its own."""

SAMPLERS = ("anneal", "tpe", "cmaes", "gp")
_STARTUP = 10  # trials at random before TPE and GP model anything: Optuna's own defaults


def space(schedule: Schedule) -> dict[str, BaseDistribution]:
    """The searched coordinates as Optuna's distributions."""
    return {name: FloatDistribution(low, high) for name, (low, high) in schedule.box.items()}


def state_of(schedule: Schedule, trial: FrozenTrial) -> State | None:
    """The state of a trial; None while its parameters are not known."""
    if set(schedule.box) - set(trial.params):
        return None
    return schedule.state(trial.params)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is over and says something: complete, or failed for a reason of its own."""
    failed = trial.state == TrialState.FAIL and FAILURE in trial.user_attrs
    return trial.state == TrialState.COMPLETE or failed


def was_stopped(trial: FrozenTrial) -> bool:
    """Whether it was given up before all of its items were seen."""
    return bool(trial.user_attrs.get(EVALUATION, {}).get("stopped", False))


def is_whole(trial: FrozenTrial) -> bool:
    """Whether all of its items were evaluated: only such a trial may be the best."""
    return trial.state == TrialState.COMPLETE and not was_stopped(trial)


def values_of(trial: FrozenTrial) -> dict[int, float]:
    """Rewards by item, of those that were seen."""
    values = trial.user_attrs.get(EVALUATION, {}).get("values", {})
    return {int(item): float(value) for item, value in values.items()}


def worker_of(trial: FrozenTrial) -> int:
    """The worker that made a trial; trials without one are worker 0's."""
    return int(trial.user_attrs.get(WORKER, 0))


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The whole trial with the highest value; the earlier one of two equals."""
    whole = [trial for trial in trials if is_whole(trial)]
    return max(whole, key=lambda trial: (trial.value, -trial.number), default=None)


def noise_of(one: FrozenTrial, other: FrozenTrial, seeds: int = 1) -> float | None:
    """Standard error of two whole trials' mean paired difference; None if one was not seen whole.

    It says by how much their order can be luck of the captions, each of ``seeds`` images; T0 is
    measured in it.
    """
    if not (is_whole(one) and is_whole(other)):
        return None
    values, others = values_of(one), values_of(other)
    gaps = by_caption(np.array([values[i] - others[i] for i in range(len(values))]), seeds)
    return float(gaps.std(ddof=1) / np.sqrt(len(gaps)))


def seed_of(seed: int, worker: int, number: int | str) -> int:
    """A seed of 31 bits for one purpose of one worker."""
    return random.Random(f"{seed}/{worker}/{number}").getrandbits(31)


def schedule_of(schedule: Schedule, seed: int, worker: int) -> Schedule:
    """A worker's schedule: worker 0 starts as it says and draws dense, others start elsewhere."""
    if worker == 0:
        return schedule
    draws = random.Random(f"start/{seed}/{worker}")
    low, high = schedule.low, schedule.high
    start = [min(high, max(low, round(draws.uniform(low, high), 4))) for _ in range(3)]
    if schedule.uniform:
        start = [start[0]] * 3
    return replace(schedule, start=(start[0], start[1], start[2]))


class AnnealSampler(optuna.samplers.BaseSampler):
    """One chain of simulated annealing; several workers' chains share one study.

    A restart goes from the best trial of all workers, and no state is asked for twice.

    Args:
        schedule: see :class:`crdiff_ext.schedule.Schedule`.
        seed: of the whole search; every worker draws numbers of its own from it.
        worker: whose chain this is; the study's trials say theirs in their user attributes.
        seeds: images of each caption in a trial's values.

    Attributes:
        annealer: the chain with the state that was asked for last, for ``needed`` and ``current``.
    """

    def __init__(
        self, schedule: Schedule | None = None, seed: int = 0, worker: int = 0, seeds: int = 1
    ) -> None:
        self.worker, self.seeds = worker, seeds
        self.schedule = schedule_of(schedule or Schedule(), seed, worker)
        self._seed = seed_of(seed, worker, "chain")
        self._random = optuna.samplers.RandomSampler(seed=self._seed)
        self.annealer = Annealer(self.schedule, self._seed)

    def chain(self, trials: Sequence[FrozenTrial]) -> Annealer:
        """The chain as the study tells it: every finished trial of this worker, told again."""
        annealer = Annealer(self.schedule, self._seed)
        if self.worker:
            annealer.know_baseline(None)  # worker 0 draws it
        first: FrozenTrial | None = None  # whole; what the noise is measured against
        for trial in trials:
            state = state_of(self.schedule, trial)
            if state is None or not counts(trial):
                continue
            if worker_of(trial) != self.worker:
                if state.is_dense and is_whole(trial):
                    annealer.know_baseline(trial.value)
            elif not annealer.done:
                noise = None if first is None else noise_of(first, trial, self.seeds)
                annealer.adopt(state)
                annealer.tell(trial.value, was_stopped(trial), noise)
                first = first or (trial if is_whole(trial) else None)
        return annealer

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All coordinates are proposed together."""
        return space(self.schedule)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The chain's next state. Raises CRDiffError when the chain is over."""
        self._raise_error_if_multi_objective(study)
        trials = study.get_trials(deepcopy=False)
        self.annealer = self.chain(trials)
        others = [other for other in trials if other.number != trial.number]
        taken = {
            state_of(self.schedule, other)
            for other in others
            if counts(other) or other.state == TrialState.RUNNING or REPEATED in other.user_attrs
        }
        state = self.annealer.ask(taken.__contains__, self._elsewhere(others))
        return self.schedule.point(state)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """What is not a coordinate of the search is drawn at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _elsewhere(self, trials: Sequence[FrozenTrial]) -> Trial | None:
        best = best_trial([trial for trial in trials if worker_of(trial) != self.worker])
        state = best and state_of(self.schedule, best)
        if best is None or state is None:
            return None
        return Trial(state, best.value, False, 0.0)


def make_sampler(
    name: str,
    schedule: Schedule,
    seed: int = 0,
    worker: int = 0,
    number: int = 0,
    seeds: int = 1,
) -> optuna.samplers.BaseSampler:
    """A sampler for a worker's trial ``number``. Raises CRDiffError for an unknown name."""
    own = seed_of(seed, worker, number)
    if name == "anneal":
        return AnnealSampler(schedule, seed, worker, seeds)
    if name == "tpe":
        return optuna.samplers.TPESampler(
            seed=own, n_startup_trials=_STARTUP, multivariate=True, constant_liar=True
        )
    if name == "gp":
        return optuna.samplers.GPSampler(
            seed=own, n_startup_trials=_STARTUP, deterministic_objective=False
        )
    if name == "cmaes":
        start = schedule.point(schedule.first)
        return optuna.samplers.CmaEsSampler(x0=start, seed=own, n_startup_trials=0)
    raise CRDiffError(f"sampler {name!r} is not known: use one of {', '.join(SAMPLERS)}")
