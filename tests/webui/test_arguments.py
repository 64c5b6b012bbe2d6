"""The argument list: a public contract, read from whatever a host hands over."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.arguments import (
    ARGUMENTS,
    DEFAULTS,
    NAMES,
    named,
    settings_from,
    values_from,
)
from tests.webui.strategies import settings

CONTRACT = [
    "enabled", "mode", "ratios", "down", "mid", "up", "k", "start", "end", "memory", "passes",
    "hires_ratios", "hires_down", "hires_mid", "hires_up", "refiner", "amplification",
]  # fmt: skip
SLIDERS = ("down", "mid", "up", "hires_down", "hires_mid", "hires_up")
USED = {**DEFAULTS, "ratios": "set", "hires_ratios": "set"}


def test_order_is_append_only():
    assert list(NAMES[: len(CONTRACT)]) == CONTRACT


def test_defaults_are_allowed_and_are_the_cores():
    assert settings_from(DEFAULTS) == Settings()
    assert all(a.default in a.choices for a in ARGUMENTS if a.choices)


@given(settings())
def test_settings_come_back_from_their_values(wanted):
    assert settings_from(values_from(wanted)) == wanted


@given(settings())
def test_values_may_come_as_text(wanted):
    assert settings_from({name: str(v) for name, v in values_from(wanted).items()}) == wanted


@given(settings())
def test_position_and_name_say_the_same(wanted):
    values = values_from(wanted)
    assert named([values[name] for name in NAMES]) == values
    assert named([values]) == values


@given(st.integers(0, len(NAMES)))
def test_missing_trailing_arguments_take_defaults(count):
    assert named([DEFAULTS[name] for name in NAMES[:count]]) == DEFAULTS


def test_a_dictionary_counts_before_what_the_host_filled_in():
    # modules/api/api.py puts the panel's defaults, or an infotext's values, in the other places
    rest = [{**DEFAULTS, "mode": "always", "down": 0.7}[name] for name in NAMES[1:]]
    assert named([{"k": 1.2, "down": 0.1}, *rest]) == {
        **DEFAULTS,
        "mode": "always",
        "ratios": "set",
        "k": 1.2,
        "down": 0.1,
    }
    assert named([{}, *rest])["enabled"] is True
    assert named([{"enabled": False}])["enabled"] is False


def test_a_slider_in_a_dictionary_counts_unless_told_otherwise():
    assert settings_from(named([{"mid": 0.4}])).ratios == Ratios(0.3, 0.4, 0.3)
    assert settings_from(named([{"hires_mid": "0.4"}])).hires_ratios == Ratios(0.3, 0.4, 0.3)
    assert settings_from(named([{"mid": 0.4, "ratios": "stored"}])).ratios is None
    with pytest.raises(CRDiffError, match=r"up is 1\.5"):
        settings_from(named([{"up": 1.5}]))


def test_lists_from_before_amplification_are_exact():
    old = [DEFAULTS[name] for name in NAMES[:16]]
    assert settings_from(named(old)).amplification == "exact"
    assert settings_from(named([*old, "Folded"])).amplification == "folded"
    assert settings_from(named([{"amplification": "reuse-3"}])).amplification == "reuse-3"


def test_unknown_names_and_too_many_arguments():
    with pytest.raises(CRDiffError, match=r"'K' is not known.*enabled, mode"):
        named([{"K": 1}])
    with pytest.raises(CRDiffError, match="argument '3' is not known"):
        named([{3: 1}])
    with pytest.raises(CRDiffError, match=rf"{len(NAMES) + 1} arguments are too many"):
        named([True] * (len(NAMES) + 1))


WRONG_NUMBERS = ["abc", "", math.nan, math.inf, "nan", None, True, [0.1], {}, -0.001, 1e400]


@pytest.mark.parametrize("wrong", WRONG_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", [*SLIDERS, "k", "start", "end"])
def test_a_wrong_number_is_refused_by_name(name, wrong):
    with pytest.raises(CRDiffError, match=rf"^{name} is "):
        settings_from({**USED, name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [*((name, 1.5) for name in SLIDERS), *((name, 1) for name in SLIDERS), ("k", 3.01),
     ("k", -1), ("start", 1.01), ("end", 1.5), ("end", "1,5")],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name(name, wrong):
    with pytest.raises(CRDiffError, match=rf"^{name} is "):
        settings_from({**USED, name: wrong})


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (1.0, 1.0), (0, 0)])
def test_a_window_that_ends_before_it_starts(start, end):
    with pytest.raises(CRDiffError, match=r"start is .*: it must be below end"):
        settings_from({**DEFAULTS, "start": start, "end": end})


@pytest.mark.parametrize(
    "name", ["mode", "ratios", "memory", "passes", "hires_ratios", "amplification"]
)
@pytest.mark.parametrize("wrong", ["", "Sometimes", None, True, 1, [], {}], ids=repr)
def test_a_wrong_choice_is_refused_by_name(name, wrong):
    with pytest.raises(CRDiffError, match=rf"^{name} is .*: use one of "):
        settings_from({**DEFAULTS, name: wrong})


@pytest.mark.parametrize("name", ["enabled", "refiner"])
@pytest.mark.parametrize("wrong", ["", "maybe", None, 2, 0.5, [True], math.nan], ids=repr)
def test_a_wrong_flag_is_refused_by_name(name, wrong):
    with pytest.raises(CRDiffError, match=rf"^{name} is .*: use true or false"):
        settings_from({**DEFAULTS, name: wrong})


@pytest.mark.parametrize(
    ("value", "flag"),
    [(True, True), ("True", True), ("on", True), (1, True), (1.0, True), (" yes ", True),
     (False, False), ("False", False), ("off", False), (0, False), (0.0, False), ("NO", False)],
)  # fmt: skip
def test_flags_come_as_text_and_numbers_too(value, flag):
    assert settings_from({**DEFAULTS, "refiner": value}).refiner is flag
    assert (settings_from({**DEFAULTS, "enabled": value}).mode != "off") is flag


def test_sliders_count_only_where_they_are_the_source():
    found = settings_from({**DEFAULTS, "down": "abc", "hires_up": 7})
    assert (found.ratios, found.hires_ratios) == (None, None)
    assert settings_from({**USED, "hires_ratios": "stored"}).ratios == Ratios(0.3, 0.3, 0.3)


def test_k_zero_is_allowed_and_choices_ignore_case():
    found = settings_from({**DEFAULTS, "k": "0", "mode": " Always "})
    assert (found.k, found.mode) == (0.0, "always")


def test_limits_are_laid_on():
    found = settings_from(DEFAULTS, {"native_area_tolerance": 0.25})
    assert found == Settings(native_area_tolerance=0.25)


@given(st.dictionaries(st.sampled_from(NAMES), st.none() | st.booleans() | st.floats() |
                       st.text(max_size=5) | st.lists(st.integers(), max_size=2)))  # fmt: skip
def test_anything_gives_settings_or_a_sentence(values):
    try:
        found = settings_from(named([values]))
    except CRDiffError as error:
        found = next((name for name in NAMES if name in str(error)), None)
    assert isinstance(found, (Settings, str))


def table():
    """The arguments as docs/api.md shows them."""
    rows = [
        "| # | name | values | default | label in the panel |",
        "| --- | --- | --- | --- | --- |",
    ]
    for index, argument in enumerate(ARGUMENTS):
        values = ", ".join(f"`{choice}`" for choice in argument.choices)
        if isinstance(argument.default, bool):
            values = "`true`, `false`"
        elif not values:
            values = RANGES[argument.name]
        default = str(argument.default).lower()
        rows.append(f"| {index} | `{argument.name}` | {values} | `{default}` | {argument.label} |")
    return "\n".join(rows)


RANGES = {
    **dict.fromkeys(SLIDERS, "0 to below 1"),
    "k": "0 to 3",
    **dict.fromkeys(("start", "end"), "0 to 1"),
}


def test_the_documentation_is_in_step():
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf8")
    assert table() in text, f"docs/api.md needs this table:\n{table()}"
