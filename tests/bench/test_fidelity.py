"""The fidelity measurement, small: what it compares, and that its zeros are zeros."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios
from harness.bench.fidelity import Fidelity, FidelityConfig, psnrs
from harness.bench.fidelity_plots import plots
from harness.bench.fidelity_text import markdown
from harness.bench.variants import MODES, VariantPainter, cost_of, drawing_of
from harness.cli import main
from harness.config import Size
from harness.plan import Batch

STEPS = 4
MODES_HERE = ("exact", "folded", "reuse-2", "pruned", "first-half", "cond-only")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    torch.set_num_threads(1)
    config = FidelityConfig(Size(32, 32), 8, (0.3,), MODES_HERE, steps=STEPS)
    made = Fidelity(config, tmp_path_factory.mktemp("fidelity"))
    return made.measure()


def test_rows_and_intervals(result):
    rows = {row["mode"]: row for row in result["rows"]}
    assert set(rows) == {"dense", *MODES_HERE, "native-resize"}
    assert "vs_exact" not in rows["exact"]
    assert rows["dense"]["vs_dense"] is None
    for mode in ("folded", "reuse-2", "pruned"):
        exact = rows[mode]["vs_exact"]
        # closer to exact than dense is, and not the same
        assert exact["psnr_median_of_dense"] < exact["psnr_median"] < 90
        assert exact["feature_distance"] < exact["feature_distance_of_dense"]
        assert exact["reward"]["low"] <= exact["reward"]["estimate"] <= exact["reward"]["high"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_errors_along_the_trajectory(result):
    (steps,) = result["steps_relative_error"]
    modes = steps["modes"]
    assert {len(errors) for errors in modes.values()} == {result["steps"]}
    # the dense pass is made at every second step: exact there
    assert modes["reuse-2"][::2] == [0.0] * len(modes["reuse-2"][::2])
    assert all(error > 0 for error in modes["reuse-2"][1::2])
    # by algebra pruned-only is a third of the correction away, at k = 1.5
    for pruned, correction in zip(modes["pruned"], steps["correction"], strict=True):
        assert pruned == pytest.approx(correction / 3, rel=0.01)
    assert all(0 < f < p for f, p in zip(modes["folded"], modes["pruned"], strict=True))


@pytest.mark.parametrize(("mode", "acting"), [("first-half", range(2)), ("last-half", range(2, 4))])
def test_half_a_window_is_dense_outside(mode, acting, tmp_path):
    made = Fidelity(FidelityConfig(Size(32, 32), 8, (0.3,), ("exact", mode), steps=STEPS), tmp_path)
    painter = VariantPainter(made.experiment.loaded.pipe, made.experiment.sampling)
    drawing = drawing_of(mode, Ratios(0.3, 0.3, 0.3), 1.5)
    items = made.experiment.plan.items(made.cells[mode, 0.3])
    pruned = []
    handle = painter._handle(drawing)._handle
    unet = made.experiment.loaded.pipe.unet
    unet.register_forward_pre_hook(lambda *_: pruned.append(handle.stats.pruned_passes))
    painter.draw(Batch(Size(32, 32), drawing, tuple(items)))
    pruned.append(handle.stats.pruned_passes)
    made_at = [step for step in range(STEPS) if pruned[step + 1] > pruned[step]]
    assert made_at == list(acting)
    assert handle.stats.dense_passes == STEPS


def test_tables(result):
    text = markdown(result)
    assert "8 held-out captions" in text
    assert "| folded | 1.00 |" in text
    assert text.count("| cond-only |") == 2


def test_plots(result):
    made = plots(result)
    assert set(made) == {"closeness-0.3.svg", "pareto-0.3.svg"}
    for picture in made.values():
        names = " ".join(ElementTree.fromstring(picture).itertext())
        assert all(mode in names for mode in ("folded", "reuse-2", "pruned"))
    assert "native-resize" in made["pareto-0.3.svg"]


def test_psnr():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    assert psnrs(black, grey).tolist() == [0.0, 0.0]
    assert np.isinf(psnrs(black, black)).all()


def test_variants_have_keys_of_their_own():
    ratios = Ratios(0.3, 0.3, 0.3)
    keys = [json.dumps(drawing_of(mode, ratios, 1.5).key_fields()) for mode in MODES]
    assert len(set(keys)) == len(MODES)
    # exact is what a run draws: no field more than ever
    assert drawing_of("exact", ratios, 1.5).key_fields() == {
        "kind": "amplified",
        "ratios": ratios.as_dict(),
        "k": 1.5,
    }
    assert [cost_of(mode, 1.5) for mode in ("exact", "folded", "reuse-4", "cond-only")] == [
        2.0,
        1.0,
        1.25,
        1.5,
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modes": ("exact", "fast")}, "mode 'fast' is not known"),
        ({"modes": ("folded",)}, "must include exact"),
        ({"ratios": (0.0,)}, "ratios above 0"),
    ],
)
def test_what_is_refused(options, said):
    with pytest.raises(CRDiffError, match=said):
        FidelityConfig(Size(32, 32), **options)


def test_the_command_refuses_ratios_that_are_no_numbers(capsys):
    assert main(["bench", "fidelity", "--ratios", "a,b"]) == 2
    assert "--ratios 'a,b' are not understood" in capsys.readouterr().err
