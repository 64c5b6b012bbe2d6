"""What ran -> infotext -> the host's parser -> arguments -> the same runs again."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import crdiff_ext
from crdiff_ext.settings import AMPLIFICATIONS, Ratios, Settings
from crdiff_ext.webui import infotext
from crdiff_ext.webui.arguments import DEFAULTS, NAMES
from tests.webui.fakes import plumbing
from tests.webui.infotexts import NAME, A, B, again, pasted, written
from tests.webui.jobs import (
    NATIVE_THEN_LARGE,
    PRESETS,
    SMALL_THEN_LARGE,
    SMALL_THEN_NATIVE,
    SQUARE,
    WITH_REFINER,
    Stretch,
    generate,
)
from tests.webui.strategies import settings

BASE = {"CR-Diff": crdiff_ext.__version__}
SAME_FAMILY = [WITH_REFINER[0], Stretch("first", "sdxl", 512, 512, refiner=True)]


STORED = "0.397/0.434/0.387"
LARGE = "0.1/0.2/0.25"
LARGE_NAME = 'SDXL 2048x2048 (found: "by hand")'
CASES = {
    "stored": (
        Settings(), SQUARE,
        {"CR-Diff ratios": STORED, "CR-Diff preset": NAME},
    ),
    "set": (Settings(ratios=A), SQUARE, {"CR-Diff ratios": "0.3/0.2/0.1"}),
    "always, k, window": (
        Settings(mode="always", ratios=A, k=1.25, start=0.25, end=0.75),
        [Stretch("first", "sdxl", 1024, 1024)],
        {"CR-Diff mode": "always", "CR-Diff k": "1.25", "CR-Diff window": "0.25-0.75",
         "CR-Diff ratios": "0.3/0.2/0.1"},
    ),
    "both passes, stored": (
        Settings(), SMALL_THEN_LARGE,
        {"CR-Diff ratios": STORED, "CR-Diff preset": NAME,
         "CR-Diff hires ratios": LARGE, "CR-Diff hires preset": LARGE_NAME},
    ),
    "both passes, the same ratios": (
        Settings(ratios=A), SMALL_THEN_LARGE, {"CR-Diff ratios": "0.3/0.2/0.1"},
    ),
    "hires with ratios of its own": (
        Settings(ratios=A, hires="set", hires_ratios=B), SMALL_THEN_LARGE,
        {"CR-Diff ratios": "0.3/0.2/0.1", "CR-Diff hires ratios": "0.5/0.4/0.25"},
    ),
    "hires stored, first set": (
        Settings(ratios=A, hires="stored"), SMALL_THEN_LARGE,
        {"CR-Diff ratios": "0.3/0.2/0.1", "CR-Diff hires ratios": LARGE,
         "CR-Diff hires preset": LARGE_NAME},
    ),
    "only the first pass acted": (
        Settings(), SMALL_THEN_NATIVE,
        {"CR-Diff ratios": STORED, "CR-Diff preset": NAME, "CR-Diff passes": "first"},
    ),
    "only the hires pass acted": (
        Settings(), NATIVE_THEN_LARGE,
        {"CR-Diff passes": "hires", "CR-Diff hires ratios": LARGE,
         "CR-Diff hires preset": LARGE_NAME},
    ),
    "the first pass only, as set": (
        Settings(ratios=A, passes="first"), SQUARE,
        {"CR-Diff ratios": "0.3/0.2/0.1", "CR-Diff passes": "first"},
    ),
    "not after the refiner switch": (
        Settings(refiner=False), WITH_REFINER,
        {"CR-Diff ratios": STORED, "CR-Diff preset": NAME, "CR-Diff refiner": "off"},
    ),
    "refiner without stored ratios": (
        Settings(), [SQUARE[0], Stretch("first", "sd15", 512, 768, refiner=True)],
        {"CR-Diff ratios": STORED, "CR-Diff preset": NAME, "CR-Diff refiner": "off"},
    ),
    "refiner with the same ratios": (
        Settings(), SAME_FAMILY, {"CR-Diff ratios": STORED, "CR-Diff preset": NAME},
    ),
    "the window ends before the refiner": (
        Settings(ratios=A, end=0.25), SQUARE,
        {"CR-Diff ratios": "0.3/0.2/0.1", "CR-Diff window": "0-0.25"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_written_and_reproduced_without_the_stored_ratios(name):
    asked, stretches, expected = CASES[name]
    job, ran = generate(asked, stretches)
    assert any(ran)
    params = written(job)
    assert params == {**BASE, **expected}
    assert again(params, stretches, presets=[]) == ran


@pytest.mark.parametrize(
    ("asked", "stretches", "told"),
    [
        (Settings(), WITH_REFINER, f"first {STORED}; first refiner 0.11/0.12/0.13"),
        (Settings(), [Stretch("first", "sd15", 1024, 1024), WITH_REFINER[1]],
         "first refiner 0.11/0.12/0.13"),
        (Settings(ratios=A, hires="stored"), [*SQUARE, *[Stretch("hires", *rest) for rest in (
            ("sdxl", 512, 512), ("sdxl-refiner", 512, 512, True))]],
         f"first 0.3/0.2/0.1; hires {STORED}; hires refiner 0.11/0.12/0.13"),
    ],
)  # fmt: skip
def test_ratios_that_change_at_the_refiner_switch_are_asked_for_again(asked, stretches, told):
    job, ran = generate(asked, stretches)
    params = written(job)
    assert params["CR-Diff ran"] == told
    assert "CR-Diff preset" not in params
    assert again(params, stretches, PRESETS) == ran


@pytest.mark.parametrize(
    ("asked", "stretches"),
    [
        (Settings(), [Stretch("first", "sdxl", 1024, 1024)]),
        (Settings(mode="off"), SQUARE),
        (Settings(k=0), SQUARE),
        (Settings(ratios=Ratios(0, 0, 0)), SQUARE),
        (Settings(ratios=Ratios(1e-6, 0, 0)), SQUARE),  # too small to prune one weight
        (Settings(), [Stretch("first", "unknown", 512, 512)]),
        (Settings(passes="hires"), SQUARE),
        (Settings(ratios=A, start=0.9, end=0.95), SQUARE),  # between two steps
        (Settings(), []),
    ],
)
def test_nothing_is_written_when_nothing_ran(asked, stretches):
    job, ran = generate(asked, stretches)
    assert not any(ran)
    assert written(job) == {}


@pytest.mark.parametrize("way", AMPLIFICATIONS)
def test_the_way_of_amplification_comes_back(way):
    job, ran = generate(Settings(ratios=A, amplification=way), SQUARE)
    params = written(job)
    assert params.get(infotext.AMPLIFICATION) == (None if way == "exact" else way)
    assert pasted(params)["amplification"] == way
    assert again(params, SQUARE, []) == ran


def test_an_infotext_from_before_amplification_is_exact(monkeypatch):
    """Whatever the default is by then."""
    monkeypatch.setitem(DEFAULTS, "amplification", "folded")
    old = {"CR-Diff": "0.1.0", "CR-Diff ratios": "0.3/0.2/0.1"}
    assert pasted(old)["amplification"] == "exact"


def test_what_an_earlier_cell_wrote_goes_away():
    # scripts/xyz_grid.py copies p shallowly: all cells write into one dictionary
    params = {"Script": "X/Y/Z plot"}
    infotext.write(params, generate(Settings(mode="always", k=2), SMALL_THEN_LARGE)[0])
    infotext.write(params, generate(Settings(), SQUARE)[0])
    assert params == {
        "Script": "X/Y/Z plot", **BASE, "CR-Diff ratios": STORED, "CR-Diff preset": NAME,
    }  # fmt: skip
    infotext.clear(params)
    assert params == {"Script": "X/Y/Z plot"}


def test_every_key_is_one_that_the_host_can_read():
    for key in infotext.KEYS:
        assert re.fullmatch(r"\w[\w \-/]+", key)


def test_a_pasted_infotext_of_a_dense_image_leaves_the_panel_alone():
    assert pasted({}) == DEFAULTS
    assert all(reader({"Steps": "20"}) is None for reader in infotext.PASTE_FIELD_NAMES)


def test_memory_is_left_alone_and_all_else_is_set():
    params = written(generate(Settings(ratios=A, memory="copy"), SQUARE)[0])
    found = {reader.name: reader(params) for reader in infotext.PASTE_FIELD_NAMES}
    assert found.pop("memory") is None
    assert None not in found.values()
    assert found["enabled"] is True
    assert found["refiner"] is True


def test_values_have_the_types_of_the_components():
    params = written(generate(Settings(ratios=A, k=2), SQUARE)[0])
    for reader in infotext.PASTE_FIELD_NAMES:
        value = reader(plumbing.parse_generation_parameters(plumbing.create_infotext(params)))
        assert value is None or type(value) is type(DEFAULTS[reader.name]), reader.name


def test_fields_are_the_same_for_both_tabs():
    # connect_paste_params_buttons matches txt2img's fields with img2img's by their names
    def tab():
        return infotext.fields({name: object() for name in NAMES})

    mine, other = tab(), tab()
    names = infotext.PASTE_FIELD_NAMES
    assert [key for _, key in mine if key in names] == [key for _, key in other if key in names]
    assert len(mine) == len(NAMES)
    assert len({key: 1 for _, key in mine}) == len(NAMES)  # connect_paste puts them into a dict
    assert infotext.fields({"k": 1}) == [(1, infotext.Reader("k"))]


NEAR_NATIVE = [Stretch("first", "sdxl", 1024, 1200)]  # 17 % more than its area


def test_the_tolerance_is_written_where_it_decides():
    """Also the default one: without the key a host keeps the option that it has by then."""
    by_hand = Settings(ratios=A)
    assert written(generate(by_hand, NEAR_NATIVE)[0])[infotext.TOLERANCE] == "0.1"
    strict = Settings(ratios=A, native_area_tolerance=0.05)
    assert written(generate(strict, NEAR_NATIVE)[0])[infotext.TOLERANCE] == "0.05"
    always = Settings(mode="always", ratios=A)
    assert infotext.TOLERANCE not in written(generate(always, NEAR_NATIVE)[0])
    far = Settings(native_area_tolerance=0.2)
    assert infotext.TOLERANCE not in written(generate(far, SQUARE)[0])  # a quarter of its area


def test_the_hires_pass_of_an_image_drawn_before():
    """The page's button that upscales a finished image makes no first pass."""
    only = [SMALL_THEN_LARGE[1]]
    job, ran = generate(Settings(mode="always", ratios=A), only)
    params = written(job)
    assert params[infotext.RATIOS] == "0.3/0.2/0.1"
    assert infotext.HIRES_RATIOS not in params
    assert again(params, only, PRESETS) == ran
    own = Settings(mode="always", ratios=A, hires="set", hires_ratios=B)
    job, ran = generate(own, only)
    params = written(job)
    assert (params[infotext.RATIOS], params[infotext.HIRES_RATIOS]) == (
        "0.3/0.2/0.1",
        "0.5/0.4/0.25",
    )
    assert again(params, only, PRESETS) == ran


