"""What a run will take, from a few short calls of the model at hand: ``--dry-run``.

A batch costs a fixed part (text, decoding) and a part for each pass of the UNet. Both follow from
two calls of few steps for every size, drawing and batch length that is still to be drawn; a first
call at each size, which also loads and tunes kernels, is not counted. A criterion is not calibrated
to be probed: its images take as long as those of CR-Diff's own mask, and its calibration is counted
in passes of a single image (``criteria/cost.py``).
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from crdiff_ext.amplify import FOLDED, reuse_interval
from harness.config import Size
from harness.criteria.cost import calibration_passes, calibrations
from harness.execute import Draws, describe
from harness.methods import DENSE, Drawing
from harness.plan import Batch, Sampling

log = logging.getLogger(__name__)

FEW, SOME = 2, 5
"""Steps of the two calls; a run of no more steps than that is timed as it is."""

MakePainter = Callable[[Sampling], Draws]
Kind = tuple[Size, Drawing, int]


@dataclass(frozen=True)
class Estimate:
    """Seconds that the missing batches take, by (size, drawing, images a batch), and in all.

    ``calibration_seconds``: those of them in which criteria are calibrated.
    """

    seconds: float
    batch_seconds: dict[Kind, float]
    calibration_seconds: float = 0.0

    @property
    def hours(self) -> float:
        """In hours."""
        return self.seconds / 3600


def passes(drawing: Drawing, steps: int) -> int:
    """UNet passes an image; a step has one when dense, folded or at k = 1, otherwise up to two."""
    if drawing.kind != "amplified" or drawing.k == 1 or drawing.amplification == FOLDED:
        return steps
    return steps + math.ceil(steps / reuse_interval(drawing.amplification))


def estimate(todo: Iterable[Batch], sampling: Sampling, make_painter: MakePainter) -> Estimate:
    """Probe every kind of batch among ``todo`` once; scaling stored images is left out."""
    todo = list(todo)
    samples: dict[Kind, Batch] = {}
    counts: Counter[Kind] = Counter()
    for batch in todo:
        if not batch.sources:
            kind = (batch.size, batch.drawing, len(batch.items))
            samples.setdefault(kind, batch)
            counts[kind] += 1
    warm: set[Size] = set()
    each: dict[Kind, float] = {}
    for kind, batch in samples.items():
        probed = replace(batch, drawing=replace(batch.drawing, criterion=None))
        if batch.size not in warm:
            warm.add(batch.size)
            make_painter(replace(sampling, steps=min(FEW, sampling.steps))).draw(probed)
        each[kind] = _batch_seconds(probed, sampling, make_painter)
        log.info("Probed %s: %.2f s for %d images", describe(batch), each[kind], kind[2])
    calibrating = _calibration_seconds(todo, samples, sampling, make_painter)
    drawing = sum(each[kind] * count for kind, count in counts.items())
    return Estimate(drawing + calibrating, each, calibrating)


def _batch_seconds(batch: Batch, sampling: Sampling, make_painter: MakePainter) -> float:
    """Of the whole batch: what the longer call took, and the passes that it has not made."""
    if sampling.steps <= SOME:
        return _timed(batch, replace(sampling, steps=sampling.steps), make_painter)
    some, a_pass = _some_and_a_pass(batch, sampling, make_painter)
    return some + (passes(batch.drawing, sampling.steps) - passes(batch.drawing, SOME)) * a_pass


def _some_and_a_pass(
    batch: Batch, sampling: Sampling, make_painter: MakePainter
) -> tuple[float, float]:
    """(seconds of a call of ``SOME`` steps, seconds that one pass more would take)."""
    few, some = (_timed(batch, replace(sampling, steps=n), make_painter) for n in (FEW, SOME))
    more = passes(batch.drawing, SOME) - passes(batch.drawing, FEW)
    return some, max(0.0, (some - few) / more)


def _timed(batch: Batch, sampling: Sampling, make_painter: MakePainter) -> float:
    painter = make_painter(sampling)
    started = time.perf_counter()
    painter.draw(batch)
    return time.perf_counter() - started


def _calibration_seconds(
    todo: Iterable[Batch],
    samples: dict[Kind, Batch],
    sampling: Sampling,
    make_painter: MakePainter,
) -> float:
    """The criteria's calibrations, from what a pass of one dense image takes at their sizes."""
    a_pass: dict[tuple[Size, Size | None], float] = {}
    total = 0.0
    for size, drawing in calibrations(todo):
        assert drawing.criterion is not None
        place = (size, drawing.told_size)
        if place not in a_pass:
            sample = next(b for (s, d, _), b in samples.items() if (s, d.told_size) == place)
            one = replace(
                sample,
                drawing=replace(DENSE, told_size=drawing.told_size),
                items=sample.items[:1],
            )
            a_pass[place] = _some_and_a_pass(one, sampling, make_painter)[1]
        guided = sampling.guidance > 1
        total += a_pass[place] * calibration_passes(drawing.criterion, sampling.steps, guided)
    return total


def estimate_line(estimated: Estimate, device: str) -> str:
    """Such as ``Estimated from a probe: 1.2 GPU hours``."""
    unit = "GPU hours" if device != "cpu" else "hours on this CPU"
    minutes = f" ({estimated.seconds / 60:.1f} minutes)" if estimated.hours < 1 else ""
    share = estimated.calibration_seconds / estimated.seconds if estimated.seconds else 0.0
    calibrating = f", {share:.0%} of it to calibrate criteria" if share else ""
    return (
        f"Estimated from a probe of {len(estimated.batch_seconds)} kinds of batches: "
        f"{estimated.hours:.3g} {unit}{minutes}{calibrating}."
    )
