"""Every criterion through the painter: sparsity, repeatability, and a model left as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from crdiff_ext.blocks import prunable_layers, prunable_parameters
from crdiff_ext.pruning import by_pool, make_plan, report
from crdiff_ext.settings import Ratios
from harness.criteria.calibrate import hessians
from harness.criteria.choose import choose_weights, in_order
from harness.criteria.obs import PACKAGES
from harness.criteria.replaced import ReplacedWeights
from harness.criteria.settings import CRITERIA, Criterion
from harness.generate import Painter
from harness.methods import Drawing
from harness.plan import Batch, Item
from harness.prompts import Prompt
from tests.criteria.conftest import SAMPLING, SIZE

RATIOS = Ratios(0.437, 0.31, 0.45)
PROMPTS = ("a green cross", "two blue squares")
ITEMS = (Item(0, Prompt("0", "a red circle"), 1, {}),)
BY_MAGNITUDE = Drawing("amplified", RATIOS, 1.5)


def by(name: str) -> Criterion:
    return Criterion(name, 11, () if name == "random" else PROMPTS)


def pixels(painter: Painter, drawing: Drawing) -> np.ndarray:
    return np.asarray(painter.draw(Batch(SIZE, drawing, ITEMS))[0][0])


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_is_exact_repeatable_and_leaves_nothing_behind(pipe: Any, name: str) -> None:
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    objects = [id(layer.module.weight) for layer in prunable_layers(pipe.unet)]
    drawing = replace(BY_MAGNITUDE, criterion=by(name))
    painter = Painter(pipe, SAMPLING)
    amplified = pixels(painter, drawing)
    weights = painter.chosen(drawing, SIZE).weights

    all_weights = prunable_parameters(pipe.unet)
    zeros = {one: int((weight == 0).sum()) for one, weight in weights.items()}
    for group, members in ((pool.name, pool.members) for pool in by_pool(all_weights)):
        total = sum(weight.tensor.numel() for weight in members)
        if name != "random":
            asked = int(total * RATIOS.as_dict()[group])
            assert sum(zeros[weight.canonical] for weight in members) == asked
    if name == "random":  # as the magnitude, which takes ties together
        assert zeros == report(all_weights, make_plan(all_weights, RATIOS)).pruned_per_layer

    pruned = pixels(painter, replace(drawing, k=1.0))
    assert not np.array_equal(amplified, pruned)
    again = Painter(pipe, SAMPLING)  # calibrates anew
    assert np.array_equal(pixels(again, replace(drawing, k=1.0)), pruned)
    assert np.array_equal(pixels(again, drawing), amplified)

    assert not np.array_equal(amplified, pixels(painter, BY_MAGNITUDE))
    after = pipe.unet.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [id(layer.module.weight) for layer in prunable_layers(pipe.unet)] == objects
    assert "forward" not in pipe.unet.__dict__


def test_magnitude_as_a_criterion_is_crdiff(painter: Painter) -> None:
    """The same pixels by the core's own passes and by replaced weights."""
    expected = pixels(painter, BY_MAGNITUDE)
    choice = choose_weights(painter.calibration(SIZE), RATIOS, None)
    assert choice.calibration_seconds == 0
    with ReplacedWeights(painter.pipe.unet, choice.weights, 1.5).attached():
        assert np.array_equal(pixels(painter, Drawing("dense")), expected)


def test_weights_are_chosen_once_for_both_k_and_anew_for_another_size(
    painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(
        painter, "calibration", lambda size, told: sizes.append(size) or _no_run(painter)
    )
    drawing = replace(BY_MAGNITUDE, criterion=by("random"))
    for k in (1.0, 1.5, 2.0):
        painter.chosen(replace(drawing, k=k), SIZE)
    assert sizes == [SIZE]
    painter.chosen(drawing, SIZE._replace(height=128))
    painter.chosen(replace(drawing, ratios=Ratios(0.1, 0.1, 0.1)), SIZE)
    assert len(sizes) == 3


def _no_run(painter: Painter) -> Any:
    return Painter.calibration(painter, SIZE)


def test_obs_reconstructs_outputs_better_than_magnitudes_of_the_same_number(
    painter: Painter,
) -> None:
    """||WX - W'X||^2 on the calibration inputs themselves, in every layer of the first package."""
    run, criterion = painter.calibration(SIZE), by("obs-diff")
    units = in_order(prunable_layers(run.unet))
    units = units[: len(units) // PACKAGES]
    found = hessians([unit[0] for unit in units], run, criterion)
    weights = choose_weights(run, RATIOS, criterion).weights
    for unit in units:
        for layer in unit:
            dense, hessian = layer.module.weight.detach(), found[unit[0].canonical].double()
            count = int((weights[layer.canonical] == 0).sum())
            magnitude = dense.flatten().clone()
            magnitude[dense.abs().flatten().argsort()[:count]] = 0

            def loss(other: torch.Tensor, dense=dense, hessian=hessian) -> float:
                change = (other.view_as(dense) - dense).double()
                return float(((change @ hessian) * change).sum())

            assert loss(weights[layer.canonical]) < loss(magnitude)


def test_layers_come_in_the_order_in_which_the_unet_runs_them(painter: Painter) -> None:
    run, seen = painter.calibration(SIZE), []
    layers = prunable_layers(run.unet)
    hooks = [
        layer.module.register_forward_pre_hook(lambda *_, name=layer.canonical: seen.append(name))
        for layer in layers
    ]
    run.draw("a red circle", 0, lambda _pipe, _step, _time, values: values)
    for hook in hooks:
        hook.remove()
    units = in_order(layers)
    expected = list(dict.fromkeys(seen))
    assert [layer.canonical for unit in units for layer in unit] == expected
    assert {len(unit) for unit in units} == {1, 3}