def test_an_image_that_failed_midway_says_so():
    job, _ = generate(Settings(), SQUARE)
    job.records[0].actor.failed = True
    params = written(job)
    assert params[infotext.RAN] == f"first {STORED} (failed midway, finished densely)"


families = st.sampled_from(["sdxl", "sdxl-refiner", "sd15", "unknown"])
sizes = st.sampled_from([(512, 512), (1024, 1024), (400, 560), (2048, 2048), (512, 504)])


@st.composite
def generations(draw):
    stretches = []
    for part in ("first", "hires")[: draw(st.integers(1, 2))]:
        height, width = draw(sizes)
        stretches.append(Stretch(part, draw(families), height, width))
        if draw(st.booleans()):
            stretches.append(Stretch(part, draw(families), height, width, refiner=True))
    return stretches


@hypothesis_settings(max_examples=300)
@given(settings(modes=("auto", "always")), generations())
def test_whatever_ran_runs_again(asked, stretches):
    job, ran = generate(asked, stretches)
    params = written(job)
    assert bool(params) == any(ran)
    if params:
        changed = PRESETS if infotext.RAN in params else []
        assert again(params, stretches, changed) == ran


@pytest.mark.parametrize("family", ["sd3", "flux-dev"])
def test_a_transformers_ratio_comes_back_from_its_infotext(family):
    by_hand = Settings(ratios="0.125")
    square = [Stretch("first", family, 512, 512)]
    job, ran = generate(by_hand, square)
    params = written(job)
    assert {ratios for ratios, _ in ran} == {Ratios(0.125, 0.125, 0.125)}
    assert params[infotext.RATIOS] == "0.125/0.125/0.125"
    assert again(params, square, ()) == ran
