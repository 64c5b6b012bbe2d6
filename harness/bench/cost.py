"""What each way to amplify costs: time a UNet call and an image, peak memory, planning.

All modes are measured in turns in one process, and every ratio is to dense in the same round, so
that a busy machine slows both sides alike. Copies are made before the clock starts and are gone
before the next mode begins; making them is told apart, as ``setup_seconds``.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import K_DEFAULT, Ratios
from crdiff_ext.weights import PrunedWeights
from harness.bench.cost_modes import FIRST, Mode, choose_modes
from harness.bench.cost_planning import measure_planning
from harness.bench.cost_rounds import Bench
from harness.bench.cost_subject import Images, open_subject
from harness.bench.meter import Meter
from harness.environment import all_cores, describe

log = logging.getLogger(__name__)

MIB = 2**20


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
