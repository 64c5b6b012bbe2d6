"""Infotexts as text: damaged ones, quoting, digits, and the host's own parser."""

from __future__ import annotations

import ast
import logging
import os
import re
import warnings
from pathlib import Path

import pytest

from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.arguments import DEFAULTS, NAMES, named, settings_from
from tests.webui.fakes import plumbing
from tests.webui.infotexts import NAME, A, again, pasted, written
from tests.webui.jobs import (
    SMALL_THEN_LARGE,
    SQUARE,
    Stretch,
    generate,
)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("CR-Diff ratios", "abc"), ("CR-Diff ratios", "0.1/0.2"), ("CR-Diff ratios", "1.5/0/0"),
        ("CR-Diff k", "much"), ("CR-Diff k", "nan"), ("CR-Diff k", "9"), ("CR-Diff mode", "often"),
        ("CR-Diff window", "0.5"), ("CR-Diff window", "0.5-0.2"), ("CR-Diff window", "1..-2"),
        ("CR-Diff amplification", "fast"), ("CR-Diff passes", "third"),
        ("CR-Diff hires ratios", "nan"),
    ],
)  # fmt: skip
def test_a_damaged_infotext_is_told_once_and_changes_nothing(key, text, caplog):
    params = {**written(generate(Settings(), SMALL_THEN_LARGE)[0]), key: text}
    with caplog.at_level(logging.WARNING, logger="crdiff"):
        assert pasted(params) == DEFAULTS
    assert len(caplog.messages) == 1
    assert "is not used" in caplog.messages[0]


NASTY = [
    'a, b: c "d" \\',
    "x\ny",
    '"quoted"',
    "512x512",
    "ü – ×",
    "a,",
    ': "',
    "\\",
    "k: 3, CR-Diff k: 3",
]


@pytest.mark.parametrize("source", NASTY)
def test_any_source_survives_the_hosts_quoting(source):
    presets = [Preset("sdxl", 512, 512, A, source, "m")]
    job, ran = generate(Settings(), SQUARE, presets)
    params = written(job)
    parsed = plumbing.parse_generation_parameters(plumbing.create_infotext(params))
    assert {key: parsed.get(key) for key in params} == params
    assert again(params, SQUARE, []) == ran


def test_an_infotext_and_a_dictionary_in_one_request():
    # the host puts the infotext's values at their places, then the request's in the first
    values = pasted(written(generate(Settings(), SQUARE)[0]))
    args = [values[name] for name in NAMES]
    args[0] = {"k": 1.0}
    found = settings_from(named(args))
    assert (found.ratios, found.k) == (Ratios(0.397, 0.434, 0.387), 1.0)


def test_numbers_keep_all_their_digits():
    tiny = Settings(ratios=Ratios(0.1 + 0.2, 1 / 3, 2 / 3), k=1e-05, start=1e-7, end=1 - 1e-16)
    params = written(generate(tiny, [Stretch("first", "sdxl", 512, 512)])[0])
    assert params["CR-Diff k"] == "0.00001"
    found = settings_from(pasted(params))
    assert (found.ratios, found.k, found.start, found.end) == (
        tiny.ratios, tiny.k, tiny.start, tiny.end,
    )  # fmt: skip


@pytest.mark.live
@pytest.mark.parametrize("source", [NAME, *NASTY])
def test_the_fake_parses_as_the_real_host_does(source):
    """Runs the real quote, unquote and regular expression of $CRDIFF_WEBUI_DIR on our texts."""
    if "CRDIFF_WEBUI_DIR" not in os.environ:
        pytest.skip("CRDIFF_WEBUI_DIR is not set: no WebUI to compare with")
    path = Path(os.environ["CRDIFF_WEBUI_DIR"], "modules", "infotext_utils.py")
    wanted = {"quote", "unquote", "re_param_code", "re_param", "re_imagesize"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the host's own source
        tree = ast.parse(path.read_text(encoding="utf8"))
    tree.body = [node for node in tree.body if _defines(node) & wanted]
    real: dict = {"re": re, "json": __import__("json")}
    exec(compile(tree, str(path), "exec"), real)
    assert real["re_param"].pattern == plumbing.PARAM.pattern
    assert real["re_imagesize"].pattern == plumbing.IMAGE_SIZE.pattern
    assert real["quote"](source) == plumbing.quote(source)
    assert real["unquote"](real["quote"](source)) == plumbing.unquote(plumbing.quote(source))


def _defines(node):
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def test_keys_that_the_host_cuts_at_the_hyphen(caplog):
    """SD.Next's modules/infotext.py; it makes numbers of texts that look like some, too."""
    settings = Settings(mode="always", ratios=Ratios(0.1, 0.2, 0.3), k=2.0, start=0.25)
    params = written(generate(settings, SQUARE)[0])
    cut = {name.removeprefix("CR-"): text for name, text in params.items()}
    cut["Diff k"] = 2
    assert pasted({**cut, "Steps": 4}) == pasted(params) != DEFAULTS
    assert caplog.messages == []
    assert pasted({"Diff ratios": "0.1/0.2/0.3"}) == DEFAULTS  # somebody else's
