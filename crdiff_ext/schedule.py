"""How an annealed search moves: the authors' schedule, its repairs as settings, what is moved.

The paper prints no schedule (section 3.3 refers to a supplement). ``AUTHORS`` is what the authors'
code runs, faults included; the default ``Schedule()`` is the same schedule repaired:

=============== ================================== ==========================================
setting         ``AUTHORS``                        ``Schedule()``
=============== ================================== ==========================================
low             0.1: a group can't be left alone   0: any ratio may reach 0
failure_score   -2: a crash counts as a bad image  None: a failure is no score at all
baseline        False: dense is never drawn        True: dense comes first, and is to be beaten
k               1: pruned without amplification    1.5: amplification is in the loop
k_range         None: k is not searched            None; a range makes k a fourth coordinate
=============== ================================== ==========================================

``Schedule().brisk()`` is the repaired schedule with other numbers, for whoever pays for the images:

=============== ==================== ==================================================
setting         ``Schedule()``       ``brisk()``
=============== ==================== ==================================================
temperature     0.1 of the score     1 standard error of the reward's paired difference
relative        False                True
step            0.1                  0.4: half of the box at first
step_floor      0.005                0.05: below that no reward tells two states apart
reheat_above    0.8 (ImageReward)    None: once dense is beaten, whatever the reward
=============== ==================== ==================================================

It was chosen on searches that cost no image and measured on others (docs/search.md).

The sixth fault, two prompts with one seed and nothing held out, is not the schedule's: whoever
evaluates takes many, and confirms the result on others (``crdiff search`` does).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import CRDiffError
from .settings import GROUPS, K_DEFAULT, K_MAX, Ratios, check_k

DECIMALS = 4
"""States are rounded so, as in the authors' cache: what is evaluated is exactly what is stored."""

SHARED = "shared"
"""Name of the one coordinate that moves all three groups alike (uniform pruning)."""


# Of a schedule's numbers: whole or not, least and most allowed; 5e-324 is "above 0". None may stand
# where the schedule's own default is None, and in reheat_above.
_POSITIVE = math.ulp(0.0)
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "low": (float, 0, 1),
    "high": (float, 0, 1),
    "iterations": (int, 1, math.inf),
    "temperature": (float, _POSITIVE, math.inf),
    "cooling": (float, _POSITIVE, 1),
    "step": (float, _POSITIVE, math.inf),
    "step_floor": (float, 0, math.inf),
    "patience": (int, 1, math.inf),
    "reheats": (int, 0, math.inf),
    "reheat_factor": (float, 1, math.inf),
    "reheat_above": (float, -math.inf, math.inf),
    "restarts": (int, 0, math.inf),
    "restart_step": (float, _POSITIVE, math.inf),
    "failure_score": (float, -math.inf, math.inf),
}
_OPTIONAL = ("patience", "reheat_above", "failure_score")


def _check(name: str, value: Any, kind: type, least: float, most: float) -> None:
    """Raise CRDiffError unless a setting is a finite number of its kind within its limits."""
    if value is None and name in _OPTIONAL:
        return
    kinds = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        wanted = "a whole number" if kind is int else "a finite number"
        raise CRDiffError(f"{name} is {value!r}: {wanted} is needed")
    if value < least:
        above = "above 0" if least == _POSITIVE else f"at least {least:g}"
        raise CRDiffError(f"{name} is {value:g}: it must be {above}")
    if value > most:
        raise CRDiffError(f"{name} is {value:g}: it must be at most {most:g}")


@dataclass(frozen=True)
class State:
    """A point of the search: block ratios, and the amplification that goes with them."""

    ratios: Ratios
    k: float = K_DEFAULT

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", check_k(self.k))

    @property
    def is_dense(self) -> bool:
        """Whether it draws what the dense model draws."""
        return self.ratios.is_zero or self.k == 0

    def as_dict(self) -> dict[str, float]:
        """``{"down": ..., "mid": ..., "up": ..., "k": ...}``."""
        return {**self.ratios.as_dict(), "k": self.k}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> State:
        """The inverse of ``as_dict``. Raises CRDiffError."""
        if set(data) != {*GROUPS, "k"}:
            raise CRDiffError("a state needs down, mid, up and k")
        return cls(Ratios(*(data[group] for group in GROUPS)), data["k"])

    def rounded(self) -> State:
        """To ``DECIMALS`` decimals."""
        return State.from_dict({name: round(v, DECIMALS) for name, v in self.as_dict().items()})

    def __str__(self) -> str:
        return f"{self.ratios}, k = {self.k:g}"


