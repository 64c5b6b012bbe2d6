"""Rounds in which every mode is measured in turn: seconds of UNet calls and images, peak memory."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from crdiff_ext.weights import free_bytes
from harness.bench.cost_modes import FIRST, Mode
from harness.bench.cost_subject import Images, Subject
from harness.bench.meter import Meter
from harness.config import Size

log = logging.getLogger(__name__)

QUICK_SECONDS = 0.5
"""Calls that take less are repeated up to this long in each round, after one that isn't timed."""
MOST_REPEATS = 25
SPARE_BYTES = 2**29
"""Left alone by modes that are only tried where they fit."""

Item = TypeVar("Item")


@dataclass
class Samples:
    """What was measured of one group of modes: seconds by timestep and round; peaks of round 0."""

    calls: dict[int, list[float]] = field(default_factory=dict)
    setup: list[float] = field(default_factory=list)
    peak: int | None = None
    vram: int | None = None

    def seconds(self, mode: Mode) -> list[float]:
        """Of an average call, for each round."""
        rounds = zip(*(self.calls[timestep] for timestep, _ in mode.calls), strict=True)
        weights = [weight for _, weight in mode.calls]
        return [sum(w * s for w, s in zip(weights, one, strict=True)) for one in rounds]


@dataclass
class Bench:
    """One measurement under way.

    Attributes:
        samples: of UNet calls, by the modes' groups; ``images``: seconds, by the modes' names.
        skipped: a sentence for each group of modes that could not be run.
        activations: bytes that a dense call takes beside the weights.
        repeats: timed calls in a round, their median counts.
    """

    subject: Subject
    meter: Meter
    modes: list[Mode]
    planning: dict[str, dict[str, Any]]
    samples: dict[str, Samples] = field(default_factory=dict)
    images: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    activations: int = 0
    repeats: int = 1

    def prepare(self) -> None:
        """Call densely, to learn how often to repeat calls and what memory one takes."""
        subject, meter = self.subject, self.meter
        meter.reset()
        before = (meter.resident_bytes() or 0, meter.vram_bytes() or 0)
        started = meter.now()
        subject.call(subject.size, FIRST)
        if meter.now() - started < 10 * QUICK_SECONDS:  # the first call is slow
            started = meter.now()
            subject.call(subject.size, FIRST)
        took = meter.now() - started
        after = (meter.peak_bytes() or 0, meter.vram_bytes() or 0)
        self.activations = max(b - a for a, b in zip(before, after, strict=True))
        self.repeats = min(MOST_REPEATS, max(1, round(QUICK_SECONDS / took)))

    def left(self) -> list[Mode]:
        """The modes that are not skipped."""
        return [mode for mode in self.modes if mode.group not in self.skipped]

    def round(self, turn: int) -> None:
        """Measure UNet calls of every group of modes once."""
        groups = {mode.group: mode for mode in self.left()}
        for group, mode in _rotated(list(groups.items()), turn):
            if mode.native and turn and self.repeats == 1:
                continue  # slow, and no rival in cost: one measurement will do
            if reason := self._reason_against(mode):
                self._skip(mode, reason)
                continue
            with self._turn(mode):
                self._one(mode, self.samples.setdefault(group, Samples()), first=turn == 0)

    def image_round(self, images: Images, turn: int) -> None:
        """Measure a whole image of every mode once."""
        for mode in _rotated(self.left(), turn):
            with self._turn(mode), mode.attach(self.subject):
                started = self.meter.now()
                images.draw(self._size(mode))
                self.images.setdefault(mode.name, []).append(self.meter.now() - started)

    def _size(self, mode: Mode) -> Size:
        if mode.native:
            assert self.subject.native is not None
            return self.subject.native
        return self.subject.size

    def _one(self, mode: Mode, samples: Samples, first: bool) -> None:
        """One mode's turn: enter it, call, and in the first round note its peaks."""
        subject, meter = self.subject, self.meter
        size, repeats = self._size(mode), self.repeats
        if first:
            meter.reset()
        started = meter.now()
        with mode.attach(subject):
            samples.setup.append(meter.now() - started)
            taken: dict[int, list[float]] = {timestep: [] for timestep, _ in mode.calls}
            for repeat in range(repeats + (repeats > 1)):
                for timestep, seconds in taken.items():
                    started = meter.now()
                    subject.call(size, timestep)
                    if repeat or repeats == 1:
                        seconds.append(meter.now() - started)
        if repeats == 1:
            log.info("%s: %s s", mode.group, ", ".join(f"{s[0]:.2f}" for s in taken.values()))
        for timestep, seconds in taken.items():
            samples.calls.setdefault(timestep, []).append(statistics.median(seconds))
        if first:
            samples.peak, samples.vram = meter.peak_bytes(), meter.vram_bytes()

    @contextmanager
    def _turn(self, mode: Mode) -> Iterator[None]:
        """A mode's turn; if memory runs out in it, a sentence, and it is left out from now on."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
                raise
            self._skip(mode, f"{mode.name} ran out of memory: it was left out")

    def _skip(self, mode: Mode, reason: str) -> None:
        self.skipped[mode.group] = reason
        log.info("%s", reason)

    def _reason_against(self, mode: Mode) -> str | None:
        """Why a mode can't be run now: no memory for it, or nothing to compare. None: it can."""
        subject = self.subject
        needs = mode.extra_bytes(subject) + self.activations
        if mode.native:
            reason = _no_native(subject)
            if reason is not None or subject.native is None:
                return reason
            needs = self.activations * _area(subject.native) // _area(subject.size)
        free = free_bytes(torch.device(subject.device))
        if mode.name == "dense" or free is None or needs + SPARE_BYTES <= free:
            return None
        return (
            f"{mode.name} needs about {needs / 2**30:.1f} GiB beside the model and "
            f"{free / 2**30:.1f} GiB are free: it was left out"
        )


def _area(size: Size) -> int:
    return size.height * size.width


def _no_native(subject: Subject) -> str | None:
    """Why drawing at the native size is nothing to measure, or None."""
    if subject.native is None:
        return "native-resize was left out: the model's native size is not known"
    if subject.native == subject.size:
        return f"native-resize was left out: {subject.size} is the native size"
    return None


def _rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """The items, begun with another one each turn, so that none is always after the same one."""
    start = turn % len(items) if items else 0
    return [*items[start:], *items[:start]]
