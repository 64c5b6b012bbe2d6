"""Tables as Markdown (also what is printed), as long-form CSV, and as versioned JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

from harness.report.text import number, signed
from harness.tables.layout import Filled, Measured, Row
from harness.tables.quantities import Ours

Line = tuple[str, list[str]]
SHARE_DECIMALS = 3
"""Of what has no unit, such as a place between the worst and the best."""


def markdown(filled: Filled) -> str:
    """A title, the table with up to four lines and more in each row, then its notes."""
    table = filled.table
    title = f"{table.title} [{table.block}]" if table.block else table.title
    head = [*table.heads, "", *table.columns]
    body = [
        line
        for row, cells in zip(table.rows, filled.cells, strict=True)
        for line in _lines(row, cells)
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    rule = ["-" * max(3, width) for width in widths]
    rows = [head, rule, *body]
    text = "\n".join(
        "| " + " | ".join(t.ljust(max(3, w)) for t, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    notes = "".join(f"\n- {note}" for note in [*filled.notes, *_reasons(filled)])
    return f"## {title}\n\n{text}\n{notes}".rstrip() + "\n"


def _lines(row: Row, cells: Sequence[Measured | None]) -> list[list[str]]:
    """The row's lines: paper, ours, difference, n, and what else its entries measure."""
    lines: list[Line] = [
        ("paper", [_each(cell, _paper) for cell in cells]),
        ("ours", [_each(cell, lambda one: _ours(one.ours, one.entry.decimals)) for cell in cells]),
        ("difference", [_each(cell, _difference) for cell in cells]),
        (
            "n",
            [
                _each(cell, lambda one: "" if one.ours.n is None else str(one.ours.n))
                for cell in cells
            ],
        ),
    ]
    for label in dict.fromkeys(label for cell in cells if cell for label, _ in cell.more):
        lines.append((label, [_more(cell, label) for cell in cells]))
    kept = [line for line in lines if line[0] == "ours" or any(line[1])]
    blank = [""] * len(row.labels)
    return [
        [*(row.labels if first == 0 else blank), name, *texts]
        for first, (name, texts) in enumerate(kept)
    ]


def _each(cell: Measured | None, text: Callable[[Measured], str]) -> str:
    return "" if cell is None else text(cell)


def _paper(cell: Measured) -> str:
    if cell.entry.paper_text is not None:
        return cell.entry.paper_text
    return "" if cell.entry.paper is None else number(cell.entry.paper, cell.entry.decimals)


def _ours(ours: Ours, decimals: int) -> str:
    if ours.reason is not None:
        return ours.reason.partition(":")[0]
    if ours.text is not None:
        return ours.text
    if ours.value is None:
        return ""
    return number(ours.value, decimals) + _half(ours, decimals)


def _half(ours: Ours, decimals: int) -> str:
    """Half of the interval, which is symmetric (harness/stats.py)."""
    if ours.low is None or ours.high is None:
        return ""
    return f" ±{number((ours.high - ours.low) / 2, decimals)}"


def _difference(cell: Measured) -> str:
    return "" if cell.difference is None else signed(cell.difference, cell.entry.decimals)


def _more(cell: Measured | None, label: str) -> str:
    for name, ours in cell.more if cell else ():
        if name == label:
            assert cell is not None
            if ours.value is None or "less" not in label:
                return _ours(ours, 1 if "%" in label else SHARE_DECIMALS)
            decimals = cell.entry.decimals
            return signed(ours.value, decimals) + _half(ours, decimals)
    return ""


def _reasons(filled: Filled) -> list[str]:
    """Each reason why something was not measured, once, in full."""
    found = []
    for cells in filled.cells:
        for cell in cells:
            if cell is not None:
                found += [cell.ours.reason, *(ours.reason for _, ours in cell.more)]
    return list(dict.fromkeys(reason for reason in found if reason))


HEAD = (
    "table",
    "block",
    "row",
    "column",
    "what",
    "paper",
    "ours",
    "low95",
    "high95",
    "difference",
    "n",
    "reason",
)


def csv_text(filled: Sequence[Filled]) -> str:
    """One line for each value."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEAD)
    for one in filled:
        for row, cells in zip(one.table.rows, one.cells, strict=True):
            for column, cell in zip(one.table.columns, cells, strict=True):
                if cell is not None:
                    place = [one.table.key, one.table.block, " ".join(row.labels), column]
                    writer.writerows([*place, *line] for line in _records(cell))
    return buffer.getvalue()


def _records(cell: Measured) -> Iterator[list[object]]:
    entry = cell.entry
    paper = entry.paper if entry.paper_text is None else entry.paper_text
    yield ["value", _plain(paper), *_numbers(cell.ours, cell.difference)]
    for label, ours in cell.more:
        yield [label, "", *_numbers(ours, None)]


def _numbers(ours: Ours, difference: float | None) -> list[object]:
    value = ours.value if ours.text is None else ours.text
    numbers = [_plain(one) for one in (value, ours.low, ours.high, difference, ours.n)]
    return [*numbers, ours.reason or ""]


def _plain(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.6g}"
