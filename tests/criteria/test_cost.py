"""The passes that a dry run counts for calibration, against those that calibration makes."""

from __future__ import annotations

from typing import Any

import pytest

from crdiff_ext.settings import Ratios
from harness.criteria.calibrate import TIMESTEPS, Run
from harness.criteria.choose import choose_weights
from harness.criteria.cost import BACKWARD, calibration_passes
from harness.criteria.settings import Criterion


@pytest.mark.parametrize("name", ["wanda", "taylor", "obs-diff"])
def test_passes_are_those_of_a_real_calibration(pipe: Any, run: Run, name: str) -> None:
    criterion = Criterion(name, 0, ("a cat", "a dog"))
    shapes: list[int] = []

    def count(_module: Any, args: Any, kwargs: Any) -> None:
        shapes.append(len(args[0] if args else kwargs["sample"]))

    handle = pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        choose_weights(run, Ratios(0.3, 0.2, 0.4), criterion)
    finally:
        handle.remove()
    guided, alone = shapes.count(2), shapes.count(1)  # a loss is taken without guidance
    assert guided + alone == len(shapes)
    assert alone == (2 * TIMESTEPS if name == "taylor" else 0)
    expected = guided + alone * (1 + BACKWARD) / 2
    assert calibration_passes(criterion, run.steps, guided=True) == expected
