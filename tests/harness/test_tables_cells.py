"""What of a table's variants is drawn, and what is "not available" and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness.config import RunConfig, Size
from harness.pipelines import LoadedPipeline, load_pipeline
from harness.tables.cells import make_cells
from harness.tables.quantities import CRDIFF, DENSE, PRUNED, SAME_SHARE, Variant, Where

SIZE = Size(64, 64)
SAME = Variant("crdiff", SAME_SHARE)
BY_HAND = Variant("crdiff", "0.3", 1.5)
SWEPT = Variant("crdiff", k=0.0)
SOME = Ratios(0.3, 0.2, 0.4)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedPipeline:
    return load_pipeline(tiny_model)


def made(loaded: LoadedPipeline, out: Path, presets: list[Preset], *variants: Variant):
    """Drawn variants with the kind of drawing, and reasons of the others."""
    config = RunConfig(model="tiny", sizes=(SIZE,), out=out)
    wanted = [Where("tiny", SIZE, variant) for variant in variants]
    cells, absent = make_cells(wanted, config, loaded, presets)
    return (
        {where.variant: cell.drawing.kind for where, cell in cells.items()},
        {where.variant: reason for where, reason in absent.items()},
    )


@pytest.mark.parametrize(
    ("ratios", "k", "said", "refused"),
    [
        (None, 1.5, "no stored ratios", {CRDIFF, PRUNED, SAME}),
        (Ratios(0, 0, 0), 1.5, "the stored ratios of 64x64 are 0 (made)", {CRDIFF, PRUNED, SAME}),
        (SOME, 0.0, "k is 0: one dense pass", {CRDIFF, PRUNED, SAME}),
        (SOME, 1.5, "", set()),
    ],
)
def test_dense_is_not_drawn_under_another_name(
    loaded: LoadedPipeline,
    tmp_path: Path,
    ratios: Ratios | None,
    k: float,
    said: str,
    refused: set[Variant],
) -> None:
    presets = []
    if ratios is not None:
        presets = [Preset(loaded.family.name, *SIZE, ratios, source="made", model="made", k=k)]
    drawn, absent = made(loaded, tmp_path, presets, DENSE, CRDIFF, PRUNED, SAME, BY_HAND, SWEPT)
    assert set(absent) == refused
    for reason in absent.values():
        assert reason.startswith("not available: ")
        assert said in reason
    assert drawn.pop(DENSE) == drawn.pop(SWEPT) == "dense"  # k = 0 was asked for
    assert set(drawn.values()) == {"amplified"}
    assert set(drawn) == {CRDIFF, PRUNED, SAME, BY_HAND} - refused
