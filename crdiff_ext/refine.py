"""Prompt-specific refinement (paper, section 4.3): a short search for one prompt, as ask and tell.

Whoever drives it draws what it asks for and judges it: with a reward (``tell``), or by the eye of a
person who picks one of two candidates (``prefer``). It knows no host, no model and no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .anneal import Annealer, Trial
from .errors import CRDiffError
from .schedule import Schedule, State
from .settings import K_DEFAULT

K_RANGE = (1.0, 2.0)
_T0 = 0.02
"""In units of the score; the differences between candidates for one prompt are larger."""
_COOLED = 0.2
"""What is left of the temperature, and so of the moves, in the last round."""


@dataclass(frozen=True)
class Round:
    """One state to draw: an image for each seed.

    Attributes:
        number: from 0.
        kind: "dense", "start" (the stored ratios) or "candidate".
    """

    number: int
    kind: str
    state: State
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """A round with its scores, one a seed; none if it failed or was picked by hand."""

    round: Round
    scores: tuple[float, ...] | None

    @property
    def score(self) -> float | None:
        """Mean over seeds."""
        return None if not self.scores else sum(self.scores) / len(self.scores)


def refine_schedule(
    start: State, rounds: int, search_k: bool = True, uniform: bool = False
) -> Schedule:
    """A schedule that spends ``rounds`` candidates around ``start``: no restarts, quick cooling.

    Moves start at half of the box, since a dozen small ones lead nowhere, and hardly any goes
    down. ``docs/search.md`` has what this gains over smaller moves.
    ``search_k``: k is searched too, within ``K_RANGE`` (widened to hold the start's).
    ``uniform``: one ratio for all groups, as a diffusion transformer has.
    """
    rounds = max(1, rounds)
    k_range = (min(K_RANGE[0], start.k), max(K_RANGE[1], start.k)) if search_k else None
    ratios = start.ratios.as_dict().values()
    down, mid, up = ratios
    return Schedule(
        start=(down, mid, up),
        high=max(0.8, *ratios),
        iterations=rounds + 1,
        cooling=_COOLED ** (1 / rounds),
        temperature=_T0,
        step=0.4,
        step_floor=0.05,
        patience=rounds + 1,
        reheats=0,
        restarts=0,
        k=start.k,
        k_range=k_range,
        uniform=uniform,
    )


def candidates(budget: int, seeds: int) -> int:
    """Rounds that are left beside dense's and the start's. Raises CRDiffError if there is none."""
    rounds = budget // seeds - 2
    if rounds < 1:
        raise CRDiffError(
            f"a budget of {budget} images is too small for {seeds} seeds: {3 * seeds} are needed "
            "for dense, the stored ratios and one candidate"
        )
    return rounds


@dataclass
class Refinement:
    """Ask for a round, draw its images, tell their scores, until ``done``.

    Args:
        start: the stored ratios (or any) to begin with, and their k; where k is searched, one of 0
            becomes 1.5: at 0 every ratio draws the dense image, and no move leads away.
        seeds: of the images that judge a state: several, so that one lucky image does not decide.
        budget: most images in all, dense's and the start's included.
        search_k: search k beside the ratios.
        seed: of the moves.
        uniform: search one ratio for all groups; the start's must be equal.

    >>> from crdiff_ext.settings import Ratios
    >>> search = Refinement(State(Ratios(0.3, 0.2, 0.3)), seeds=(1, 2), budget=24)
    >>> while not search.done:
    ...     asked = search.ask()
    ...     search.tell([-abs(asked.state.ratios.down - 0.4)] * len(asked.seeds))
    >>> len(search.judged), search.best.state.ratios.down > 0.3
    (12, True)

    Raises CRDiffError if the budget does not hold dense, the start and one candidate, for unequal
    ratios to start from with ``uniform``, and for k = 0 where k is not searched.
    """

    start: State
    seeds: Sequence[int]
    budget: int = 24
    search_k: bool = True
    seed: int = 0
    uniform: bool = False
    judged: list[Judged] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.seeds = tuple(self.seeds)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise CRDiffError("a refinement needs at least one seed, and none of them twice")
        rounds = candidates(self.budget, len(self.seeds))
        if self.start.k == 0 and self.search_k:
            self.start = replace(self.start, k=K_DEFAULT)
        schedule = refine_schedule(self.start.rounded(), rounds, self.search_k, self.uniform)
        if self.start.is_dense:  # the start is dense's round: one more candidate instead
            schedule = replace(schedule, iterations=rounds + 2, baseline=False)
        self._annealer = Annealer(schedule, self.seed)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self._annealer.done

    @property
    def rounds(self) -> int:
        """Rounds in all."""
        return self.budget // len(self.seeds)

    @property
    def best(self) -> Trial:
        """The best state so far, dense and the start included. Raises CRDiffError without any."""
        best = self._annealer.best
        if best is None:
            raise CRDiffError("nothing has been judged yet: ask for a round and tell its scores")
        return best

    def ask(self) -> Round:
        """The next round; the same one until it was told. Raises CRDiffError when done."""
        state = self._annealer.ask()
        number = len(self.judged)
        kind = "candidate"
        if state.is_dense:
            kind = "dense"
        elif state == self._annealer.schedule.first:
            kind = "start"
        return Round(number, kind, state, tuple(self.seeds))

    def tell(self, scores: Sequence[float] | None) -> None:
        """The scores of the round's images, one a seed; None if they could not be drawn."""
        asked = self.ask()
        if scores is not None and len(scores) != len(self.seeds):
            raise CRDiffError(f"{len(self.seeds)} scores are needed, one a seed")
        told = None if scores is None else tuple(float(score) for score in scores)
        judged = Judged(asked, told)
        self._annealer.tell(judged.score)
        self.judged.append(judged)

    def pair(self) -> tuple[Round | None, Round]:
        """What a person chooses between: the favourite so far (None at first), and a new round."""
        asked = self.ask()
        best = self._annealer.best
        favourite = None
        if best is not None:
            favourite = next(j.round for j in reversed(self.judged) if j.round.state == best.state)
        return favourite, asked

    def prefer(self, challenger: bool) -> None:
        """A person's choice between the two of ``pair``: the search goes to what was chosen.

        The first round has no rival and becomes the favourite either way. Nothing worse is ever
        accepted: a person's "no" has no size that chance could be weighed by.
        """
        asked = self.ask()
        best = self._annealer.best
        if best is None:
            self._annealer.tell(0.0)
        else:
            assert best.score is not None
            # Scores count the choices won: all that matters of them is their order.
            self._annealer.tell(best.score + (1.0 if challenger else -1.0), stopped=not challenger)
        self.judged.append(Judged(asked, None))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values from which ``from_dict`` goes on as if it had never stopped."""
        return {
            "start": self.start.as_dict(),
            "seeds": list(self.seeds),
            "budget": self.budget,
            "search_k": self.search_k,
            "seed": self.seed,
            "uniform": self.uniform,
            "judged": [None if j.scores is None else list(j.scores) for j in self.judged],
            "annealer": self._annealer.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Refinement:
        """The inverse of ``to_dict``. Raises CRDiffError."""
        again = cls(
            State.from_dict(data["start"]),
            data["seeds"],
            data["budget"],
            data["search_k"],
            data["seed"],
            data.get("uniform", False),
        )
        for told, scores in zip(data["annealer"]["told"], data["judged"], strict=True):
            asked = again.ask()
            again._annealer.tell(told["score"], told["stopped"])
            again.judged.append(Judged(asked, None if scores is None else tuple(scores)))
        return again
