"""Simulated annealing over block ratios (paper, section 3.3), as ask and tell: no I/O, no model.

The default schedule is the one that the authors' code runs; the paper does not print it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import CRDiffError
from .settings import GROUPS, Ratios


@dataclass(frozen=True)
class Schedule:
    """How a search moves and when it stops.

    Attributes:
        iterations: most evaluations, the first one (of the start) included.
        low, high: box of each ratio.
        temperature: T0; multiplied by ``cooling`` after every iteration.
        step: largest move of a coordinate at T0; in proportion to T, never below ``step_floor``.
        patience: iterations without a new best until the search is shaken; None is a fifth of all
            iterations, at least 5.
        reheats: how often T may be raised by ``reheat_factor``, once the best score is above
            ``reheat_above``.
        restarts: how often the search may start again from a mutation of the best, ``restart_step``
            times as large as a move; when both are used up it stops.
    """

    start: tuple[float, float, float] = (0.3, 0.3, 0.3)
    low: float = 0.1
    high: float = 0.8
    iterations: int = 120
    temperature: float = 0.1
    cooling: float = 0.95
    step: float = 0.10
    step_floor: float = 0.005
    patience: int | None = None
    reheats: int = 3
    reheat_factor: float = 1.5
    reheat_above: float = 0.8
    restarts: int = 2
    restart_step: float = 3.0

    def __post_init__(self) -> None:
        Ratios(*self.start)  # raises outside [0, 1)
        if not 0 <= self.low < self.high < 1:
            raise CRDiffError(f"the box {self.low:g} to {self.high:g} must lie in [0, 1)")
        if self.iterations < 1 or self.temperature <= 0 or not 0 < self.cooling <= 1:
            raise CRDiffError(
                "a schedule needs at least one iteration, a positive temperature and a cooling "
                "factor in (0, 1]"
            )

    @property
    def patient(self) -> int:
        """Iterations without a new best until reheat or restart."""
        return max(5, self.iterations // 5) if self.patience is None else self.patience


@dataclass(frozen=True)
class Trial:
    """One evaluated state; ``score`` is None for an evaluation that failed."""

    ratios: Ratios
    score: float | None
    accepted: bool
    temperature: float


@dataclass
class Annealer:
    """Ask for ratios, tell their score (higher is better), until ``done``.

    >>> search = Annealer(Schedule(iterations=30), seed=0)
    >>> while not search.done:
    ...     ratios = search.ask()
    ...     search.tell(-abs(ratios.down - 0.5))
    >>> len(search.trials) <= 30 and search.best.score > -0.2
    True
    """

    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    trials: list[Trial] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._temperature = self.schedule.temperature
        self._current: Trial | None = None
        self._best: Trial | None = None
        self._asked: Ratios | None = None
        self._stale = self._reheats = self._restarts = 0
        self._stopped = self._jump = False

    @property
    def done(self) -> bool:
        """Whether the search has spent its iterations or its patience."""
        return self._stopped or len(self.trials) >= self.schedule.iterations

    @property
    def best(self) -> Trial | None:
        """The trial with the highest score; the earlier one of two equals."""
        return self._best

    def ask(self) -> Ratios:
        """The next ratios to evaluate; asking again before telling gives the same ones.

        Raises:
            CRDiffError: the search is over.
        """
        if self.done:
            raise CRDiffError("the search is over: read its best trial")
        if self._asked is None:
            self._asked = self._propose()
        return self._asked

    def tell(self, score: float | None) -> None:
        """Takes the score of the ratios last asked for; None if their evaluation failed.

        Raises:
            CRDiffError: nothing was asked, or the score is not finite.
        """
        if self._asked is None:
            raise CRDiffError("ask for ratios before telling a score")
        if score is not None and not math.isfinite(score):
            raise CRDiffError(f"a score of {score} cannot be compared: tell None for a failure")
        accepted = score is not None and self._accepts(score)
        trial = Trial(self._asked, score, accepted, self._temperature)
        self.trials.append(trial)
        self._asked = None
        if accepted:
            self._current = trial
        if score is not None and (self._best is None or score > self._best.score):  # type: ignore[operator]
            self._best, self._stale = trial, 0
        else:
            self._stale += 1
        self._temperature *= self.schedule.cooling
        if self._stale >= self.schedule.patient:
            self._shake()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values from which ``from_dict`` goes on as if it had never stopped."""
        return {
            "schedule": asdict(self.schedule),
            "seed": self.seed,
            "scores": [trial.score for trial in self.trials],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Annealer:
        """Replays the scores told so far: the same moves come out, the generator included."""
        schedule = dict(data["schedule"])
        schedule["start"] = tuple(schedule["start"])
        annealer = cls(Schedule(**schedule), int(data["seed"]))
        for score in data["scores"]:
            annealer.ask()
            annealer.tell(score)
        return annealer

    def _accepts(self, score: float) -> bool:
        """Metropolis: always if better, else with probability exp((score - current) / T)."""
        if self._current is None or self._current.score is None:
            return True
        gain = score - self._current.score
        # The number is drawn only when it decides; T is 0 only by underflow.
        return gain > 0 or self._random.random() < math.exp(gain / max(self._temperature, 1e-300))

    def _propose(self) -> Ratios:
        centre = self._best if self._jump else self._current
        if centre is None:
            return Ratios(*self.schedule.start)
        heat = self._temperature / self.schedule.temperature
        reach = max(self.schedule.step_floor, self.schedule.step * heat)
        if self._jump:
            reach, self._jump = self.schedule.restart_step * reach, False
            moved: tuple[str, ...] = GROUPS
        else:
            moved = (self._random.choice(GROUPS),)
        ratios = centre.ratios.as_dict()
        for group in moved:
            there = ratios[group] + self._random.uniform(-reach, reach)
            ratios[group] = min(self.schedule.high, max(self.schedule.low, there))
        return Ratios(**ratios)

    def _shake(self) -> None:
        """Reheat, else restart, else stop."""
        self._stale = 0
        best = -math.inf if self._best is None or self._best.score is None else self._best.score
        if self._reheats < self.schedule.reheats and best > self.schedule.reheat_above:
            self._reheats += 1
            self._temperature *= self.schedule.reheat_factor
        elif self._restarts < self.schedule.restarts and self._best is not None:
            self._restarts += 1
            self._current, self._jump = None, True
        else:
            self._stopped = True
