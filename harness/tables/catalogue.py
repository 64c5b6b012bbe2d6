"""The paper's tables, built from its numbers (``harness/paper.json``) and from what may be run.

Every table is built twice where the embedded model runs: with the paper's metrics, and as a block
of its own with that model's stand-ins, which never appear under a real metric's name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config import Size
from harness.locate import read_json
from harness.tables.curves import NONE_GIVEN, curve_table
from harness.tables.layout import Entry, Head, Row, Table
from harness.tables.panel import EMBEDDED, Panel
from harness.tables.quantities import (
    CRDIFF,
    DENSE,
    PRUNED,
    SAME_SHARE,
    BestShare,
    Difference,
    Improved,
    Mean,
    Never,
    Normalised,
    Quantity,
    Seconds,
    UsedRatios,
    Variant,
    Where,
)

PAPER = Path(__file__).parents[1] / "paper.json"
CRITERIA = ("taylor", "wanda", "obs-diff")
LABELS = {
    "dense": "Dense",
    "crdiff": "CR-Diff",
    "pruned": "Magnitude",
    "taylor": "Taylor",
    "wanda": "Wanda",
    "obs-diff": "OBS-Diff",
}


def read_paper() -> dict[str, Any]:
    """The paper's numbers by table."""
    tables: dict[str, Any] = read_json(PAPER)["tables"]
    return tables


def build(key: str, panel: Panel) -> list[Table]:
    """The tables of one key: one, or one for each model where it is about a single model."""
    return BUILDERS[key](key, read_paper()[key], panel)


def _at(row: dict[str, Any], variant: Variant) -> Where:
    return Where(row["model"], Size.parse(row["size"]), variant)


def _table(
    key: str,
    paper: dict[str, Any],
    panel: Panel,
    heads: tuple[str, ...],
    columns: list[str],
    rows: list[Row],
    published: bool = True,
) -> Table:
    """``published``: whether it has the paper's rows, which the paper's notes are about."""
    notes = tuple(paper["notes"]) if panel.paper and published else ()
    return Table(key, paper["title"], heads, tuple(columns), tuple(rows), notes, panel.block)


