from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios, Settings

ratio = st.floats(0, 1, exclude_max=True)
some_ratios = st.builds(Ratios, ratio, ratio, ratio)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3/0.2/0.1", (0.3, 0.2, 0.1)),
        (" 0.397 / 0.434 / 0.387 ", (0.397, 0.434, 0.387)),
        ("0.3", (0.3, 0.3, 0.3)),
        ("0", (0, 0, 0)),
    ],
)
def test_parse_ratios(text, expected):
    assert tuple(Ratios.parse(text).as_dict().values()) == expected


@pytest.mark.parametrize("text", ["", "0.1/0.2", "0.1/0.2/0.3/0.4", "a", "1/0/0", "-0.1", "nan",
                                  "0.1/inf/0.1", "0.1//0.2"])  # fmt: skip
def test_wrong_ratios(text):
    with pytest.raises(CRDiffError, match="ratio"):
        Ratios.parse(text)


@pytest.mark.parametrize("wrong", [1.0, -1e-9, math.nan, math.inf, "x", None, True, [0.1]])
@pytest.mark.parametrize("group", ["down", "mid", "up"])
def test_error_names_the_group(group, wrong):
    values = {"down": 0.1, "mid": 0.1, "up": 0.1, group: wrong}
    with pytest.raises(CRDiffError, match=f"'{group}'"):
        Ratios(**values)


def test_ratios_text_and_zero():
    assert str(Ratios(0.397, 0.434, 0.387)) == "0.397 / 0.434 / 0.387"
    assert Ratios(0, 0, 0).is_zero
    assert not Ratios(0, 1e-9, 0).is_zero
    with pytest.raises(CRDiffError, match="down, mid and up"):
        Ratios.from_dict({"down": 0.1, "mid": 0.2})


@given(some_ratios)
def test_ratios_round_trip(ratios):
    assert Ratios.from_dict(json.loads(json.dumps(ratios.as_dict()))) == ratios


def test_defaults():
    settings = Settings()
    assert (settings.mode, settings.k, settings.ratios) == ("auto", 1.5, None)
    assert (settings.start, settings.end, settings.passes, settings.memory) == (
        0.0, 1.0, "both", "auto",
    )  # fmt: skip


@given(
    st.builds(
        Settings,
        mode=st.sampled_from(["off", "auto", "always"]),
        ratios=st.none() | some_ratios,
        k=st.floats(0, 3),
        start=st.floats(0, 0.4),
        end=st.floats(0.5, 1),
        memory=st.sampled_from(["auto", "recompute", "copy"]),
        passes=st.sampled_from(["first", "hires", "both"]),
        max_log_area=st.floats(0, 5),
    )
)
def test_round_trip_through_json(settings):
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_numbers_and_ratios_may_come_as_text():
    settings = Settings.from_dict({"k": "1.25", "ratios": "0.1/0.2/0.3", "end": "0.5"})
    assert (settings.k, settings.ratios, settings.end) == (1.25, Ratios(0.1, 0.2, 0.3), 0.5)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"k": -0.01}, "k is"),
        ({"k": 3.01}, "k is"),
        ({"k": "much"}, "k is"),
        ({"k": math.nan}, "k is"),
        ({"k": 10**400}, "k is"),
        ({"start": 0.5, "end": 0.5}, "start"),
        ({"end": 1.5}, "end"),
        ({"mode": "on"}, "mode"),
        ({"mode": ["off"]}, "mode"),
        ({"memory": None}, "memory"),
        ({"passes": "second"}, "passes"),
        ({"ratios": [0.1, 0.2, 0.3]}, "ratios"),
        ({"ratios": {"down": 0.1}}, "ratios"),
        ({"sd_max_aspect": 0.5}, "sd_max_aspect"),
        ({"strength": 1}, "'strength'"),
    ],
)
def test_errors_name_the_field(data, named):
    with pytest.raises(CRDiffError, match=named):
        Settings.from_dict(data)


def test_frozen():
    with pytest.raises(AttributeError):
        Settings().k = 1.0


def test_schema_describes_the_values():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(Settings.json_schema())
    validator.check_schema(Settings.json_schema())
    for settings in (Settings(), Settings(mode="off", ratios=Ratios(0.1, 0.2, 0.3), k=0)):
        assert validator.is_valid(settings.to_dict())
    for wrong in ({"k": 4}, {"mode": "on"}, {"x": 1}, {"ratios": {"down": 1, "mid": 0, "up": 0}}):
        assert not validator.is_valid(wrong)
    properties = Settings.json_schema()["properties"]
    assert {name: field["default"] for name, field in properties.items()} == Settings().to_dict()
