"""The panel in a real headless Chromium: clicked, resized, photographed.

The photographs are left in pytest's temporary folder (``--basetemp``), or in CRDIFF_PHOTOS.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from crdiff_ext.presets import load_presets
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.arguments import DEFAULTS, NAMES
from crdiff_ext.webui.library import Library
from tests.webui import browsing

pytest.importorskip("gradio", reason="needs gradio: run `make test-webui`")
expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect

STORED = "SDXL 512x512: stored ratios 0.397 / 0.434 / 0.387 (paper, Figure 7a)"


@pytest.fixture(scope="module")
def browser(chromium):
    with browsing.browser(chromium) as started:
        yield started


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    import gradio

    folder = Path(os.environ.get("CRDIFF_PHOTOS") or tmp_path_factory.mktemp("photos"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: folder / f"gradio-{gradio.__version__}-{name}.png"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One served page: its address, its adapter (which model is loaded), its presets file."""
    from tests.webui.fakes.gradio_host import FakeAdapter, Host, installed, served

    path = tmp_path_factory.mktemp("presets") / "presets.user.json"
    with installed() as webui:
        adapter = FakeAdapter.of("sdxl")
        host = Host(adapter, Library(path), webui.panel)
        with served(host.page()) as address:
            yield SimpleNamespace(address=address, host=host, adapter=adapter, path=path)


@pytest.fixture
def page(site, browser):
    """The page, freshly opened with SDXL loaded, and without errors while it was used."""
    from tests.webui.fakes.gradio_host import FakeAdapter

    site.adapter.facts = FakeAdapter.of("sdxl", hash="31e35c80fc").facts
    site.path.unlink(missing_ok=True)
    site.host.generated.clear()
    with browsing.opened(browser, site.address) as opened:
        yield opened


@pytest.fixture
def panel(page):
    return browsing.Panel(page)


def to_tab(page, tab):
    page.locator("button", has_text=tab).first.click()


def generate(page, site, tab="txt2img"):
    """Press Generate; returns the arguments that arrive at the script."""
    before = len(site.host.generated)
    page.locator(f"#{tab}_generate").click()
    for _ in range(300):
        if len(site.host.generated) > before:
            return dict(zip(NAMES, site.host.generated[-1], strict=True))
        page.wait_for_timeout(100)
    raise AssertionError("nothing was generated")


def test_untouched_it_is_closed_on_and_tells_in_its_title(page, panel, site, photos):
    expect(panel.part("head")).to_contain_text("acts")
    assert panel.tick.is_checked()
    assert not panel.part("mode").is_visible()
    page.screenshot(path=photos("closed"))
    assert generate(page, site) == DEFAULTS


@pytest.mark.parametrize("width", [600, 760])
def test_no_number_sticks_out_of_its_block(page, panel, width):
    page.set_viewport_size({"width": width, "height": 1000})
    panel.unfold()
    panel.says(STORED)
    for name in ("down", "mid", "up", "k", "start", "end"):
        block = panel.part(name).bounding_box()
        number = panel.part(name).locator("input[type=number]").bounding_box()
        assert number["x"] + number["width"] <= block["x"] + block["width"]


def test_the_line_follows_the_size_sliders(page, panel, photos):
    panel.unfold()
    panel.says(STORED)
    page.screenshot(path=photos("512x512"), full_page=True)
    panel.size(1024, 1024)
    panel.says("1024x1024 is native: inactive")
    expect(panel.part("head")).to_have_text("○ inactive")
    page.screenshot(path=photos("1024x1024"), full_page=True)
    slider = page.locator("#txt2img_height input[type=range]")
    slider.focus()
    for height in (1016, 1008, 1000):  # one at a time: a busy page loses presses
        slider.press("ArrowLeft")
        panel.says(f"{height}x1024 is native")
    panel.size(400, 560)
    panel.says("SDXL 400x560: ratios 0.397 / 0.434 / 0.387 stored for 512x512, the nearest size")


def test_open_and_on_are_two_things(page, panel, site):
    panel.tick.wait_for()
    for _ in range(2):
        panel.unfold()
        panel.part("mode").wait_for()
        assert panel.tick.is_checked()
        panel.unfold()
        panel.part("mode").wait_for(state="hidden")
        assert panel.tick.is_checked()
    panel.tick.uncheck()
    expect(panel.part("head")).to_have_text("○ off")
    assert not panel.part("mode").is_visible()
    assert generate(page, site)["enabled"] is False
    panel.tick.check()
    expect(panel.part("head")).to_have_text("● acts")
    assert generate(page, site)["enabled"] is True


