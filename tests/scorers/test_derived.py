"""Shares of prompts: improved over dense, best of all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scorers import best_share, improved


def test_a_tie_is_no_improvement() -> None:
    method, dense = np.array([1.0, 2.0, 3.0, -1.0]), np.array([0.0, 2.0, 4.0, -2.0])
    assert improved(method, dense).tolist() == [1, 0, 0, 1]
    assert improved(method, dense, higher_is_better=False).tolist() == [0, 0, 1, 0]


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be paired"):
        improved(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="can't be paired"):
        improved(np.zeros(0), np.zeros(0))


def test_best_share_splits_ties() -> None:
    scores = {
        "a": np.array([3.0, 1.0, 5.0, 2.0]),
        "b": np.array([1.0, 1.0, 6.0, 2.0]),
        "c": np.array([0.0, 0.0, 0.0, 2.0]),
    }
    found = best_share(scores)
    third = 100 / 3
    assert found == pytest.approx(
        {"a": (100 + 50 + third) / 4, "b": (50 + 100 + third) / 4, "c": third / 4}
    )
    lowest = best_share(scores, higher_is_better=False)
    assert lowest["c"] == pytest.approx((300 + third) / 4)


def test_best_share_refuses_what_it_cant_compare() -> None:
    assert best_share({}) == {}
    with pytest.raises(ValueError, match="every prompt"):
        best_share({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match="finite"):
        best_share({"a": np.array([np.nan])})


@given(
    st.integers(1, 5).flatmap(
        lambda m: st.lists(
            st.lists(st.integers(-3, 3), min_size=m, max_size=m), min_size=1, max_size=20
        )
    )
)
def test_best_shares_sum_to_a_hundred(rows: list[list[int]]) -> None:
    table = np.array(rows, float)
    shares = best_share({str(i): table[:, i] for i in range(table.shape[1])})
    assert sum(shares.values()) == pytest.approx(100)
    assert all(0 <= share <= 100 for share in shares.values())
