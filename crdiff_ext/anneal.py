"""Simulated annealing over block ratios (paper, section 3.3), as ask and tell: no I/O, no model.

The random numbers of an iteration depend on the seed and on its number only, so a search is gone
on with from what it was told: nothing else has to be kept. Whether a move will be accepted is drawn
before it is evaluated (``needed``), which lets the evaluation of a hopeless one be cut short.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import CRDiffError
from .schedule import Schedule, State
from .settings import Ratios

_REDRAWS = 50
"""How often a proposal that was evaluated before is drawn anew; then it is taken as it is."""


@dataclass(frozen=True)
class Trial:
    """One evaluated state.

    Attributes:
        score: higher is better; None for an evaluation that failed.
        accepted: whether the chain went there.
        temperature: at which it was judged, in units of the score.
        stopped: whether it was given up before all of it was seen: the score is an estimate, which
            is never accepted, nor a best.
        noise: standard error of its difference to another state, if that was told.
    """

    state: State
    score: float | None
    accepted: bool
    temperature: float
    stopped: bool = False
    noise: float | None = None

    @property
    def ratios(self) -> Ratios:
        """The state's ratios."""
        return self.state.ratios

    @property
    def k(self) -> float:
        """The state's amplification."""
        return self.state.k


@dataclass
class Annealer:
    """Ask for a state, tell its score (higher is better), until ``done``.

    >>> search = Annealer(Schedule(iterations=30), seed=0)
    >>> while not search.done:
    ...     state = search.ask()
    ...     search.tell(-abs(state.ratios.down - 0.5))
    >>> len(search.trials) <= 31 and search.best.score >= -0.2
    True
    """

    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    trials: list[Trial] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._temperature = self.schedule.temperature
        self._unit = 0.0 if self.schedule.relative else 1.0  # of the temperature, in the score's
        self._current: Trial | None = None
        self._best: Trial | None = None
        self._baseline: float | None = None
        self._wants_baseline = self.schedule.baseline
        self._asked: State | None = None
        self._luck = 1.0  # u of the Metropolis rule, in (0, 1]
        self._iterations = self._stale = self._reheats = self._restarts = 0
        self._stopped = self._jump = False

    @property
    def done(self) -> bool:
        """Whether the search has spent its iterations or its patience."""
        return self._stopped or self._iterations >= self.schedule.iterations

    @property
    def best(self) -> Trial | None:
        """The trial with the highest score, dense included; the earlier one of two equals."""
        return self._best

    @property
    def current(self) -> Trial | None:
        """Where the chain is; None at the start and after a restart."""
        return self._current

    @property
    def baseline(self) -> float | None:
        """Dense's score, once it is known."""
        return self._baseline

    @property
    def needed(self) -> float:
        """The score from which the state last asked for is accepted: current + T ln u.

        Minus infinity where any score is: dense, the start, the first state after a restart.
        """
        if self._asked is None or self._current is None or self._asks_baseline:
            return -math.inf
        assert self._current.score is not None
        return self._current.score + self.heat * math.log(self._luck)

    @property
    def heat(self) -> float:
        """T in units of the score; 0 while a relative schedule does not know the noise."""
        return self._temperature * self._unit

    def ask(
        self,
        taken: Callable[[State], bool] | None = None,
        elsewhere: Trial | None = None,
    ) -> State:
        """The next state to evaluate; asking again before telling gives the same one.

        Args:
            taken: says of a state whether it was, or is being, evaluated; another one is looked
                for then. Without it this annealer's own trials count.
            elsewhere: the best trial of other chains: a restart goes from it if it is better.

        Raises:
            CRDiffError: the search is over.
        """
        if self.done:
            raise CRDiffError("the search is over: read its best trial")
        if self._asked is None:
            draws = self._draws()
            state = self._propose(draws, elsewhere)
            known = taken or {trial.state for trial in self.trials}.__contains__
            for _ in range(_REDRAWS):
                if not known(state) or self._asks_baseline:
                    break
                state = self._propose(draws, elsewhere)
            self._asked = state
        return self._asked

    def adopt(self, state: State) -> None:
        """Take ``state`` as asked for: an evaluation that was asked for before, and is told now."""
        if self._asked is None:
            self._draws()
        self._asked = state

    def tell(self, score: float | None, stopped: bool = False, noise: float | None = None) -> None:
        """Takes the score of the state last asked for; None if its evaluation failed.

        ``stopped``: it was given up because it could not reach ``needed``; the score is an estimate
        and the move is refused. ``noise``: the standard error of this score's difference to
        another state's, in units of the score; the first one above 0 is the unit of a relative
        schedule's temperature, from the next state on.

        Raises:
            CRDiffError: nothing was asked, or the score is not finite, or the noise is no error.
        """
        if self._asked is None:
            raise CRDiffError("ask for a state before telling a score")
        if score is None:
            score = self.schedule.failure_score
        if score is not None and not math.isfinite(score):
            raise CRDiffError(f"a score of {score} cannot be compared: tell None for a failure")
        if noise is not None and not (math.isfinite(noise) and noise >= 0):
            raise CRDiffError(f"a noise of {noise} is no standard error: tell None if not known")
        judged = score is not None and not stopped
        is_baseline = self._asks_baseline
        accepted = judged and not is_baseline and score >= self.needed  # type: ignore[operator]
        trial = Trial(self._asked, score, accepted, self.heat, stopped, noise)
        self.trials.append(trial)
        self._asked = None
        if noise is not None and self._unit == 0:
            self._unit = noise
        if is_baseline:
            self.know_baseline(score, trial)
            return
        self._iterations += 1
        if accepted:  # a restart that failed is made again, from the best
            self._current, self._jump = trial, False
        if judged and (self._best is None or score > self._best.score):  # type: ignore[operator]
            self._best, self._stale = trial, 0
        else:
            self._stale += 1
        self._temperature *= self.schedule.cooling
        if self._stale >= self.schedule.patient:
            self._shake()

    def know_baseline(self, score: float | None, trial: Trial | None = None) -> None:
        """Dense's score, from this search's own evaluation of it or from elsewhere."""
        self._wants_baseline = False
        self._baseline = score
        if score is not None and (self._best is None or score > self._best.score):  # type: ignore[operator]
            dense = self.schedule.dense
            self._best = trial or Trial(dense, score, False, self.heat)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values from which ``from_dict`` goes on as if it had never stopped."""
        told = [
            {
                **trial.state.as_dict(),
                "score": trial.score,
                "stopped": trial.stopped,
                "noise": trial.noise,
            }
            for trial in self.trials
        ]
        return {"schedule": self.schedule.to_dict(), "seed": self.seed, "told": told}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Annealer:
        """The inverse of ``to_dict``: what was told is told again. Raises CRDiffError."""
        annealer = cls(Schedule.from_dict(data["schedule"]), int(data["seed"]))
        for told in data["told"]:
            point = dict(told)
            score, stopped = point.pop("score"), point.pop("stopped")
            noise = point.pop("noise", None)  # not there in what older versions wrote
            annealer.adopt(State.from_dict(point))
            annealer.tell(score, stopped, noise)
        return annealer

    @property
    def _asks_baseline(self) -> bool:
        return self._wants_baseline

    def _draws(self) -> random.Random:
        """This iteration's random numbers; u is the first of them."""
        draws = random.Random(f"{self.seed}/{self._iterations}")
        self._luck = 1.0 - draws.random()
        return draws

    def _propose(self, draws: random.Random, elsewhere: Trial | None) -> State:
        """Dense, the start, a mutation of the best (after a restart), or a move of one value."""
        schedule = self.schedule
        if self._asks_baseline:
            return schedule.dense
        centre = self._better(elsewhere) if self._jump else self._current
        if centre is None:
            # A start that failed would fail again.
            return schedule.first if not self._iterations else self._anywhere(draws)
        heat = self._temperature / schedule.temperature
        reach = max(schedule.step_floor, schedule.step * heat)
        names = list(schedule.box)
        if self._jump:
            reach *= schedule.restart_step
        else:
            names = [draws.choice(names)]
        point = schedule.point(centre.state)
        for name in names:
            low, high = schedule.box[name]
            # In ratios a reach is what it says; k's is as large a part of its own range.
            scale = (high - low) / (schedule.high - schedule.low)
            there = point[name] + draws.uniform(-reach, reach) * scale
            point[name] = min(high, max(low, there))
        return schedule.state(point)

    def _anywhere(self, draws: random.Random) -> State:
        return self.schedule.state({n: draws.uniform(*box) for n, box in self.schedule.box.items()})

    def _better(self, elsewhere: Trial | None) -> Trial | None:
        """The best of this chain and of the others, from which a restart goes."""
        own = self._best
        if elsewhere is None or elsewhere.score is None or elsewhere.stopped:
            return own
        if own is None or own.score is None or elsewhere.score > own.score:
            return elsewhere
        return own

    def _shake(self) -> None:
        """Reheat, else restart, else stop."""
        self._stale = 0
        best = -math.inf if self._best is None or self._best.score is None else self._best.score
        above = self.schedule.reheat_above
        if above is None:
            above = math.inf if self._baseline is None else self._baseline
        if self._reheats < self.schedule.reheats and best > above:
            self._reheats += 1
            self._temperature *= self.schedule.reheat_factor
        elif self._restarts < self.schedule.restarts and self._best is not None:
            self._restarts += 1
            self._current, self._jump = None, True
        else:
            self._stopped = True
