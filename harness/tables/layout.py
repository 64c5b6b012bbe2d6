"""A table as it is printed: rows and columns of the paper, several lines in each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.tables.quantities import Book, Ours, Quantity, measured


@dataclass(frozen=True)
class Head:
    """A metric's column: its scorer's name, its name in paper.json, and how tables label it."""

    metric: str
    key: str
    label: str
    rises: bool = True
    decimals: int = 3
    per_image: bool = True

    @property
    def title(self) -> str:
        """Such as ``FID ↓``."""
        return f"{self.label} {'↑' if self.rises else '↓'}"


@dataclass(frozen=True)
class Entry:
    """One entry: the paper's value (or text), what we measure for it, and further lines.

    ``more``: (label, quantity) of lines below, such as the paired difference to dense.
    """

    paper: float | None = None
    quantity: Quantity | None = None
    decimals: int = 3
    paper_text: str | None = None
    more: tuple[tuple[str, Quantity], ...] = ()


@dataclass(frozen=True)
class Row:
    """Labels at the left, then an entry for each column; None leaves it empty."""

    labels: tuple[str, ...]
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True)
class Table:
    """A table to be measured. ``key`` is its name on the command line."""

    key: str
    title: str
    heads: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    block: str = ""
    """What kind of scores these are; empty: the paper's metrics."""

    def quantities(self) -> list[Quantity]:
        """Everything that is to be measured."""
        entries = [entry for row in self.rows for entry in row.entries if entry is not None]
        own = [entry.quantity for entry in entries if entry.quantity is not None]
        return own + [quantity for entry in entries for _, quantity in entry.more]


@dataclass(frozen=True)
class Measured:
    """An entry with its value."""

    entry: Entry
    ours: Ours
    more: tuple[tuple[str, Ours], ...] = ()

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, where both are known."""
        if self.ours.value is None or self.entry.paper is None:
            return None
        return self.ours.value - self.entry.paper


@dataclass(frozen=True)
class Filled:
    """A table with its values: ``cells[row][column]``."""

    table: Table
    cells: tuple[tuple[Measured | None, ...], ...]
    notes: tuple[str, ...] = field(default=())


def fill(table: Table, book: Book, notes: tuple[str, ...] = ()) -> Filled:
    """Measure every entry; what can't be had says why."""

    def one(entry: Entry | None) -> Measured | None:
        if entry is None:
            return None
        ours = measured(entry.quantity, book) if entry.quantity else Ours()
        more = tuple((label, measured(quantity, book)) for label, quantity in entry.more)
        return Measured(entry, ours, more)

    cells = tuple(tuple(one(entry) for entry in row.entries) for row in table.rows)
    return Filled(table, cells, (*table.notes, *notes))


def as_dict(filled: Filled) -> dict[str, Any]:
    """For tables.json."""
    table = filled.table
    return {
        "table": table.key,
        "title": table.title,
        "block": table.block or None,
        "heads": list(table.heads),
        "columns": list(table.columns),
        "rows": [
            {
                "labels": list(row.labels),
                "entries": [cell and _entry(cell) for cell in cells],
            }
            for row, cells in zip(table.rows, filled.cells, strict=True)
        ],
        "notes": list(filled.notes),
    }


def _entry(cell: Measured) -> dict[str, Any]:
    entry = cell.entry
    return {
        "paper": entry.paper if entry.paper_text is None else entry.paper_text,
        "ours": _value(cell.ours),
        "difference": cell.difference,
        "more": [{"label": label, **_value(ours)} for label, ours in cell.more],
    }


def _value(ours: Ours) -> dict[str, Any]:
    interval = None if ours.low is None else [ours.low, ours.high]
    return {
        "value": ours.value if ours.text is None else ours.text,
        "n": ours.n,
        "interval95": interval,
        "reason": ours.reason,
    }
