"""One worker of a search: ask the study for a state, judge it caption by caption, tell.

Everything that matters is in the study: a worker that was killed goes on where it was, and several
of them, in as many processes or on as many machines, make one search.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule, State
from harness.searching.objective import Objective
from harness.searching.sampler import (
    EVALUATION,
    FAILURE,
    REPEATED,
    SAMPLERS,
    WORKER,
    AnnealSampler,
    best_trial,
    counts,
    is_whole,
    make_sampler,
    space,
    state_of,
    values_of,
    worker_of,
)
from harness.searching.stopping import Looks, by_caption, estimate, wilcoxon_prunes

log = logging.getLogger(__name__)

Rule = Callable[[np.ndarray], float | None]
MOST_REPEATS = 20


@dataclass(frozen=True)
class SearchConfig:
    """What is searched; everything that the scores depend on. Raises CRDiffError.

    ``captions`` judge every state with ``seeds`` images each, ``held_out`` further captions confirm
    the best. ``stop``: give up hopeless states before all captions were seen.
    """

    model_hash: str
    height: int
    width: int
    reward: str
    prompts: str
    prompts_sha256: str
    captions: int = 32
    seeds: int = 1
    held_out: int = 128
    steps: int = 10
    guidance: float = 3.0
    seed: int = 0
    batch: int = 8
    sampler: str = "anneal"
    stop: bool = True
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        for name, least in (("captions", 2), ("held_out", 2), ("seeds", 1), ("steps", 1)):
            value = getattr(self, name)
            if value < least:
                flag = name.replace("_", "-")
                raise CRDiffError(f"--{flag} is {value}: it must be at least {least}")
        if self.sampler not in SAMPLERS:
            raise CRDiffError(
                f"sampler {self.sampler!r} is not known: use one of {', '.join(SAMPLERS)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "schedule": self.schedule.to_dict()}

    def settings(self) -> dict[str, Any]:
        """What a study is bound to: all but the number of iterations, which may be raised.

        As JSON gives it back, so that it can be compared with what a study holds.
        """
        data = self.to_dict()
        if self.sampler != "anneal":  # theirs is a budget, the annealer's shapes its moves
            data["schedule"].pop("iterations")
        for name in ("start", "k_range"):
            if data["schedule"][name] is not None:
                data["schedule"][name] = list(data["schedule"][name])
        return data


class Worker:
    """One chain: asks, evaluates, tells, until its iterations or its patience are spent."""

    def __init__(
        self, study: optuna.Study, config: SearchConfig, objective: Objective, number: int = 0
    ) -> None:
        self.study, self.config, self.objective, self.number = study, config, objective, number
        self.schedule = config.schedule
        self.space = space(self.schedule)
        self.total = sum(map(len, objective.batches))
        self._known: dict[State, np.ndarray] = {}
        self._fail_interrupted()

    def run(self, told: Callable[[Worker], None] = lambda worker: None) -> None:
        """Work until done; ``told`` is called after every trial."""
        repeats = 0
        while (trial := self.ask()) is not None:
            if repeats < MOST_REPEATS and self._is_repeated(trial):
                repeats += 1
                trial.set_user_attr(REPEATED, True)
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            repeats = 0
            self.evaluate(trial)
            told(self)

    def ask(self) -> optuna.Trial | None:
        """The worker's next trial with its parameters, or None when it is done."""
        trials = self.study.get_trials(deepcopy=False)
        mine = [trial for trial in trials if worker_of(trial) == self.number]
        number = sum(1 for t in mine if counts(t) or REPEATED in t.user_attrs)
        if self.config.sampler == "anneal":
            sampler = AnnealSampler(self.schedule, self.config.seed, self.number, self.config.seeds)
            if sampler.chain(trials).done:
                return None
        else:
            if sum(map(counts, mine)) >= self.schedule.iterations + self.schedule.baseline:
                return None
            if self.number == 0:
                self._enqueue_first()
        self.study.sampler = make_sampler(
            self.config.sampler,
            self.schedule,
            self.config.seed,
            self.number,
            number,
            self.config.seeds,
        )
        trial = self.study.ask()
        trial.set_user_attr(WORKER, self.number)
        for name, distribution in self.space.items():
            trial.suggest_float(name, distribution.low, distribution.high)
        return trial

    def evaluate(self, trial: optuna.Trial) -> None:
        """Judge a trial's state, batch by batch in an order of its own, and tell the study."""
        state = self.schedule.state(trial.params)
        started = time.perf_counter()
        values = np.full(self.total, np.nan)
        rule = self._rule()
        score = None
        try:
            for number in self._order(state):
                members = list(self.objective.batches[number])
                values[members] = self.objective.values(state, number)
                if np.isnan(values).any() and (score := rule(values)) is not None:
                    break
        except CRDiffError as error:
            log.warning("%s failed: %s", state, error)
            trial.set_user_attr(FAILURE, str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            return
        seen = np.flatnonzero(~np.isnan(values))
        evaluation = {
            "values": {str(item): float(values[item]) for item in seen},
            "stopped": score is not None,
            "seconds": round(time.perf_counter() - started, 3),
        }
        trial.set_user_attr(EVALUATION, evaluation)
        self.study.tell(trial, float(values.mean()) if score is None else score)
        if score is None:
            self._known[state] = values

    def mine(self) -> list[FrozenTrial]:
        """This worker's trials, in their order."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if worker_of(trial) == self.number]

    def _order(self, state: State) -> list[int]:
        """The batches in the state's own order: no captions are always the first to judge."""
        order = list(range(len(self.objective.batches)))
        random.Random(f"order/{self.config.seed}/{state}").shuffle(order)
        return order

    def _rule(self) -> Rule:
        """Says after each batch whether to give up: the score to tell then, else None."""
        sampler = self.study.sampler
        if not self.config.stop:
            return lambda values: None
        if isinstance(sampler, AnnealSampler):
            return self._annealer_rule(sampler)
        return self._wilcoxon_rule()

    def _annealer_rule(self, sampler: AnnealSampler) -> Rule:
        """Against where the chain is: u was drawn already, so what is needed is known."""
        current = sampler.annealer.current
        base = None if current is None else self._values_of(current.state)
        if current is None or base is None or current.score is None:
            return lambda values: None
        score = current.score
        seeds = self.config.seeds
        looks = Looks(sampler.annealer.needed - score, self.total // seeds)

        def rule(values: np.ndarray) -> float | None:
            seen = ~np.isnan(values)
            if looks.hopeless(by_caption(values - base, seeds), float(seen.mean())):
                return estimate(values[seen], base[seen], score)
            return None

        return rule

    def _wilcoxon_rule(self) -> Rule:
        """Against the best so far, by Optuna's pruner.

        What is told is a score like any other to these samplers, so it must be below the best's:
        the test looks at ranks, and where the mean says otherwise all captions are seen.
        """
        best = best_trial(self.study.get_trials(deepcopy=False))
        state = best and state_of(self.schedule, best)
        base = None if state is None else self._values_of(state)
        if best is None or best.value is None or base is None:
            return lambda values: None
        score = best.value

        def rule(values: np.ndarray) -> float | None:
            seen = ~np.isnan(values)
            told = estimate(values[seen], base[seen], score)
            return told if told < score and wilcoxon_prunes(values, base) else None

        return rule

    def _values_of(self, state: State) -> np.ndarray | None:
        """Every item's value of a state that was seen whole, by whichever worker."""
        if state not in self._known:
            for trial in self.study.get_trials(deepcopy=False):
                if is_whole(trial) and state_of(self.schedule, trial) == state:
                    values = values_of(trial)
                    self._known[state] = np.array([values[i] for i in range(self.total)])
                    break
        return self._known.get(state)

    def _enqueue_first(self) -> None:
        """Dense, then the start, come first for Optuna's own samplers too; one at a time."""
        known = {state_of(self.schedule, trial) for trial in self.mine() if counts(trial)}
        wanted = [self.schedule.dense] if self.schedule.baseline else []
        for state in [*wanted, self.schedule.first]:
            point = self.schedule.point(state)
            if state not in known:
                if not self._waits(point):
                    self.study.enqueue_trial(point)
                return

    def _waits(self, point: dict[str, float]) -> bool:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return any(trial.system_attrs.get("fixed_params") == point for trial in waiting)

    def _is_repeated(self, trial: optuna.Trial) -> bool:
        """Whether another worker has, or evaluates, the same state: two asked at one moment."""
        state = self.schedule.state(trial.params)
        return any(
            other.number < trial.number
            and worker_of(other) != self.number
            and state_of(self.schedule, other) == state
            and (counts(other) or other.state == TrialState.RUNNING)
            for other in self.study.get_trials(deepcopy=False)
        )

    def _fail_interrupted(self) -> None:
        """Trials that this worker was killed in: they are over, and are made again."""
        for trial in self.mine():
            if trial.state == TrialState.RUNNING and WORKER in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL)