def test_controls_change_the_line_and_reach_the_script(page, panel, site):
    panel.unfold()
    panel.choose("ratios", "set")
    panel.number("mid", 0.125)
    panel.says("SDXL 512x512: ratios 0.3 / 0.125 / 0.3 (set by hand)")
    panel.size(1024, 1024)
    panel.says("1024x1024 is native: inactive")
    panel.choose("mode", "always")
    panel.says("SDXL 1024x1024: ratios 0.3 / 0.125 / 0.3 (set by hand)")
    panel.says("x2.0 UNet time while acting")
    panel.choose("amplification", "folded")
    panel.says("x1.0 folded, approximate")
    panel.choose("mode", "off")
    panel.says("CR-Diff is switched off")
    assert generate(page, site) == {
        **DEFAULTS, "mode": "off", "ratios": "set", "mid": 0.125, "amplification": "folded",
    }  # fmt: skip


def test_a_wrong_value_is_said_at_once(panel):
    panel.unfold()
    panel.number("end", 0)
    panel.says("start is 0: it must be below end, 0; images will be made without CR-Diff")


def test_the_hires_pass_is_said_too(page, panel, photos):
    panel.unfold()
    panel.unfold("more")
    page.locator("#txt2img_hr-visible-checkbox").check()
    panel.says(f"First pass: {STORED}")
    panel.says("Hires pass: 1024x1024 is native: inactive")
    panel.choose("mode", "always")
    panel.choose("hires_ratios", "set")
    panel.number("hires_up", 0.5)
    panel.says("Hires pass: SDXL 1024x1024: ratios 0.3 / 0.3 / 0.5 (set by hand)")
    page.screenshot(path=photos("hires"), full_page=True)


def test_another_model_is_noticed(page, panel, site):
    from tests.webui.fakes.gradio_host import FakeAdapter

    panel.unfold()
    panel.says(STORED)
    site.adapter.facts = None
    panel.part("refresh").click()
    panel.says("no model is loaded yet")
    site.adapter.facts = FakeAdapter.of("sd15").facts
    generate(page, site)  # a host may load the model only now
    panel.says("512x512 is native: inactive")
    site.adapter.facts = FakeAdapter.of("sdxl").facts
    page.evaluate("optionsCallbacks.forEach((callback) => callback())")  # the checkpoint changed
    panel.says(STORED)


def test_img2img_has_a_panel_of_its_own(page, panel, site):
    to_tab(page, "img2img")
    there = browsing.Panel(page, "img2img")
    there.unfold()
    there.size(1024, 1024)
    there.says('1024x1024 is native: inactive (for the size under "Resize to")')
    to_tab(page, "txt2img")
    panel.unfold()
    panel.says(STORED)


def test_stored_ratios_are_saved_used_moved_and_deleted(page, panel, site, photos):
    panel.unfold()
    panel.unfold("stored")
    panel.size(512, 640)
    panel.number("up", 0.111)
    panel.choose("stored_scope", "this checkpoint only")
    panel.part("stored_save").click()
    message = panel.part("stored_message")
    expect(message).to_contain_text("saved: SDXL 512x640 (31e35c80fc)")
    saved = load_presets(site.path)
    assert [(preset.key, preset.ratios) for preset in saved] == [
        (("sdxl", 512, 640, "31e35c80fc"), Ratios(0.3, 0.3, 0.111))
    ]
    panel.says("SDXL 512x640: stored ratios 0.3 / 0.3 / 0.111 (set by hand, for this checkpoint)")
    page.screenshot(path=photos("editor"), full_page=True)

    panel.part("stored_export").click()
    text = panel.part("stored_text").locator("textarea")
    expect(text).to_have_value(site.path.read_text())
    entry = panel.part("stored_entry").locator("input")
    entry.click()
    page.locator("ul.options li", has_text="SDXL 512x640").click()
    panel.number("up", 0.4)
    panel.part("stored_use").click()
    panel.says("SDXL 512x640: ratios 0.3 / 0.3 / 0.111 (set by hand)")
    panel.part("stored_delete").click()
    expect(message).to_contain_text("deleted: SDXL 512x640")
    assert load_presets(site.path) == []
    panel.part("stored_import").click()
    expect(message).to_contain_text("imported: 1 new, 0 replaced")
    assert load_presets(site.path) == saved
    text.fill("{")
    panel.part("stored_import").click()
    expect(message).to_contain_text("not JSON")
    assert load_presets(site.path) == saved