def _quality(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Tables 1 to 3: dense and CR-Diff in every metric."""
    native = (panel.native,) if panel.native else ()
    sizes = {"1": panel.unseen, "2": native}.get(key, ())
    places = panel.places(paper["rows"], sizes)
    if not places:
        return []
    columns = [f"{head.title} {name}" for head in panel.heads for name in ("Dense", "CR-Diff")]
    rows = []
    for row in places:
        entries: list[Entry | None] = []
        for head in panel.heads:
            values = row.get(head.key, (None, None))
            entries += _pair(row, head, values, head == panel.reward)
        rows.append(Row((row["model"], row["size"]), tuple(entries)))
    return [_table(key, paper, panel, ("Model", "Resolution"), columns, rows)]


def _pair(row: dict[str, Any], head: Head, values: Any, reward: bool) -> list[Entry]:
    dense, ours = _at(row, DENSE), _at(row, CRDIFF)
    more: list[tuple[str, Quantity]] = [
        ("CR-Diff less Dense", Difference(ours, dense, head.metric))
    ]
    if reward:
        more.append(("prompts improved, %", Improved(ours, dense, head.metric)))
    return [
        Entry(values[0], Mean(dense, head.metric), head.decimals),
        Entry(values[1], Mean(ours, head.metric), head.decimals, more=tuple(more)),
    ]


def _amplification(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Table 4: with amplification less without it."""
    head = panel.reward
    sizes = (*((panel.native,) if panel.native else ()), *panel.unseen)
    models = [*(paper["models"] if panel.paper else ()), *([EMBEDDED] if sizes else ())]
    lines = {row["size"]: row["image_reward"] for row in paper["rows"]} if panel.paper else {}
    rows = []
    for size in dict.fromkeys([*lines, *map(str, sizes)]):
        entries: list[Entry | None] = []
        for number, model in enumerate(models):
            known = size in {str(s) for s in sizes} if model == EMBEDDED else size in lines
            place = {"model": model, "size": size}
            value = lines[size][number] if known and model != EMBEDDED else None
            quantity = Difference(_at(place, CRDIFF), _at(place, PRUNED), head.metric)
            entries.append(Entry(value, quantity, head.decimals) if known else None)
        rows.append(Row((size,), tuple(entries)))
    columns = [f"{head.label} improvement, {model}" for model in models]
    return [_table(key, paper, panel, ("Resolution",), columns, rows)] if rows else []


def _coefficient(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Table 5: k, and on how many prompts each k is the best."""
    tables = []
    for model, size, published in panel.stage(paper):
        cells = tuple(Where(model, size, Variant("crdiff", k=k)) for k in paper["k"])
        values = {row["metric"]: row["values"] for row in paper["rows"]} if published else {}
        best = values.get("best_share", (None,) * len(cells))
        label = "IR" if panel.reward.key == "image_reward" else panel.reward.label
        first = [
            Entry(value, BestShare(cell, cells, panel.reward.metric), 2)
            for value, cell in zip(best, cells, strict=True)
        ]
        rows = [Row((f"Best {label} % ↑",), tuple(first))]
        for head in panel.heads:
            known = values.get(head.key, (None,) * len(cells))
            line = [
                Entry(value, Mean(cell, head.metric), head.decimals)
                for value, cell in zip(known, cells, strict=True)
            ]
            rows.append(Row((head.title,), tuple(line)))
        columns = [f"{model} {size}, k = {k:g}" for k in paper["k"]]
        tables.append(_table(key, paper, panel, ("Metric",), columns, rows, published))
    return tables


def _ratios(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Figure 7a: uniform (with k = 1.5, as block-wise) against block-wise ratios."""
    head = panel.reward
    sizes = (*((panel.native,) if panel.native else ()), *panel.unseen)
    rows = []
    for row in panel.places(paper["rows"], sizes):
        ratio = row.get("uniform")
        uniform = _at(row, Variant("crdiff", SAME_SHARE if ratio is None else str(ratio), 1.5))
        blockwise = _at(row, Variant("crdiff", k=1.5))
        less = (("block-wise less uniform", Difference(blockwise, uniform, head.metric)),)
        entries = (
            Entry(None, UsedRatios(uniform), paper_text=None if ratio is None else str(ratio)),
            Entry(row.get("uniform_image_reward"), Mean(uniform, head.metric), head.decimals),
            Entry(None, UsedRatios(blockwise), paper_text=row.get("blockwise")),
            Entry(
                row.get("blockwise_image_reward"),
                Mean(blockwise, head.metric),
                head.decimals,
                more=less,
            ),
        )
        rows.append(Row((row["model"], row["size"]), entries))
    columns = [
        f"{kind} {what}" for kind in ("Uniform", "Block-wise") for what in ("ratio", head.title)
    ]
    return [_table(key, paper, panel, ("Model", "Resolution"), columns, rows)] if rows else []


def _sparsity(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Figure 2a: one ratio for all blocks, pruning alone."""
    tables = []
    for model, size, published in panel.stage(paper):
        rows = []
        for ratio in paper["ratios"]:
            cell = Where(model, size, Variant("pruned", str(ratio)) if ratio else DENSE)
            zero = paper["paper_at_zero"] if published and not ratio else {}
            entries = [
                Entry(zero.get(head.key), Mean(cell, head.metric), head.decimals)
                for head in panel.heads
            ]
            rows.append(Row((model, str(size), f"{ratio:.0%}"), tuple(entries)))
        columns = [head.title for head in panel.heads]
        heads = ("Model", "Resolution", "Sparsity")
        tables.append(_table(key, paper, panel, heads, columns, rows, published))
    return tables


def _criteria(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Figure 8: criteria without and with amplification, and the radar's normalised values."""
    tables = []
    for model, size, published in panel.stage(paper):
        known = {row["method"]: row for row in paper["rows"]} if published else {}
        names = ["dense", "pruned", "crdiff", *(n for c in CRITERIA for n in (c, f"{c}-poa"))]
        cells = {name: Where(model, size, Variant(name)) for name in names}
        drawn = tuple(cells.values())
        rows = []
        for name, cell in cells.items():
            values = known.get(name, {})
            entries: list[Entry | None] = [
                Entry(
                    values.get(head.key),
                    Mean(cell, head.metric),
                    head.decimals,
                    more=(("min–max", Normalised(cell, drawn, head.metric)),),
                )
                for head in panel.heads
            ]
            entries.append(_pass_seconds(name, cell, values))
            rows.append(Row((model, str(size), _criterion_label(name)), tuple(entries)))
        columns = [*(head.title for head in panel.heads), "s per pruning pass"]
        heads = ("Model", "Resolution", "Criterion")
        tables.append(_table(key, paper, panel, heads, columns, rows, published))
    return tables


def _criterion_label(name: str) -> str:
    base = name.removesuffix("-poa")
    return f"{LABELS[base]}{' + POA' if base != name else ''}"


def _pass_seconds(name: str, cell: Where, values: dict[str, Any]) -> Entry | None:
    return None if name == "dense" else Entry(values.get("seconds"), Seconds(cell), 2)


def _search(key: str, paper: dict[str, Any], panel: Panel) -> list[Table]:
    """Figure 7b: the best score so far, of the searches whose reward belongs to this panel."""
    notes = tuple(paper["notes"]) if panel.paper else ()
    found = [curve for curve in panel.curves if curve.is_stand_in == (not panel.paper)]
    if found:
        return [curve_table(paper["title"], notes, found, panel.block)]
    if not panel.paper:
        return []
    row = Row((paper["model"], paper["size"]), (Entry(None, Never(NONE_GIVEN)),))
    heads = ("Model", "Resolution")
    columns = [f"best {panel.reward.label} so far"]
    return [_table(key, paper, panel, heads, columns, [row])]


Builder = Callable[[str, dict[str, Any], Panel], list[Table]]
BUILDERS: dict[str, Builder] = {
    "1": _quality,
    "2": _quality,
    "3": _quality,
    "4": _amplification,
    "5": _coefficient,
    "7a": _ratios,
    "fig2a": _sparsity,
    "fig7b": _search,
    "fig8": _criteria,
}
