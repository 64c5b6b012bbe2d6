"""What stands in a table: means, paired differences and shares, from the scores of drawn cells.

Every quantity of single images is first averaged over a prompt's seeds, so that prompts are the
units that intervals resample: seeds of one prompt are a cluster, never counted as new prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.config import Size
from harness.stats import Array, Interval, mean_interval

STORED = "stored"
SAME_SHARE = "same-share"
"""One ratio for all groups that prunes as many weights as the stored ratios do."""


class NotRun(Exception):
    """A value that is not to be had, with the reason as the table prints it."""


@dataclass(frozen=True)
class Variant:
    """A registered method with its ratios (``stored``, ``same-share`` or as text) and k."""

    method: str
    ratios: str = STORED
    k: float | None = None

    @property
    def name(self) -> str:
        """Such as ``crdiff at 0.288, k = 2``: unique, and for people."""
        ratios = "" if self.ratios == STORED else f" at {self.ratios}"
        return f"{self.method}{ratios}{'' if self.k is None else f', k = {self.k:g}'}"


DENSE = Variant("dense")
PRUNED = Variant("pruned")
CRDIFF = Variant("crdiff")


@dataclass(frozen=True)
class Where:
    """One cell of one model: what the images of a table's entry are."""

    model: str
    size: Size
    variant: Variant


@dataclass(frozen=True)
class Ours:
    """A value of ours: how many prompts it is from, and its interval where there is one.

    ``reason`` says why there is none. ``text``: what is not a number, such as ratios.
    """

    value: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    text: str | None = None

    @classmethod
    def of(cls, interval: Interval) -> Ours:
        """From an interval."""
        return cls(interval.estimate, interval.n, interval.low, interval.high)


class Book(Protocol):
    """Where quantities look up what was measured; each may raise :class:`NotRun`."""

    def prompts(self, where: Where, metric: str) -> Array:
        """Scores a prompt, float64 [n], averaged over seeds."""
        ...

    def images(self, where: Where, metric: str) -> Array:
        """Scores an image, float64 [seeds, n]."""
        ...

    def of_set(self, where: Where, metric: str) -> Ours:
        """The score of a cell's images as a set."""
        ...

    def of_set_less_dense(self, where: Where, metric: str) -> Ours:
        """Its paired difference to dense."""
        ...

    def is_per_image(self, metric: str) -> bool:
        """Whether the metric scores single images."""
        ...

    def rises(self, metric: str) -> bool:
        """Whether higher is better."""
        ...

    def seconds(self, where: Where) -> float:
        """Seconds that finding the weights to prune took."""
        ...

    def ratios(self, where: Where) -> str:
        """The ratios that were used, as text."""
        ...


class Quantity(Protocol):
    """Something to be measured, and the cells that it needs."""

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        ...

    def of(self, book: Book) -> Ours:
        """The value. Raises NotRun."""
        ...


def _interval(values: Array) -> Ours:
    if len(values) < 2:
        return Ours(float(values.mean()), len(values))
    return Ours.of(mean_interval(values))


@dataclass(frozen=True)
class Mean:
    """A metric's value of one cell."""

    where: Where
    metric: str

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return (self.where,)

    def of(self, book: Book) -> Ours:
        """Mean over prompts, or the set's score."""
        if not book.is_per_image(self.metric):
            return book.of_set(self.where, self.metric)
        return _interval(book.prompts(self.where, self.metric))


@dataclass(frozen=True)
class Difference:
    """A metric's value of one cell less that of another, paired by prompt."""

    where: Where
    other: Where
    metric: str

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return (self.where, self.other)

    def of(self, book: Book) -> Ours:
        """Mean of the differences; for a set's score only the one to dense is known."""
        if not book.is_per_image(self.metric):
            return book.of_set_less_dense(self.where, self.metric)
        ours = book.prompts(self.where, self.metric)
        return _interval(ours - book.prompts(self.other, self.metric))


@dataclass(frozen=True)
class Improved:
    """Per cent of images that score better than the dense image of the same prompt and seed."""

    where: Where
    dense: Where
    metric: str

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return (self.where, self.dense)

    def of(self, book: Book) -> Ours:
        """A tie is no improvement."""
        sign = 1 if book.rises(self.metric) else -1
        ours, dense = (book.images(where, self.metric) for where in self.cells)
        return _interval(100.0 * (sign * ours > sign * dense).mean(0))


@dataclass(frozen=True)
class BestShare:
    """Per cent of images that score highest among the compared cells; ties are split."""

    where: Where
    among: tuple[Where, ...]
    metric: str

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return self.among

    def of(self, book: Book) -> Ours:
        """Sums to 100 over ``among``."""
        sign = 1 if book.rises(self.metric) else -1
        table = np.stack([sign * book.images(where, self.metric) for where in self.among])
        best = table == table.max(0)
        shares = best / best.sum(0)
        return _interval(100.0 * shares[self.among.index(self.where)].mean(0))


@dataclass(frozen=True)
class Normalised:
    """A cell's place between the worst (0) and the best (1) of those compared, by the means."""

    where: Where
    among: tuple[Where, ...]
    metric: str

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return self.among

    def of(self, book: Book) -> Ours:
        """Over those of ``among`` that were run; larger is better whatever the metric."""
        own = Mean(self.where, self.metric).of(book)
        found = [measured(Mean(where, self.metric), book).value for where in self.among]
        values = [value for value in found if value is not None]
        low, high = min(values), max(values)
        if low == high or own.value is None:
            raise NotRun("not defined: all methods that were run score alike")
        place = (own.value - low) / (high - low)
        return Ours(place if book.rises(self.metric) else 1 - place, own.n)


@dataclass(frozen=True)
class Seconds:
    """How long choosing the weights took, once for a model and its ratios."""

    where: Where

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return (self.where,)

    def of(self, book: Book) -> Ours:
        """Wall time, from the run's own record."""
        return Ours(book.seconds(self.where))


@dataclass(frozen=True)
class Never:
    """What is never run here, and why."""

    reason: str

    @property
    def cells(self) -> tuple[Where, ...]:
        """Nothing has to be drawn."""
        return ()

    def of(self, _: Book) -> Ours:
        """Raises NotRun."""
        raise NotRun(self.reason)


@dataclass(frozen=True)
class UsedRatios:
    """The ratios of a cell, as text."""

    where: Where

    @property
    def cells(self) -> tuple[Where, ...]:
        """What has to be drawn."""
        return (self.where,)

    def of(self, book: Book) -> Ours:
        """Such as ``0.397 / 0.434 / 0.387``."""
        return Ours(text=book.ratios(self.where))


def measured(quantity: Quantity, book: Book) -> Ours:
    """The quantity's value, or why there is none."""
    try:
        return quantity.of(book)
    except NotRun as reason:
        return Ours(reason=str(reason))
