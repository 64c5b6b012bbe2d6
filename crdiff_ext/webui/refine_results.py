"""What searches for a prompt found: kept for the page and the API, bounded, without images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ..errors import CRDiffError
from ..presets import Preset
from ..refine import Refinement
from ..schedule import State
from .job import ModelFacts
from .refine_arguments import ANY

KEPT = 16
"""Results that are kept; the oldest goes first."""

SOURCE = "refined for one prompt"


@dataclass(frozen=True)
class Row:
    """One judged round.

    Attributes:
        number: of the round, from 0.
        kind: "dense", "start" or "candidate".
        state: ratios and k.
        score: mean over the seeds; None if it failed or a person judged.
        note: "failed", "favourite", "challenger" or nothing.
    """

    number: int
    kind: str
    state: State
    score: float | None
    note: str = ""

    @property
    def label(self) -> str:
        """In the page's list of rows; unlike any other of the same search."""
        told = f", {self.score:.4g}" if self.score is not None else ""
        return f"{self.number}: {self.what}{told}"

    @property
    def what(self) -> str:
        """Its ratios and k; all dense states are one."""
        return "dense" if self.state.is_dense else str(self.state)


@dataclass
class Result:
    """One search so far.

    Attributes:
        session: its name.
        judge: the reward's name, or "hand".
        size: height, width.
        seeds: images a round.
        rows: in the order in which they were drawn.
        waiting: a person has to choose between two.
        paused: it was interrupted, and goes on when it is asked for again.
        message: the last sentence to tell; empty if all is well.
    """

    session: str
    judge: str = ""
    prompt: str = ""
    facts: ModelFacts | None = None
    size: tuple[int, int] = (0, 0)
    seeds: int = 0
    rows: list[Row] = field(default_factory=list)
    waiting: bool = False
    paused: bool = False
    message: str = ""

    @property
    def dense(self) -> float | None:
        """The dense model's score."""
        return next((row.score for row in self.rows if row.kind == "dense"), None)

    @property
    def ranked(self) -> list[Row]:
        """Best first; the favourite of a person before all; failed ones last."""
        return sorted(self.rows, key=_rank)

    @property
    def challenger(self) -> int:
        """The number of the round that waits for a choice; ANY if none does."""
        return next((row.number for row in self.rows if row.note == "challenger"), ANY)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the prompt."""
        return {
            "session": self.session,
            "judge": self.judge,
            "height": self.size[0],
            "width": self.size[1],
            "seeds": self.seeds,
            "waiting": self.waiting,
            "message": self.message or None,
            "rows": [
                {
                    "number": row.number,
                    "kind": row.kind,
                    "ratios": row.state.ratios.as_dict(),
                    "k": row.state.k,
                    "score": row.score,
                    "note": row.note or None,
                }
                for row in self.ranked
            ],
        }

    def find(self, label: str | None) -> Row:
        """The row of that label. Raises CRDiffError."""
        for row in self.rows:
            if row.label == label:
                return row
        raise CRDiffError("choose a row of the table first")

    def preset(self, row: Row) -> Preset:
        """A stored entry from ``row``, with where it comes from. Raises CRDiffError."""
        if self.facts is None:
            raise CRDiffError("the model that was refined is not known: nothing can be stored")
        if row.state.is_dense:
            raise CRDiffError("these are the dense model's images: there are no ratios to store")
        provenance = {
            "method": f"{SOURCE}, judged by {self.judge or 'hand'}",
            "prompt": self.prompt,
            "n": self.seeds,
            "rounds": len(self.rows),
            "score": row.score,
            "dense_score": self.dense,
            "notes": "the score that the search saw, not one of seeds held out",
        }
        family, name = self.facts.family.name, self.facts.checkpoint
        return Preset(family, *self.size, row.state.ratios, SOURCE, name, row.state.k, provenance)


class Results:
    """The last results by session; safe from any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._by_session: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, result: Result) -> None:
        """Keep it, as the newest."""
        with self._lock:
            self._by_session[result.session] = result
            self._by_session.move_to_end(result.session)
            while len(self._by_session) > self._kept:
                self._by_session.popitem(last=False)

    def get(self, session: str) -> Result | None:
        """That of a session, if it is still kept."""
        with self._lock:
            return self._by_session.get(session)

    def listed(self) -> dict[str, Any]:
        """All as plain JSON values, the newest first."""
        with self._lock:
            return {"results": [one.to_dict() for one in reversed(self._by_session.values())]}


RESULTS = Results()


def rows_of(search: Refinement) -> list[Row]:
    """The rounds that a reward judged."""
    return [
        Row(
            judged.round.number,
            judged.round.kind,
            judged.round.state,
            judged.score,
            "" if judged.scores else "failed",
        )
        for judged in search.judged
    ]


def table(result: Result) -> str:
    """The result as HTML, best first."""
    lines = [_line(result, row) for row in result.ranked]
    head = "".join(f"<th>{name}</th>" for name in ("round", "what", "ratios, k", *_heads(result)))
    parts = []
    if result.message:
        parts.append(f'<div class="crdiff-refine-message">{escape(result.message)}</div>')
    if lines:
        parts.append(
            f'<table class="crdiff-refined"><tr>{head}</tr>{"".join(lines)}</table>'
            f"<div>judged by {escape(result.judge)}; seeds a round: {result.seeds}</div>"
        )
    return "".join(parts)


def _heads(result: Result) -> Sequence[str]:
    return ("",) if result.judge == "hand" else ("score", "beside dense")


def _line(result: Result, row: Row) -> str:
    cells = [str(row.number), _kind(row), "" if row.state.is_dense else str(row.state)]
    if result.judge == "hand":
        cells.append(row.note)
    elif row.score is None:
        cells += [row.note, ""]
    else:
        beside = "" if result.dense is None else f"{row.score - result.dense:+.4f}"
        cells += [f"{row.score:.4f}", beside]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _kind(row: Row) -> str:
    return "where it started" if row.kind == "start" else row.kind


def _rank(row: Row) -> tuple[bool, bool, float, int]:
    return (
        row.note != "favourite",
        row.note != "challenger",
        float("inf") if row.score is None else -row.score,
        row.number,
    )
