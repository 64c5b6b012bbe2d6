"""The X/Y/Z axes: registered once, checked before the first cell, and each cell on its own."""

from __future__ import annotations

from copy import copy
from types import SimpleNamespace

import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.arguments import DEFAULTS, NAMES, settings_from
from tests.webui.fakes import plumbing
from tests.webui.jobs import PRESETS

fastapi = pytest.importorskip("fastapi", reason="the axes answer with fastapi's HTTPException")

LABELS = ["Enabled", "k", "Down", "Mid", "Up", "Ratio (all blocks)", "Preset", "Window start",
          "Window end", "Amplification"]  # fmt: skip


class Library:
    def presets(self):
        return PRESETS


@pytest.fixture
def host():
    return plumbing.Host()


@pytest.fixture
def xyz(host):
    with plumbing.loaded(host, "xyz") as modules:
        yield modules.xyz


@pytest.fixture
def grid(host, xyz):
    module = plumbing.xyz_module()
    host.scripts_data.append(plumbing.script_data("/webui/scripts/xyz_grid.py", module))
    xyz.register(Library())
    return {option.label.removeprefix("[CR-Diff] "): option for option in module.axis_options}


def cell(p, *axes):
    """As scripts/xyz_grid.py: a shallow copy, then each axis' apply."""
    copied = copy(p)
    for option, value in axes:
        option.apply(copied, value, [value])
    return copied


def settings_of(p):
    assert set(p.crdiff_overrides) <= set(NAMES)
    return settings_from({**DEFAULTS, **p.crdiff_overrides})


def test_registered_once_however_often(host, xyz, grid):
    module = host.scripts_data[0].module
    xyz.register(Library())
    for callback in host.callbacks.before_ui:
        callback()
    labels = [option.label for option in module.axis_options]
    assert labels == ["Nothing", *(f"[CR-Diff] {label}" for label in LABELS)]


@pytest.mark.parametrize("name", ["xyz_grid.py", "scripts.xyz_grid"])
def test_registered_when_the_plot_is_loaded_later(host, xyz, name):
    xyz.register(Library())
    other = plumbing.xyz_module("other.py")
    late = plumbing.xyz_module(name)
    host.scripts_data += [
        plumbing.script_data("/webui/extensions/other/scripts/other.py", other),
        plumbing.script_data("/webui/scripts/xyz_grid.py", late),
    ]
    for callback in host.callbacks.before_ui:
        callback()
    assert len(late.axis_options) == 1 + len(LABELS)
    assert len(other.axis_options) == 1


@pytest.mark.parametrize(
    ("label", "text", "field", "expected"),
    [
        ("Enabled", "False, True", "mode", ["off", "auto"]),
        ("k", "0, 1.5, 3", "k", [0.0, 1.5, 3.0]),
        ("Down", "0.1, 0.9", "ratios", [Ratios(0.1, 0.3, 0.3), Ratios(0.9, 0.3, 0.3)]),
        ("Mid", "0", "ratios", [Ratios(0.3, 0, 0.3)]),
        ("Up", "0.5", "ratios", [Ratios(0.3, 0.3, 0.5)]),
        ("Ratio (all blocks)", "0, 0.4", "ratios", [Ratios(0, 0, 0), Ratios(0.4, 0.4, 0.4)]),
        ("Preset", "stored, SDXL  512x512, none", "ratios",
         [None, Ratios(0.397, 0.434, 0.387), None]),
        ("Preset", "stored, sdxl 512x512, none", "mode", ["auto", "auto", "off"]),
        ("Window start", "0, 0.99", "start", [0.0, 0.99]),
        ("Window end", "0.01, 1", "end", [0.01, 1.0]),
        ("Amplification", "exact, Folded, reuse-3", "amplification",
         ["exact", "folded", "reuse-3"]),
    ],
)  # fmt: skip
def test_each_axis_sets_its_field(grid, label, text, field, expected):
    p = SimpleNamespace(is_api=False)
    option = grid[label]
    values = plumbing.run_axis(option, p, text)
    found = [getattr(settings_of(cell(p, (option, value))), field) for value in values]
    assert found == expected
    assert not hasattr(p, "crdiff_overrides")


def test_cells_do_not_see_each_other(grid):
    p = SimpleNamespace(crdiff_overrides={"memory": "copy"})
    first = cell(p, (grid["Down"], 0.1), (grid["Up"], 0.2), (grid["k"], 2.0))
    second = cell(p, (grid["k"], 1.0))
    assert settings_of(first).ratios == Ratios(0.1, 0.3, 0.2)
    assert settings_of(second).ratios is None
    assert (settings_of(first).k, settings_of(second).k) == (2.0, 1.0)
    assert p.crdiff_overrides == {"memory": "copy"}


@pytest.mark.parametrize(
    ("label", "text", "sentence"),
    [
        ("Enabled", "True, maybe", "enabled is 'maybe'"),
        ("k", "1, 3.5", "k is 3.5"),
        ("k", "-1", "k is -1"),
        ("k", "nan", "k is nan"),
        ("Down", "1.0", "down is 1"),
        ("Ratio (all blocks)", "0.4, 1.3", "down is 1.3"),
        ("Preset", "sdxl 500x500", "preset 'sdxl 500x500' is not known: use one of stored, none, "),
        ("Window start", "1", "start is 1: it must be below end"),
        ("Window end", "0", "start is 0: it must be below end"),
        ("Amplification", "exact, fast", "amplification is 'fast': use one of exact, folded"),
    ],
)
def test_wrong_values_are_told_before_the_first_cell(grid, label, text, sentence):
    with pytest.raises(CRDiffError) as page:
        plumbing.run_axis(grid[label], SimpleNamespace(is_api=False), text)
    assert sentence in str(page.value)
    with pytest.raises(fastapi.HTTPException) as api:
        plumbing.run_axis(grid[label], SimpleNamespace(is_api=True), text)
    assert api.value.status_code == 422
    assert sentence in api.value.detail


def test_choices(grid):
    assert grid["Enabled"].choices() == ["True", "False"]
    names = grid["Preset"].choices()
    assert names[:3] == ["stored", "none", "sdxl 512x512"]
    plumbing.run_axis(grid["Preset"], SimpleNamespace(), ", ".join(names))
    assert grid["k"].choices is None
    ways = grid["Amplification"].choices()
    assert ways[:2] == ["exact", "folded"]
    plumbing.run_axis(grid["Amplification"], SimpleNamespace(), ", ".join(ways))