@dataclass(frozen=True)
class Schedule:
    """How a search moves and when it stops. Raises CRDiffError for values that make no sense.

    Attributes:
        start: the first ratios of the chain.
        low, high: box of each ratio.
        iterations: most evaluations; the baseline's comes on top.
        temperature: T0, in units of the score; multiplied by ``cooling`` after every iteration.
        relative: ``temperature`` is in units of the reward's noise instead: the first standard
            error of a difference that the annealer is told. Until then no move down is accepted.
        step: largest move of a ratio at T0; in proportion to T, never below ``step_floor``.
        patience: iterations without a new best until the search is shaken; None is a fifth of all
            iterations, at least 5.
        reheats: how often T may be raised by ``reheat_factor``, once the best score is above
            ``reheat_above`` (None: above the baseline's).
        restarts: how often the search may start again from a mutation of the best, ``restart_step``
            times as large as a move; when both are used up it stops.
        k: the amplification of every state; the first one's if ``k_range`` is given.
        k_range: (lowest, highest) k to search, or None. A move of k is as large a part of its
            range as a ratio's move is of the box.
        uniform: move one ratio that all groups share (the ablation of Figure 7).
        baseline: evaluate dense first; it is the best until something beats it.
        failure_score: what a failed evaluation counts as; None: it is never accepted, nor a best.
    """

    start: tuple[float, float, float] = (0.3, 0.3, 0.3)
    low: float = 0.0
    high: float = 0.8
    iterations: int = 120
    temperature: float = 0.1
    cooling: float = 0.95
    relative: bool = False
    step: float = 0.10
    step_floor: float = 0.005
    patience: int | None = None
    reheats: int = 3
    reheat_factor: float = 1.5
    reheat_above: float | None = 0.8
    restarts: int = 2
    restart_step: float = 3.0
    k: float = K_DEFAULT
    k_range: tuple[float, float] | None = None
    uniform: bool = False
    baseline: bool = True
    failure_score: float | None = None

    def __post_init__(self) -> None:
        for name, length in (("start", 3), ("k_range", 2)):
            value = getattr(self, name)
            if value is None and name == "k_range":
                continue
            if not isinstance(value, (list, tuple)) or len(value) != length:  # JSON has lists only
                raise CRDiffError(f"{name} is {value!r}: a list of {length} numbers is needed")
            object.__setattr__(self, name, tuple(value))
        for name, (kind, least, most) in _NUMBERS.items():
            _check(name, getattr(self, name), kind, least, most)
        for name in ("relative", "uniform", "baseline"):
            if not isinstance(getattr(self, name), bool):
                raise CRDiffError(f"{name} is {getattr(self, name)!r}: it must be true or false")
        self._check_box()
        self._check_k()

    def _check_box(self) -> None:
        Ratios(*self.start)  # raises outside [0, 1)
        if not 0 <= self.low < self.high < 1:
            raise CRDiffError(f"the box {self.low:g} to {self.high:g} must lie in [0, 1)")
        if outside := [ratio for ratio in self.start if not self.low <= ratio <= self.high]:
            raise CRDiffError(
                f"the first ratio {outside[0]:g} lies outside of the box, {self.low:g} to "
                f"{self.high:g}: start within it, or set low or high"
            )
        if self.uniform and len(set(self.start)) != 1:
            raise CRDiffError("a search of one shared ratio must start from three equal ones")

    def _check_k(self) -> None:
        if check_k(self.k) == 0:
            raise CRDiffError(
                "k is 0, which is the dense model at any ratio: a search starts from a k above 0"
            )
        if self.k_range is not None:
            for value in self.k_range:
                check_k(value)
            least, most = self.k_range
            if not least < most or not least <= self.k <= most:
                raise CRDiffError(
                    f"the range of k, {least:g} to {most:g}, must lie between 0 and {K_MAX:g} and "
                    f"hold the first k, {self.k:g}"
                )

    @property
    def patient(self) -> int:
        """Iterations without a new best until reheat or restart."""
        return max(5, self.iterations // 5) if self.patience is None else self.patience

    @property
    def first(self) -> State:
        """Where the chain starts."""
        state = State(Ratios(*self.start), self.k).rounded()
        return self.dense if state.is_dense else state

    @property
    def dense(self) -> State:
        """The dense model as a state."""
        return State(Ratios(0.0, 0.0, 0.0), self.k)

    @property
    def box(self) -> dict[str, tuple[float, float]]:
        """The coordinates that are searched, by name, each with its lowest and highest value."""
        names = (SHARED,) if self.uniform else GROUPS
        box = dict.fromkeys(names, (self.low, self.high))
        return box if self.k_range is None else {**box, "k": self.k_range}

    def point(self, state: State) -> dict[str, float]:
        """``state`` in the coordinates of ``box``; a shared ratio is the groups' mean."""
        ratios = state.ratios.as_dict()
        here = {SHARED: sum(ratios.values()) / len(ratios)} if self.uniform else ratios
        return here if self.k_range is None else {**here, "k": state.k}

    def state(self, point: Mapping[str, float]) -> State:
        """The inverse of ``point``, rounded: what is evaluated. All dense states are one."""
        ratios = [point[SHARED]] * 3 if self.uniform else [point[group] for group in GROUPS]
        state = State(Ratios(*ratios), point.get("k", self.k)).rounded()
        return self.dense if state.is_dense else state

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """The inverse of ``to_dict``. Raises CRDiffError for unknown settings."""
        known = {entry.name for entry in fields(cls)}
        if unknown := set(data) - known:
            raise CRDiffError(f"a schedule has no setting {sorted(unknown)[0]!r}")
        return cls(**data)

    def brisk(self) -> Schedule:
        """The same schedule with larger moves, and T0 in units of the reward's noise."""
        return replace(
            self, temperature=1.0, relative=True, step=0.4, step_floor=0.05, reheat_above=None
        )

    def authors(self) -> Schedule:
        """The same schedule with every repair undone."""
        faults = {"low": 0.1, "failure_score": -2.0, "baseline": False, "k": 1.0, "k_range": None}
        return replace(self, **faults)  # type: ignore[arg-type]


AUTHORS = Schedule().authors()
"""What the authors' code runs, faults included."""
