"""A person with a browser: opens the page, switches CR-Diff on, reads the line, generates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import checkpoints
from tests.webui import browsing

KNOWN = {"a1111": ("embedded model", (128, 128)), "forge": ("SD1.5", (512, 512))}
"""For each kind of host: the label of its checkpoint's family, and the native size."""
SECONDS = 300_000  # milliseconds for a generation on a loaded machine


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of an installed Chromium, or a skip."""
    found = browsing.find_chromium()
    if not found:
        pytest.skip("no Chromium is installed (on Debian: apt install chromium)")
    return found


@pytest.fixture(scope="module")
def model(server: Any, models: Path) -> str:
    """A checkpoint whose family is known: A1111's tiny ones are of none."""
    if server.family == "forge":
        return checkpoints.FIRST["forge"]
    from harness.cli import main

    path = models / "embedded.safetensors"
    assert main(["export", str(path), "--dtype", "fp32"]) == 0
    server.client.post("/sdapi/v1/refresh-checkpoints")
    return path.name


@pytest.fixture(scope="module")
def page(server: Any, chromium: str) -> Iterator[Any]:
    """The host's page, with the extension in it."""
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with (
        browsing.browser(chromium) as started,
        browsing.opened(started, server.url, "crdiff") as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def photo(server: Any, tmp_path_factory: Any) -> Any:
    """``photo(page, name)``: a photograph in CRDIFF_LIVE_OUT, or in pytest's own folder."""
    folder = Path(os.environ.get("CRDIFF_LIVE_OUT") or tmp_path_factory.mktemp("photos"))
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Any, name: str) -> None:
        page.screenshot(path=folder / f"{server.kind}-{name}.png")

    return take


def generated(page: Any) -> str:
    """Press Generate, wait for the image; returns the infotext below it."""
    information = page.locator("#html_info_txt2img").first
    before = information.inner_text()
    page.locator("#txt2img_generate").click()
    page.wait_for_function(
        "before => !['', before].includes(document.querySelector('#html_info_txt2img').innerText)",
        arg=before,
        timeout=SECONDS,
    )
    text: str = information.inner_text()
    return text


def type_into(page: Any, elem_id: str, value: object) -> None:
    field = page.locator(f"#{elem_id} input[type=number]").first
    field.fill(str(value))
    field.press("Tab")


@pytest.fixture
def panel(page: Any, client: Any, model: str) -> Any:
    """The panel, with a model of a known family."""
    client.set_model(model)
    panel = browsing.Panel(page)
    panel.tick.wait_for()
    panel.part("refresh").dispatch_event("click")
    client.counts()
    return panel


def test_a_person_switches_it_on(
    panel: Any, client: Any, server: Any, photo: Any, note: Any
) -> None:
    page = panel.page
    assert panel.tick.is_checked()  # on, and closed
    assert not panel.part("mode").is_visible()
    panel.unfold()
    assert panel.tick.is_checked()  # open is not on, and closed is not off
    label, (height, width) = KNOWN[server.family]
    panel.size(height, width)
    panel.says(f"{height}x{width} is native: inactive")

    panel.choose("mode", "always")
    panel.choose("ratios", "set")
    panel.number("mid", 0.25)
    panel.size(128, 192)
    panel.says(f"{label} 128x192: ratios 0.3 / 0.25 / 0.3 (set by hand)")
    panel.size(192, 128)
    panel.says(f"{label} 192x128: ratios 0.3 / 0.25 / 0.3 (set by hand)")
    panel.says("x2.0 UNet time while acting")
    photo(page, "panel")
    page.locator("#txt2img_prompt textarea").fill("a cat")
    type_into(page, "txt2img_steps", 3)
    type_into(page, "txt2img_seed", 7)
    infotext = generated(page)
    counts = client.counts()
    assert "CR-Diff ratios: 0.3/0.25/0.3" in infotext
    assert "CR-Diff mode: always" in infotext
    assert counts["dense"] == counts["pruned"] > 0
    photo(page, "generated")
    note(infotext=infotext, **counts)


def test_a_person_chooses_folded(panel: Any, client: Any, photo: Any, note: Any) -> None:
    page = panel.page
    panel.size(192, 128)
    panel.choose("mode", "always")
    panel.choose("ratios", "set")
    panel.choose("amplification", "folded")
    panel.says("x1.0 folded, approximate")
    photo(page, "folded")
    type_into(page, "txt2img_seed", 11)
    infotext = generated(page)
    counts = client.counts()
    assert "CR-Diff amplification: folded" in infotext
    assert counts["dense"] <= 1 < counts["pruned"]
    note(infotext=infotext, **counts)
    panel.choose("amplification", "exact")
    panel.says("x2.0 UNet time while acting")


def test_the_tick_switches_it_off(panel: Any, client: Any) -> None:
    page = panel.page
    panel.size(192, 128)
    panel.choose("mode", "always")
    panel.tick.uncheck()
    panel.says("CR-Diff is switched off")
    panel.says("off", where="head")
    type_into(page, "txt2img_seed", 8)
    assert "CR-Diff" not in generated(page)
    counts = client.counts()
    assert (counts["dense"] > 0, counts["pruned"]) == (True, 0)
    panel.tick.check()


def test_ratios_are_stored_in_the_page(panel: Any, client: Any, server: Any) -> None:
    page, label = panel.page, KNOWN[server.family][0]
    panel.unfold("stored")
    panel.size(144, 208)
    panel.number("up", 0.125)
    panel.part("stored_save").click()
    panel.says(f"saved: {label} 144x208, ", where="stored_message")
    assert '"up": 0.125' in (server.data / "presets.json").read_text(encoding="utf-8")
    panel.choose("mode", "auto")
    panel.choose("ratios", "stored")
    panel.says(f"{label} 144x208: stored ratios 0.3 / 0.25 / 0.125 (set by hand)")
    type_into(page, "txt2img_seed", 9)
    assert f"CR-Diff preset: {label} 144x208 (set by hand)" in generated(page)
    assert client.counts()["pruned"] > 0
    (server.data / "presets.json").unlink()
