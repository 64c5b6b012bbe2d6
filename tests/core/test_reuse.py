"""Delta reuse: when the dense pass is made, and what stands in for it."""

from __future__ import annotations

import pytest
import torch

from crdiff_ext.amplify import Amplifier, Place, Window
from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import make_plan
from crdiff_ext.reuse import Deltas
from crdiff_ext.settings import Ratios
from tests.core.tiny import TinyUNet


class Model:
    """Passes whose outputs depend on level and key; it counts the dense ones by key."""

    def __init__(self, amplification="reuse-2", **options):
        self.amplifier = Amplifier(1.5, amplification=amplification, **options)
        self.dense_at = []

    def call(self, level, key="a", shape=(2,), **place):
        def dense():
            self.dense_at.append((level, key))
            return torch.full(shape, level * 2)

        # The pruned pass is level + 1 above the dense one.
        output = self.amplifier(
            dense,
            lambda: torch.full(shape, level * 3 + 1.0),
            Place(level=level, key=key, **place),
        )
        return output[0].item()


@pytest.mark.parametrize("every", [2, 3, 4])
def test_the_dense_pass_runs_at_every_nth_step(every):
    model = Model(f"reuse-{every}")
    levels = [10.0 - step for step in range(9)]
    values = [model.call(level) for level in levels]
    assert [level for level, _ in model.dense_at] == levels[::every]
    for step, value in enumerate(values):
        held = levels[step - step % every]  # the level that the difference is of
        pruned = levels[step] * 3 + 1
        assert value == pytest.approx(pruned + 0.5 * (held + 1))


def test_all_calls_at_one_level_are_one_step():
    model = Model()
    for level in (5.0, 4.0, 4.0, 3.0, 3.0, 2.0):  # as Heun's method calls
        model.call(level)
    assert [level for level, _ in model.dense_at] == [5.0, 3.0, 3.0]


def test_calls_of_one_step_are_told_apart_by_their_key():
    model = Model()
    for level in (5.0, 4.0):
        model.call(level, "cond")
        model.call(level, "uncond")
    model.call(4.0, "only now")
    assert model.dense_at == [(5.0, "cond"), (5.0, "uncond"), (4.0, "only now")]


def test_a_level_that_differs_by_rounding_is_the_same_step():
    model = Model("reuse-3")
    for level in (8.0, 4.0, 4.000002, 2.0, 1.0, 1.0000005):
        model.call(level)
    assert [level for level, _ in model.dense_at] == [8.0, 1.0, 1.0000005]


def test_a_key_of_odd_steps_only_is_made_anew_too():
    model = Model("reuse-2")
    for step in range(8):  # as NGMS calls: uncond is skipped in odd steps
        model.call(8.0 - step, "both" if step % 2 == 0 else "cond alone")
    assert [key for _, key in model.dense_at].count("cond alone") == 4
    model = Model("reuse-4")
    for step in range(8):
        model.call(8.0 - step, "both" if step % 2 == 0 else "cond alone")
    assert [level for level, key in model.dense_at if key == "cond alone"] == [7.0, 3.0]


def test_a_rising_level_begins_anew():
    model = Model("reuse-4")
    for level in (5.0, 4.0, 3.0, 5.0, 4.0):
        model.call(level)
    assert [level for level, _ in model.dense_at] == [5.0, 5.0]


def test_freed_differences_are_made_again():
    model = Model("reuse-4")
    model.call(5.0)
    model.amplifier.free()
    model.call(4.0)
    assert len(model.dense_at) == 2


def test_unsettled_weights_make_a_dense_step():
    model = Model("reuse-4")
    model.call(5.0)
    model.call(4.0, settled=False)
    assert len(model.dense_at) == 2


def test_steps_outside_the_window_are_not_counted():
    model = Model("reuse-2", window=Window(0.5, 1.0))
    for step in range(8):
        model.call(8.0 - step, fraction=step / 8)
    # dense alone outside; inside, at every second step
    assert [level for level, _ in model.dense_at] == [8.0, 7.0, 6.0, 5.0, 4.0, 2.0]


def test_every_one_is_exact():
    torch.manual_seed(0)
    deltas = Deltas(1)
    for level in (3.0, 2.0, 1.0):
        assert deltas.at(level, "a") is None  # always due
        deltas.keep("a", torch.ones(2))
    exact, one = Model("exact"), Model("reuse-2")
    one.amplifier._deltas = Deltas(1)
    levels = [7.0, 5.5, 2.0, 0.3]
    assert [one.call(level) for level in levels] == [exact.call(level) for level in levels]
    assert one.dense_at == exact.dense_at


def test_what_it_needs_to_know():
    with pytest.raises(CRDiffError, match="noise level"):
        Deltas(2).at(None, "a")
    model = Model()
    model.call(2.0)
    with pytest.raises(CRDiffError, match="use exact amplification"):
        model.call(1.0, shape=(3,))


def handle_for(amplification):
    unet = TinyUNet()
    plan = make_plan(prunable_parameters(unet), Ratios(0.3, 0.4, 0.5))
    return unet, CRDiff(unet, plan, 1.5, amplification=amplification)


def test_attached_to_a_unet_it_goes_by_timestep_shape_and_text():
    unet, handle = handle_for("reuse-2")
    cond, uncond = torch.ones(1), torch.zeros(1)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with handle.attached():
        for timestep in (900, 800, 700):
            unet(x, torch.tensor(timestep), cond)
            unet(x, timestep, encoder_hidden_states=uncond)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (4, 6)
    with handle.attached():
        unet(x, timestep=600, encoder_hidden_states=cond)  # below the last, but a new schedule
        unet(x[:1], timestep=500, encoder_hidden_states=cond)  # another shape
        unet(x, timestep=500, encoder_hidden_states=cond)
    assert handle.stats.dense_passes == 6


def test_a_constant_difference_is_used_without_error():
    """The UNet does not look at the timestep, so the reused difference is the right one."""
    unet, handle = handle_for("reuse-4")
    exact = CRDiff(unet, handle.plan, 1.5)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    with exact.attached():
        expected = unet(x, 9, None)
    with handle.attached():
        for timestep in (9, 8, 7):
            assert torch.allclose(unet(x, timestep, None), expected, atol=1e-5)
    assert handle.stats.dense_passes == 1
