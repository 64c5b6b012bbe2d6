"""What each way to amplify costs: time a UNet call and an image, peak memory, planning.

All modes are measured in turns in one process, and every ratio is to dense in the same round, so
that a busy machine slows both sides alike. Copies are made before the clock starts and are gone
before the next mode begins; making them is told apart, as ``setup_seconds``.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import K_DEFAULT, Ratios
from crdiff_ext.weights import PrunedWeights, free_bytes
from harness.bench.cost_modes import FIRST, Mode, choose_modes
from harness.bench.cost_planning import measure_planning
from harness.bench.cost_subject import Images, Subject, open_subject
from harness.bench.meter import Meter
from harness.config import Size
from harness.environment import all_cores, describe

log = logging.getLogger(__name__)

QUICK_SECONDS = 0.5
"""Calls that take less are repeated up to this long in each round, after one that isn't timed."""
MOST_REPEATS = 25
SPARE_BYTES = 2**29
"""Left alone by modes that are only tried where they fit."""
MIB = 2**20

Item = TypeVar("Item")


@dataclass(frozen=True)
class CostConfig:
    """What to measure. Raises CRDiffError for what can't be."""

    model: str = "embedded"
    modes: tuple[str, ...] = ()
    size: str | None = None
    ratios: str = "0.3"
    rounds: int = 5
    batch: int | None = None
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    images: bool = True

    def __post_init__(self) -> None:
        choose_modes(self.modes)
        Ratios.parse(self.ratios)
        for name in ("rounds", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CRDiffError(f"--{name} is {value}: it must be at least 1")


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
        """Call once densely, decide how often to repeat calls, leave out what doesn't fit."""
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
        self._skip_too_large()

    def left(self) -> list[Mode]:
        """The modes that are not skipped."""
        return [mode for mode in self.modes if mode.group not in self.skipped]

    def round(self, turn: int) -> None:
        """Measure UNet calls of every group of modes once."""
        groups = {mode.group: mode for mode in self.left()}
        for group, mode in _rotated(list(groups.items()), turn):
            if mode.native and turn and self.repeats == 1:
                continue  # slow, and no rival in cost: one measurement will do
            with self._unless_too_large(mode):
                self._one(mode, self.samples.setdefault(group, Samples()), first=turn == 0)

    def image_round(self, images: Images, turn: int) -> None:
        """Measure a whole image of every mode once."""
        for mode in _rotated(self.left(), turn):
            with self._unless_too_large(mode), mode.attach(self.subject):
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
    def _unless_too_large(self, mode: Mode) -> Iterator[None]:
        """Run a mode's turn, or say in a sentence why it is left out from now on."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            text = str(error).lower()
            if not isinstance(error, MemoryError) and "memory" not in text:
                raise
            self.skipped[mode.group] = f"{mode.name} ran out of memory: it was left out"
            log.info("%s", self.skipped[mode.group])

    def _skip_too_large(self) -> None:
        """Leave out what can't be run here: no memory for it, or nothing to compare."""
        subject = self.subject
        free = free_bytes(torch.device(subject.device))
        for mode in self.modes:
            reason = None
            needs = mode.extra_bytes(subject) + self.activations
            if mode.native:
                reason = _no_native(subject)
                if reason is None and subject.native is not None:
                    needs = self.activations * _area(subject.native) // _area(subject.size)
            if reason is None and free is not None and needs + SPARE_BYTES > free:
                reason = (
                    f"{mode.name} needs about {needs / 2**30:.1f} GiB beside the model and "
                    f"{free / 2**30:.1f} GiB are free: it was left out"
                )
            if reason is not None:
                self.skipped[mode.group] = reason
                log.info("%s", reason)


def measure(
    config: CostConfig, keep: Callable[[dict[str, Any]], object] = lambda _: None
) -> dict[str, Any]:
    """Measure; returns plain JSON values, ``modes`` among them. Raises CRDiffError.

    ``keep`` is given the result so far after each round, so that a run cut short is not lost.
    """
    with all_cores() as threads:
        torch.set_num_threads(config.threads or threads)
        subject = open_subject(config.model, config.size, config.batch, config.device, config.dtype)
        meter = Meter(config.device)
        modes = choose_modes(config.modes)
        theirs = any(mode.name == "two-unets" for mode in modes)
        ratios = Ratios.parse(config.ratios)
        bench = Bench(subject, meter, modes, measure_planning(subject, ratios, meter, theirs))
        bench.prepare()
        for turn in range(config.rounds):
            bench.round(turn)
            log.info("UNet calls: round %d of %d done", turn + 1, config.rounds)
            keep(_result(bench))
        if config.images and subject.loaded is not None:
            images = Images(subject)
            images.draw(subject.size)  # not counted: encodes the prompt, too
            for turn in range(config.rounds):
                bench.image_round(images, turn)
                log.info("images: round %d of %d done", turn + 1, config.rounds)
        return _result(bench)


def _result(bench: Bench) -> dict[str, Any]:
    subject, meter = bench.subject, bench.meter
    assert subject.plan is not None
    return {
        "model": subject.name,
        "size": str(subject.size),
        "native": str(subject.native) if subject.native else None,
        "batch": subject.batch,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "ratios": subject.plan.ratios.as_dict(),
        "k": K_DEFAULT,
        "rounds": len(bench.samples["dense"].setup),
        "clock": meter.clock,
        "memory": meter.memory,
        "auto_memory": PrunedWeights(subject.unet, subject.plan).memory,
        "modes": [_entry(bench, mode) for mode in bench.left()],
        "skipped": [
            {"mode": mode.name, "reason": bench.skipped[mode.group]}
            for mode in bench.modes
            if mode.group in bench.skipped
        ],
        "planning": bench.planning,
        "environment": describe(subject.device),
    }


def _entry(bench: Bench, mode: Mode) -> dict[str, Any]:
    """One mode's numbers; ratios are to dense in the same round."""
    own, dense = bench.samples[mode.group], bench.samples["dense"]
    seconds = own.seconds(mode)
    ratios = _spread(_ratios(seconds, dense.calls[FIRST]))
    entry: dict[str, Any] = {
        "mode": mode.name,
        "what": mode.what,
        "time_ratio": ratios["median"],
        "time_ratio_spread": ratios,
        "call_seconds": statistics.median(seconds),
        "peak_mb": _mib(own.peak),
        "vram_mb": _mib(own.vram),
        "copies_mb": mode.extra_bytes(bench.subject) / MIB,
        "setup_seconds": statistics.median(own.setup),
        "planning_seconds": None,
        "image_seconds": None,
        "image_ratio": None,
        "image_ratio_spread": None,
    }
    if mode.name not in ("dense", "native-resize"):
        way = "kthvalue" if mode.name == "two-unets" else "counting"
        entry["planning_seconds"] = bench.planning[way]["seconds"]
    images = bench.images
    if images.get(mode.name):
        spread = _spread(_ratios(images[mode.name], images["dense"]))
        entry["image_seconds"] = statistics.median(images[mode.name])
        entry["image_ratio"] = spread["median"]
        entry["image_ratio_spread"] = spread
    return entry


def _ratios(seconds: list[float], dense: list[float]) -> list[float]:
    """Round by round; a mode measured in the first round only has one ratio."""
    return [s / d for s, d in zip(seconds, dense, strict=False)]


def _spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles, extremes and number of values."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {
        "median": middle,
        "q1": low,
        "q3": high,
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


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
