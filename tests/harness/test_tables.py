"""``crdiff tables``: the paper's numbers and each table's layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.pipelines import load_pipeline
from harness.tables.catalogue import BUILDERS, build, read_paper
from harness.tables.cells import share
from harness.tables.panel import PAPER_HEADS, STAND_IN, STAND_IN_HEADS, Panel
from harness.tables.quantities import (
    Variant,
)

SIZE = Size(64, 64)
REAL = re.compile(r"\b(FID|CLIP|ImageReward|IR|PickScore|Aesthetic)\b", re.IGNORECASE)
MAIN = Panel(PAPER_HEADS, PAPER_HEADS[2], True, (SIZE, Size(96, 128)), Size(128, 128))
STAND = Panel(STAND_IN_HEADS, STAND_IN_HEADS[2], False, MAIN.unseen, MAIN.native, STAND_IN)


def test_the_papers_tables_agree_with_each_other() -> None:
    """What the paper prints twice is here twice, and alike."""
    paper = read_paper()
    rows = {(r["model"], r["size"]): r for key in ("1", "2") for r in paper[key]["rows"]}
    assert len(rows) == 12
    sdxl = rows["SDXL", "512x512"]
    five = {row["metric"]: row["values"] for row in paper["5"]["rows"]}
    eight = {row["method"]: row for row in paper["fig8"]["rows"]}
    for metric in ("fid", "clip", "image_reward", "pick_score", "aesthetic"):
        assert five[metric][0] == sdxl[metric][1] == eight["crdiff"][metric]
        assert eight["dense"][metric] == sdxl[metric][0] == paper["fig2a"]["paper_at_zero"][metric]
    assert sum(five["best_share"]) == pytest.approx(100)
    for row in paper["7a"]["rows"]:
        place = rows[row["model"], row["size"]]
        assert row["blockwise_image_reward"] == place["image_reward"][1]
        assert row["uniform_image_reward"] < row["blockwise_image_reward"]


@pytest.mark.parametrize("key", list(BUILDERS))
def test_no_stand_in_under_a_real_metrics_name(key: str) -> None:
    for table in build(key, STAND):
        texts = [table.title, *table.heads, *table.columns, *table.notes]
        texts += [label for row in table.rows for label in row.labels]
        texts += [label for row in table.rows for e in row.entries if e for label, _ in e.more]
        assert [text for text in texts if REAL.search(text)] == []
        assert table.block == STAND_IN
        assert all(e.paper is None for row in table.rows for e in row.entries if e)
    for table in build(key, MAIN):
        metrics = {getattr(quantity, "metric", "") for quantity in table.quantities()}
        assert not [name for name in metrics if "embedded" in name or "caption" in name]


@pytest.mark.parametrize("key", ["1", "5", "fig2a", "fig8"])
def test_the_papers_notes_stand_below_its_own_rows_only(key: str) -> None:
    """They speak of the paper's numbers, which a table of the embedded model alone has not."""
    for table in build(key, MAIN):
        values = [e.paper for row in table.rows for e in row.entries if e]
        assert bool(table.notes) == any(value is not None for value in values)


def test_figure_2a_prunes_alone_and_7as_uniform_is_amplified() -> None:
    figure = build("fig2a", MAIN)[0]
    cells = [
        entry.quantity.cells[0]
        for row in figure.rows
        for entry in row.entries[:1]
        if entry and entry.quantity
    ]
    assert [cell.variant.name for cell in cells[:3]] == ["dense", "pruned at 0.1", "pruned at 0.2"]
    uniform = build("7a", MAIN)[0].rows[0].entries[1]
    assert uniform
    assert uniform.quantity
    assert uniform.quantity.cells[0].variant == Variant("crdiff", "0.124", 1.5)


def test_the_same_share_prunes_as_many_weights(tiny_model: Path) -> None:
    loaded = load_pipeline(tiny_model)
    ratios = Ratios(0.2, 0.5, 0.4)
    totals = make_plan(prunable_parameters(loaded.pipe.unet), ratios).totals
    pruned = sum(ratios.as_dict()[group] * totals[group] for group in totals)
    assert share(loaded, ratios) == pytest.approx(pruned / sum(totals.values()))
    assert 0.2 < share(loaded, ratios) < 0.5
