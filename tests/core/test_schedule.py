"""A schedule's settings: what makes no sense is refused, with its name."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import AUTHORS, Schedule


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("patience", -1, "patience is -1: it must be at least 1"),
        ("patience", 0, "patience is 0"),
        ("iterations", 3.5, "iterations is 3.5: a whole number is needed"),
        ("iterations", "abc", "iterations is 'abc'"),
        ("iterations", True, "iterations is True"),
        ("step", 0, "step is 0: it must be above 0"),
        ("step", math.nan, "step is nan: a finite number is needed"),
        ("step_floor", -0.1, "step_floor is -0.1"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", None, "temperature is None"),
        ("cooling", 1.5, "cooling is 1.5: it must be at most 1"),
        ("restarts", -1, "restarts is -1"),
        ("reheats", 0.5, "reheats is 0.5"),
        ("reheat_factor", -1, "reheat_factor is -1: it must be at least 1"),
        ("restart_step", 0, "restart_step is 0"),
        ("failure_score", math.nan, "failure_score is nan"),
        ("uniform", "x", "uniform is 'x': it must be true or false"),
        ("relative", 1, "relative is 1"),
        ("start", [0.1, 0.2], "start is .*a list of 3 numbers"),
        ("start", 0.3, "start is 0.3: a list of 3 numbers"),
        ("start", [0.9, 0.3, 0.3], "the first ratio 0.9 lies outside of the box, 0 to 0.8"),
        ("k", 0, "k is 0, which is the dense model"),
        ("k_range", [1, 2, 3], "k_range is .*a list of 2 numbers"),
        ("k_range", [-1, 2], "-1"),
        ("k_range", ["a", 2], "'a'"),
    ],
)
def test_nonsense_is_one_sentence(setting: str, value: Any, said: str) -> None:
    with pytest.raises(CRDiffError, match=said) as told:
        Schedule.from_dict({setting: value})
    assert "\n" not in str(told.value)


def test_the_profiles_are_sound_and_come_back_from_json() -> None:
    for schedule in (Schedule(), AUTHORS, Schedule().brisk(), Schedule(k_range=(0.0, 3.0))):
        assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_every_setting_is_checked() -> None:
    """A word in the place of any setting is refused."""
    for entry in fields(Schedule):
        with pytest.raises(CRDiffError):
            Schedule.from_dict({entry.name: "word"})
