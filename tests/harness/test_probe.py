"""The estimate of a dry run, against a painter whose costs are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from crdiff_ext.settings import Ratios
from harness import probe
from harness.config import Size
from harness.criteria.cost import calibrations
from harness.criteria.settings import Criterion
from harness.methods import DENSE, Drawing
from harness.plan import Batch, Item, Sampling
from harness.prompts import Prompt

SAMPLING = Sampling("0" * 64, 30, 3.0, "", "DDIMScheduler", "1" * 64, "fp32", "cpu", 7, 4)
FIXED, A_STEP, WARMING = 3.0, 0.5, 100.0


class Clock:
    """Time that passes only when something is drawn."""

    now = 0.0
    calls = 0

    def perf_counter(self) -> float:
        return self.now


class Paints:
    """A fixed part, a part a step for each pass, and a slow first call at each size."""

    def __init__(self, clock: Clock, seen: set[Size], sampling: Sampling) -> None:
        self.clock, self.seen, self.sampling = clock, seen, sampling

    def draw(self, batch: Batch) -> tuple[list[Image.Image], float]:
        assert batch.drawing.criterion is None, "a probe calibrates nothing"
        passes = probe.passes(batch.drawing, self.sampling.steps)
        self.clock.now += FIXED + A_STEP * passes
        if batch.size not in self.seen:
            self.clock.now += WARMING
            self.seen.add(batch.size)
        self.clock.calls += 1
        return [], 0.0


def batch(size: Size, drawing: Drawing, images: int, sources: bool = False) -> Batch:
    items = tuple(Item(i, Prompt(str(i), "x"), i, {}) for i in range(images))
    return Batch(size, drawing, items, ("key",) * images if sources else ())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(probe, "time", clock)
    return clock


def test_estimate_is_exact_where_costs_are_linear(clock: Clock) -> None:
    amplified = Drawing("amplified", Ratios(0.1, 0.2, 0.3), 1.5)
    small, large = Size(64, 64), Size(128, 128)
    todo = [
        *[batch(small, DENSE, 4)] * 10,
        batch(small, DENSE, 2),
        *[batch(large, amplified, 4)] * 3,
        batch(large, Drawing("resize"), 4, sources=True),
    ]
    seen: set[Size] = set()
    found = probe.estimate(todo, SAMPLING, lambda sampling: Paints(clock, seen, sampling))
    dense, both = FIXED + 30 * A_STEP, FIXED + 60 * A_STEP
    assert found.seconds == pytest.approx(11 * dense + 3 * both)
    assert clock.calls == 2 + 3 * 2  # a warm-up a size, two calls a kind of batch
    line = probe.estimate_line(found, "cuda:1")
    assert "3 kinds of batches" in line
    assert "GPU hours (5.0 minutes)" in line


def test_few_steps_are_timed_as_they_are(clock: Clock) -> None:
    seen: set[Size] = set()
    sampling = replace(SAMPLING, steps=1)
    found = probe.estimate(
        [batch(Size(64, 64), DENSE, 4)] * 2, sampling, lambda some: Paints(clock, seen, some)
    )
    assert found.seconds == pytest.approx(2 * (FIXED + A_STEP))
    assert "on this CPU" in probe.estimate_line(found, "cpu")


@pytest.mark.parametrize(
    ("amplification", "steps", "passes"),
    [
        ("exact", 30, 60),
        ("folded", 30, 30),
        ("reuse-2", 30, 45),
        ("reuse-3", 31, 42),
        ("reuse-4", 30, 38),
    ],
)
def test_reuse_is_estimated_by_its_passes(
    clock: Clock, amplification: str, steps: int, passes: int
) -> None:
    """2 and 5 steps have another share of dense passes than a whole run: 3 of 5 with reuse-2."""
    drawing = Drawing("amplified", Ratios(0.1, 0.2, 0.3), 1.5, amplification=amplification)
    sampling, seen = replace(SAMPLING, steps=steps), {Size(64, 64)}
    found = probe.estimate(
        [batch(Size(64, 64), drawing, 4)], sampling, lambda some: Paints(clock, seen, some)
    )
    assert found.seconds == pytest.approx(FIXED + A_STEP * passes)


RATIOS = Ratios(0.1, 0.2, 0.3)
WANDA, TAYLOR, OBS = (
    Drawing("amplified", RATIOS, 1.0, criterion=Criterion(name, 0, ("a", "b", "c")))
    for name in ("wanda", "taylor", "obs-diff")
)
RANDOM = Drawing("amplified", RATIOS, 1.0, criterion=Criterion("random"))


def test_calibrations_are_those_that_a_painter_makes() -> None:
    small, large = Size(64, 64), Size(128, 128)
    amplified = replace(WANDA, k=1.5)
    plain = Drawing("amplified", RATIOS, 1.5)
    order = [DENSE, WANDA, WANDA, plain, amplified, RANDOM, amplified, OBS]
    todo = [batch(small, drawing, 2) for drawing in order] + [batch(large, OBS, 2)]
    found = [(size, d.criterion.name) for size, d in calibrations(todo) if d.criterion]
    assert found == [
        (small, "wanda"),
        (small, "wanda"),  # "random" came between: its weights took the place
        (small, "obs-diff"),
        (large, "obs-diff"),
    ]


def test_calibration_is_in_the_estimate(clock: Clock) -> None:
    size = Size(64, 64)
    todo = [batch(size, WANDA, 2), batch(size, TAYLOR, 2), batch(size, OBS, 2)]
    seen = {size}
    found = probe.estimate(todo, SAMPLING, lambda some: Paints(clock, seen, some))
    # 3 prompts of 30 steps; 10 losses, forward and backward, of half a batch; 4 packages of layers
    passes = 3 * 30 + 3 * (30 + 15) + 3 * 30 * 4
    assert found.calibration_seconds == pytest.approx(A_STEP * passes)
    drawn = 3 * (FIXED + 30 * A_STEP)
    assert found.seconds == pytest.approx(drawn + A_STEP * passes)
    assert "of it to calibrate criteria" in probe.estimate_line(found, "cpu")
