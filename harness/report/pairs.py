"""Which images a report shows: cases of one prompt, seed and size, every method beside dense."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.source import Results, Row, Source
from harness.report.text import by_size, image_name

SELECTION_SEED = 20_260_401
SHARE_OF_ENDS = 2 / 3
"""Of the cases, how many are chosen for a large difference; the others are a random sample."""
AT_RANDOM = "drawn at random"


@dataclass(frozen=True)
class Group:
    """The cells of one size that have images of their own; the first one is compared with.

    ``copies``: sentences about cells whose images are another one's.
    """

    size: str
    cells: Sequence[Mapping[str, Any]]
    copies: Sequence[str]

    @property
    def base(self) -> Mapping[str, Any]:
        """Dense, or without it the first method."""
        return self.cells[0]


@dataclass(frozen=True)
class Case:
    """One prompt and seed at one size: an image a method (``images``: by cell id)."""

    order: int
    images: Mapping[str, Row]
    why: str = ""

    def difference(self, cell: str, base: str, metric: str) -> float | None:
        """The method's score less that of the one compared with."""
        mine, other = self.images.get(cell), self.images.get(base)
        if mine is None or other is None or cell == base:
            return None
        if metric not in mine.scores or metric not in other.scores:
            return None
        return mine.scores[metric] - other.scores[metric]


@dataclass(frozen=True)
class Chosen:
    """The cases of one size that are shown, of how many, and the rule in words."""

    group: Group
    cases: Sequence[Case]
    total: int
    rule: str


def groups(results: Results) -> list[Group]:
    """The sizes of a run with their distinct sets of images."""
    made = []
    for size, cells in by_size(results).items():
        sets: dict[str, list[Mapping[str, Any]]] = {}
        for cell in cells:
            sets.setdefault(cell["same_as"] or cell["id"], []).append(cell)
        # A set that is also dense's is shown as dense; dense comes first.
        ordered = [
            sorted(same, key=lambda cell: cell["method"] != "dense") for same in sets.values()
        ]
        ordered.sort(key=lambda same: same[0]["method"] != "dense")
        copies = [
            f"{other['label']}: same images as {image_name(same[0])}"
            for same in ordered
            for other in same[1:]
        ]
        made.append(Group(size, [same[0] for same in ordered], copies))
    return made


def choose(source: Source, pairs: int) -> list[Chosen]:
    """For every size at most about ``pairs`` pairs of a method's image and dense's."""
    assert source.results is not None
    metrics = [metric for metric in source.results["metrics"] if metric["per_image"]]
    by_cell: dict[str, list[Row]] = {}
    for row in source.rows:
        by_cell.setdefault(row.cell, []).append(row)
    return [
        _choose(group, _cases(group, by_cell), metrics, pairs) for group in groups(source.results)
    ]


def _cases(group: Group, by_cell: Mapping[str, Sequence[Row]]) -> list[Case]:
    """All cases, in the order of the prompts; a prompt that occurs twice stays two cases."""
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for cell in group.cells:
        seen: dict[tuple[str, str], int] = {}
        for row in by_cell.get(cell["id"], ()):
            place = (row.name, row.seed)
            seen[place] = seen.get(place, -1) + 1
            found.setdefault((*place, seen[place]), {})[cell["id"]] = row
    return [Case(order, images) for order, images in enumerate(found.values())]


def _choose(
    group: Group, cases: list[Case], metrics: Sequence[Mapping[str, Any]], pairs: int
) -> Chosen:
    methods = max(1, len(group.cells) - 1)
    wanted = max(1, math.ceil(pairs / methods))
    if wanted >= len(cases):
        return Chosen(group, cases, len(cases), "all of them")
    rng = random.Random(SELECTION_SEED)
    shuffled = rng.sample(cases, len(cases))  # equal differences: neither the first nor the last
    queues = list(_queues(group, shuffled, metrics))
    ends = round(wanted * SHARE_OF_ENDS) if queues else 0
    why: dict[int, str] = {}
    while queues and len(why) < ends:
        queue, reason = queues.pop(0)
        case = next((case for case in queue if case.order not in why), None)
        if case is not None:  # else this end is used up
            why[case.order] = reason
            queues.append((queue, reason))
    rest = [case for case in shuffled if case.order not in why]
    for case in rest[: wanted - len(why)]:
        why[case.order] = AT_RANDOM
    shown = [Case(case.order, case.images, why[case.order]) for case in cases if case.order in why]
    by_ends = sum(reason != AT_RANDOM for reason in why.values())
    return Chosen(group, shown, len(cases), _rule(by_ends, wanted))


def _queues(
    group: Group, cases: Sequence[Case], metrics: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Iterator[Case], str]]:
    """For each metric, method and end the cases from the most extreme one on."""
    base = group.base
    for metric, cell in itertools.product(metrics, group.cells[1:]):
        found = [
            (difference, case)
            for case in cases
            if (difference := case.difference(cell["id"], base["id"], metric["name"])) is not None
        ]
        name = f"{image_name(cell)} less {image_name(base)}, {metric['label']}"
        for end, sign in (("highest", -1), ("lowest", 1)):
            ranked = sorted(found, key=lambda pair: sign * pair[0])
            if ranked and ranked[0][0] != ranked[-1][0]:
                yield iter([case for _, case in ranked]), f"among the {end}: {name}"


def _rule(ends: int, wanted: int) -> str:
    sample = f"a random sample (seed {SELECTION_SEED})"
    if not ends:
        return f"{sample}, not selected by eye"
    return (
        f"{ends} with the highest or lowest difference, in turn for every metric and method, and "
        f"{wanted - ends} as {sample}; none selected by eye, and not representative as a whole"
    )
