"""What a run will take, from a few short calls of the model at hand: ``--dry-run``.

A batch costs a fixed part (text, decoding) and a part for each step. Both follow from two calls of
few steps for every size, drawing and batch length that is still to be drawn; a first call at each
size, which also loads and tunes kernels, is not counted.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from harness.config import Size
from harness.execute import Draws, describe
from harness.methods import Drawing
from harness.plan import Batch, Sampling

log = logging.getLogger(__name__)

FEW, SOME = 2, 5
"""Steps of the two calls; a run of no more steps than that is timed as it is."""

MakePainter = Callable[[Sampling], Draws]
Kind = tuple[Size, Drawing, int]


@dataclass(frozen=True)
class Estimate:
    """Seconds that the missing batches take, by (size, drawing, images a batch), and in all."""

    seconds: float
    batch_seconds: dict[Kind, float]

    @property
    def hours(self) -> float:
        """In hours."""
        return self.seconds / 3600


def estimate(todo: Iterable[Batch], sampling: Sampling, make_painter: MakePainter) -> Estimate:
    """Probe every kind of batch among ``todo`` once; scaling stored images is left out."""
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
        if batch.size not in warm:
            warm.add(batch.size)
            make_painter(replace(sampling, steps=min(FEW, sampling.steps))).draw(batch)
        each[kind] = _batch_seconds(batch, sampling, make_painter)
        log.info("Probed %s: %.2f s for %d images", describe(batch), each[kind], kind[2])
    return Estimate(sum(each[kind] * count for kind, count in counts.items()), each)


def _batch_seconds(batch: Batch, sampling: Sampling, make_painter: MakePainter) -> float:
    def timed(steps: int) -> float:
        painter = make_painter(replace(sampling, steps=steps))
        started = time.perf_counter()
        painter.draw(batch)
        return time.perf_counter() - started

    if sampling.steps <= SOME:
        return timed(sampling.steps)
    few, some = timed(FEW), timed(SOME)
    a_step = max(0.0, (some - few) / (SOME - FEW))
    return some + (sampling.steps - SOME) * a_step


def estimate_line(estimated: Estimate, device: str) -> str:
    """Such as ``Estimated from a probe: 1.2 GPU hours``."""
    unit = "GPU hours" if device != "cpu" else "hours on this CPU"
    minutes = f" ({estimated.seconds / 60:.1f} minutes)" if estimated.hours < 1 else ""
    return (
        f"Estimated from a probe of {len(estimated.batch_seconds)} kinds of batches: "
        f"{estimated.hours:.3g} {unit}{minutes}."
    )
