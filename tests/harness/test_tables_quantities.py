"""A table's cells: means over prompts, differences, shares; and how a row is printed."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from crdiff_ext.errors import CRDiffError
from harness.config import Size
from harness.stats import by_prompt, complete, paired_interval
from harness.tables.layout import Entry, Row, Table, fill
from harness.tables.quantities import (
    CRDIFF,
    DENSE,
    BestShare,
    Difference,
    Improved,
    Mean,
    Normalised,
    NotRun,
    Ours,
    Variant,
    Where,
    measured,
)
from harness.tables.render import csv_text, markdown

SIZE = Size(64, 64)


class FakeBook:
    """Scores by (variant's name, metric), [seeds, n]; higher is better but for "fid"."""

    def __init__(self, scores: dict[tuple[str, str], list[list[float]]]) -> None:
        self.scores = {key: np.array(value, float) for key, value in scores.items()}

    def images(self, where: Where, metric: str) -> np.ndarray:
        try:
            return self.scores[where.variant.name, metric]
        except KeyError:
            raise NotRun("not run: nothing there") from None

    def prompts(self, where: Where, metric: str) -> np.ndarray:
        return self.images(where, metric).mean(0)

    def of_set(self, where: Where, metric: str) -> Ours:
        raise NotRun("not run: no sets here")

    of_set_less_dense = of_set

    def is_per_image(self, metric: str) -> bool:
        return True

    def rises(self, metric: str) -> bool:
        return metric != "fid"

    def seconds(self, where: Where) -> float:
        return 0.5

    def ratios(self, where: Where) -> str:
        return "0.3"


A, B, C = (Where("m", SIZE, variant) for variant in (DENSE, CRDIFF, Variant("crdiff", k=2.0)))


def test_seeds_of_a_prompt_are_no_further_prompts() -> None:
    """Seeds that say the same give the interval of the prompts alone."""
    draws = np.random.default_rng(1)
    dense, ours = draws.normal(size=12), draws.normal(size=12)
    book = FakeBook({("dense", "s"): [list(dense)] * 4, ("crdiff", "s"): [list(ours)] * 4})
    found = Difference(B, A, "s").of(book)
    alone = paired_interval(ours, dense)
    assert (found.n, found.low, found.high) == (12, alone.low, alone.high)
    wrong = paired_interval(np.tile(ours, 4), np.tile(dense, 4))
    assert wrong.high - wrong.low < 0.6 * (alone.high - alone.low)


def test_seeds_are_averaged_within_a_prompt() -> None:
    assert by_prompt(np.array([1.0, 2.0, 3.0, 5.0, 6.0, 7.0]), 2).tolist() == [3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="not of 2 seeds"):
        by_prompt(np.ones(3), 2)


def test_best_shares_sum_to_100_and_split_ties() -> None:
    book = FakeBook(
        {
            ("dense", "s"): [[1, 0, 2, 5]],
            ("crdiff", "s"): [[1, 3, 2, 4]],
            ("crdiff, k = 2", "s"): [[0, 1, 2, 4]],
        }
    )
    shares = [BestShare(one, (A, B, C), "s").of(book).value for one in (A, B, C)]
    assert shares == pytest.approx(
        [100 * (1 / 2 + 1 / 3 + 1) / 4, 100 * (1 / 2 + 1 + 1 / 3) / 4, 25 / 3]
    )
    assert sum(value or 0 for value in shares) == pytest.approx(100)


def test_improved_counts_no_ties_and_minds_the_direction() -> None:
    book = FakeBook(
        {
            ("dense", "s"): [[1, 1, 1, 1]],
            ("crdiff", "s"): [[2, 1, 0, 3]],
            ("dense", "fid"): [[1, 1, 1, 1]],
            ("crdiff", "fid"): [[2, 1, 0, 3]],
        }
    )
    assert Improved(B, A, "s").of(book).value == 50
    assert Improved(B, A, "fid").of(book).value == 25


def test_normalised_is_one_for_the_best_whatever_the_direction() -> None:
    scores = {
        ("dense", "fid"): [[8, 8]],
        ("crdiff", "fid"): [[2, 2]],
        ("crdiff, k = 2", "fid"): [[5, 5]],
    }
    book = FakeBook(scores)
    gone = Where("m", SIZE, Variant("wanda"))
    values = [Normalised(one, (A, B, C, gone), "fid").of(book).value for one in (A, B, C)]
    assert values == [0.0, 1.0, 0.5]
    assert measured(Normalised(gone, (A, gone), "fid"), book).reason == "not run: nothing there"


@pytest.mark.parametrize("values", [[1.0, float("nan"), 2.0], [1.0, 2.0], [1.0, float("inf"), 0.0]])
def test_a_gap_is_an_error_and_not_left_out(values: list[float]) -> None:
    with pytest.raises(CRDiffError, match="x of y has 2 of 3 scores: nothing is left out"):
        complete(np.array(values), 3, "x of y")


def test_lines_of_a_row() -> None:
    book = FakeBook({("dense", "s"): [[1, 2, 3]], ("crdiff", "s"): [[2, 2, 5]]})
    more = (("CR-Diff less Dense", Difference(B, A, "s")),)
    row = Row(
        ("SDXL",),
        (Entry(1.5, Mean(A, "s")), Entry(None, Mean(B, "s"), more=more), Entry(2.0, Mean(A, "x"))),
    )
    table = Table("1", "Title", ("Model",), ("a", "b", "c"), (row,), ("A note.",))
    filled = fill(table, book)
    lines = [
        [part.strip() for part in line.split("|")[1:-1]]
        for line in markdown(filled).splitlines()
        if line[:1] == "|"
    ]
    assert lines[2] == ["SDXL", "paper", "1.500", "", "2.000"]
    assert lines[3][:2] == ["", "ours"]
    assert lines[3][2].startswith("2.000 ±")
    assert lines[3][4] == "not run"
    assert lines[4] == ["", "difference", "+0.500", "", ""]
    assert lines[5] == ["", "n", "3", "3", ""]
    assert lines[6][1] == "CR-Diff less Dense"
    assert lines[6][3].startswith("+1.000 ±")
    assert "- A note.\n- not run: nothing there" in markdown(filled)
    rows = list(csv.DictReader(csv_text([filled]).splitlines()))
    assert [(r["what"], r["paper"], r["ours"], r["difference"]) for r in rows] == [
        ("value", "1.5", "2", "0.5"),
        ("value", "", "3", ""),
        ("CR-Diff less Dense", "", "1", ""),
        ("value", "2", "", ""),
    ]
