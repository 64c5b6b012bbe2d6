"""The settings page's section, and its readers with whatever a config.json holds."""

from __future__ import annotations

import logging
import math

import pytest

from crdiff_ext.settings import Settings
from tests.webui.fakes import plumbing

gradio = pytest.importorskip("gradio", reason="the settings page needs gradio")

KEYS = ["crdiff_default_mode", "crdiff_native_area_tolerance", "crdiff_inner_passes",
        "crdiff_memory", "crdiff_notice_level", "crdiff_default_amplification",
        "crdiff_reward", "crdiff_reward_clip", "crdiff_reward_device", "crdiff_reward_timeout",
        "crdiff_reward_weights", "crdiff_harness_python"]  # fmt: skip
PATHS = 2
"""The last ones are no part of a problem report."""
USUAL = ("auto", {"native_area_tolerance": 0.1}, False, "auto", "normal", "exact")
USUAL_REWARD = ("auto", "", "cpu", 60.0, "", "")
CHOSEN = ["always", 0.25, True, "recompute", "verbose", "folded",
          "clip", "ViT-L-14-quickgelu", "auto", 300, "/weights", "/python"]  # fmt: skip


@pytest.fixture
def host():
    return plumbing.Host()


@pytest.fixture
def options(host):
    with plumbing.loaded(host, "options") as modules:
        yield modules.options


def read(options):
    return (options.default_mode(), options.limits(), options.inner_passes(), options.memory(),
            options.notice_level(), options.default_amplification())  # fmt: skip


def read_reward(options):
    return (options.reward(), options.reward_clip(), options.reward_device(),
            options.reward_timeout(), options.reward_weights(),
            options.harness_python())  # fmt: skip


def test_readers_before_registration(options):
    assert read(options) == USUAL
    assert read_reward(options) == USUAL_REWARD


def test_registration(host, options):
    options.register()
    assert host.opts.data_labels == {}  # only when the host makes its settings page
    for callback in host.callbacks.ui_settings * 2:
        callback()
    assert sorted(host.opts.data_labels) == sorted(KEYS)
    assert {info.section for info in host.opts.data_labels.values()} == {("crdiff", "CR-Diff")}
    assert read(options) == USUAL
    assert read_reward(options) == USUAL_REWARD
    for info in host.opts.data_labels.values():
        component = info.component(value=info.default, label=info.label, **info.component_args)
        assert component.value == info.default
    assert host.opts.data_labels[KEYS[1]].infotext == "CR-Diff native tolerance"


def test_what_the_user_chose(host, options):
    host.opts.data.update(dict(zip(KEYS, CHOSEN, strict=True)))
    chosen = ("always", {"native_area_tolerance": 0.25}, True, "recompute", "verbose", "folded")
    assert read(options) == chosen
    options.add()
    assert read(options) == chosen
    assert read_reward(options) == tuple(CHOSEN[6:])
    assert options.current() == dict(zip(KEYS[:-PATHS], CHOSEN[:-PATHS], strict=True))


@pytest.mark.parametrize("wrong", ["abc", None, -1, 2, math.nan, True, [0.1]], ids=repr)
@pytest.mark.parametrize("index", [0, 1, 3, 4, 5])
def test_a_value_that_is_not_allowed_is_told_and_the_default_counts(
    host, options, index, wrong, caplog
):
    host.opts.data[KEYS[index]] = wrong
    with caplog.at_level(logging.WARNING, logger="crdiff"):
        assert read(options) == USUAL
    assert KEYS[index] in caplog.text
    Settings(**options.limits())


@pytest.mark.parametrize("index", range(6, 12))
@pytest.mark.parametrize("wrong", [None, -1, 7200, math.nan, True, ["x"], "\0"], ids=repr)
def test_a_reward_value_that_is_not_allowed_is_told(host, options, index, wrong, caplog):
    host.opts.data[KEYS[index]] = wrong
    with caplog.at_level(logging.WARNING, logger="crdiff"):
        assert read_reward(options) == USUAL_REWARD
    assert KEYS[index] in caplog.text


def test_a_path_as_explorers_copy_it(host, options):
    host.opts.data["crdiff_reward_weights"] = ' "C:\\my models" '
    assert options.reward_weights() == "C:\\my models"


def test_inner_passes_only_for_true(host, options):
    for wrong in ("yes", 1, None):
        host.opts.data[KEYS[2]] = wrong
        assert options.inner_passes() is False


def test_who_reaches_the_page_from_elsewhere_chooses_no_program(options, monkeypatch):
    from modules import shared

    options.add()
    shared.opts.data["crdiff_harness_python"] = "/a/program"
    assert options.harness_python() == "/a/program"
    for key in ("crdiff_harness_python", "crdiff_reward_weights"):
        assert shared.opts.data_labels[key].restrict_api
    monkeypatch.setattr(shared.cmd_opts, "disable_extension_access", True, raising=False)
    assert options.harness_python() == ""
