"""The report: enough to look into a problem, nothing private, and bounded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from crdiff_ext import __version__
from crdiff_ext.families import FAMILIES
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui.job import ModelFacts
from crdiff_ext.webui.library import Library
from tests.webui.fakes import plumbing
from tests.webui.jobs import NATIVE_THEN_LARGE, PRESETS, WITH_REFINER, generate

pytest.importorskip("gradio", reason="the report reads the settings page, which needs gradio")


class Library:
    path = Path("/srv/somebody/folder/presets.user.json")
    public_complaint = Library.public_complaint
    complaint = f"the presets file {path} is damaged"

    def presets(self):
        return PRESETS


class Adapter:
    name = "fake"
    facts = ModelFacts(FAMILIES["sdxl"], "folder/tiny.safetensors", refused="why")

    def loaded_model(self):
        return self.facts


COMPLAINT = "the presets file .../presets.user.json is damaged"


@pytest.fixture
def host():
    return plumbing.Host(crdiff_memory="copy")


@pytest.fixture
def report(host):
    with plumbing.loaded(host, "report") as modules:
        modules.report.LOG.clear()
        yield modules.report


def test_what_it_holds(report):
    found = report.collect(Adapter(), Library())
    assert json.loads(json.dumps(found)) == found
    assert found["crdiff"] == __version__
    assert found["packages"]["torch"]
    assert found["host"] == {"adapter": "fake", "version": "v1.8.0", "flags": {"medvram": True}}
    assert found["model"] == {
        "family": "sdxl", "checkpoint": "tiny.safetensors", "refused": "why",
    }  # fmt: skip
    assert found["settings"]["crdiff_memory"] == "copy"
    assert found["presets"] == {"count": len(PRESETS), "complaint": COMPLAINT}
    assert found["extensions"] == ["Lora", "sd-webui-controlnet"]
    assert found["log"] == []


def test_nothing_private(host, report):
    host.cmd_opts.api_auth = "me:hidden"
    text = json.dumps(report.collect(Adapter(), Library()))
    assert "hidden" not in text
    assert "secret" not in text  # --gradio-auth
    assert "folder" not in text
    assert "somebody" not in text


def test_without_a_model(report):
    adapter = Adapter()
    adapter.facts = None
    assert report.collect(adapter, Library())["model"] is None


def test_the_log_is_bounded_and_dated(report):
    for index in range(120):
        report.remember(f"decision {index}")
    assert len(report.LOG) == 50
    assert report.LOG[-1].endswith("Z decision 119")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", report.LOG[0])


def test_what_was_asked_for(report):
    report.asked(Settings())
    report.asked(Settings(ratios=Ratios(0.1, 0.2, 0.3), k=2))
    assert report.LOG[0].endswith("asked for: the defaults")
    assert "'k': 2.0" in report.LOG[1]
    assert "'mid': 0.2" in report.LOG[1]
    assert "mode" not in report.LOG[1]


def test_what_ran(report):
    report.ran(generate(Settings(), NATIVE_THEN_LARGE)[0])
    assert len(report.LOG) == 1
    assert report.LOG[0].endswith(
        "hires pass at 2048x2048 on sdxl.safetensors: 4 dense and 4 pruned forwards"
    )
    report.ran(generate(Settings(end=0.5), WITH_REFINER)[0])
    assert report.LOG[2].endswith(
        "first pass after the refiner switch at 512x512 on sdxl-refiner.safetensors: "
        "4 dense and 2 pruned forwards"
    )
