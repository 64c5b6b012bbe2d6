"""A person presses Reload UI: the host makes its page, its API and its scripts anew."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.live.client import OFF, SIDE, STEPS, Client, Drawn, on
from tests.live.host import Server
from tests.live.test_browser_live import (
    SECONDS,
    chromium,
    generated,
    model,
    page,
    photo,
    type_into,
)
from tests.webui import browsing

__all__ = ["chromium", "model", "page", "photo"]

PROMPT = "a red circle to the left of a blue square, white background"
TICK = "customscript/crdiff.py/txt2img/Enable CR-Diff/value"
"""The panel's switch, among the defaults that a user may save (modules/ui_loadsave.py)."""


@dataclass(frozen=True)
class Before:
    """What was seen before the page was reloaded, twice."""

    off: Drawn
    acting: Drawn
    in_page: tuple[str, str]  # pixel hash and infotext
    registered: dict[str, list[str]]
    rewards: list[int]
    rewards_after: list[int]
    tick_by_default: bool | None  # None: the host saves no default of it


@dataclass(frozen=True)
class After:
    """The panel when it was back, and an image drawn with it."""

    panel: Any
    ticked: bool
    unfolded: bool
    in_page: tuple[str, str]
    counts: dict[str, int]


@pytest.fixture(scope="module")
def before(server: Server, model: str, page: Any) -> Iterator[Before]:
    """The host after two reloads: one with the switch saved as off, one with it on again."""
    server.client.post("/sdapi/v1/options", {"crdiff_reward": "embedded"})
    try:
        yield seen_and_reloaded(server, model, page)
    finally:
        server.client.post("/sdapi/v1/options", {"crdiff_reward": "auto"})


def seen_and_reloaded(server: Server, model: str, page: Any) -> Before:
    client = server.client
    client.set_model(model)
    page.reload()  # which asks who judges
    browsing.Panel(page).tick.wait_for()
    client.refine({"budget": 3, "seeds": 1, "session": "before"}, on(), prompt=PROMPT)
    off, acting = client.draw(OFF), client.draw(on())
    in_page = generate_in(page)
    registered = client.get("/crdiff-probe/registered")
    rewards = server.rewards()
    ticked = None
    if save_default(server, False):
        reload(page, server)
        ticked = browsing.Panel(page).tick.is_checked()
        assert save_default(server, True)
    reload(page, server)
    return Before(off, acting, in_page, registered, rewards, server.rewards(), ticked)


@pytest.fixture(scope="module")
def after(before: Before, server: Server, model: str, page: Any) -> After:
    """The page that was reloaded, used as before."""
    server.client.set_model(model)
    panel = browsing.Panel(page)
    ticked, unfolded = panel.tick.is_checked(), panel.part("mode").is_visible()
    server.client.counts()
    return After(panel, ticked, unfolded, generate_in(page), server.client.counts())


def save_default(server: Server, value: bool) -> bool:
    """Save the switch's default as Settings, Defaults does; False: the host keeps none of it."""
    file = server.data / "ui-config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    if TICK not in saved:
        return False
    saved[TICK] = value
    file.write_text(json.dumps(saved, indent=4, ensure_ascii=False), encoding="utf-8")
    return True


def reload(page: Any, server: Server) -> None:
    """Press the button, and wait until the page is back with the panel in it."""
    starts = server.starts()

    def ready(route: Any) -> None:
        """Let the page's ping through when all is served: one in the middle can end the host.

        (webui.py: "Cannot add middleware after an application has started")
        """
        if server.starts() > starts:
            route.continue_()
        else:
            route.abort()

    page.route("**/internal/ping", ready)
    page.evaluate("window.crdiffBefore = true")
    page.locator("#tabs > .tab-nav button", has_text="Settings").first.click()
    page.locator("#settings_restart_gradio").click()
    page.wait_for_function(
        "() => !window.crdiffBefore && document.querySelector('#script_txt2img_crdiff_line')",
        timeout=SECONDS,
    )
    page.unroute("**/internal/ping")
    assert server.starts() == starts + 1
    browsing.Panel(page).tick.wait_for()


def generate_in(page: Any) -> tuple[str, str]:
    """Generate in the page with CR-Diff acting: the image's pixel hash, and its infotext."""
    panel = browsing.Panel(page)
    panel.unfold()
    panel.says("embedded", where="refine_judge")  # what the page asks for when it opens is there
    page.locator("#txt2img_prompt textarea").fill(PROMPT)
    panel.choose("mode", "always")
    panel.choose("ratios", "set")
    resize(panel)
    panel.says(f"{SIDE}x{SIDE}: ratios 0.3 / 0.3 / 0.3 (set by hand)")
    type_into(page, "txt2img_steps", STEPS)
    type_into(page, "txt2img_seed", 5)
    text = generated(page)
    shown = page.locator("#txt2img_gallery img").first
    shown.wait_for()
    data = page.request.get(shown.evaluate("image => image.src")).body()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16], text.split("Time taken")[0]


def resize(panel: Any) -> None:
    """Type the size until it stays: Forge's page sets one of its own some time after it opens."""
    fields = [f"#txt2img_{side} input[type=number]" for side in ("width", "height")]
    for _ in range(10):
        panel.size(SIDE, SIDE)
        panel.page.wait_for_timeout(1000)
        if [panel.page.locator(field).input_value() for field in fields] == [str(SIDE)] * 2:
            return
    raise AssertionError("the page doesn't keep the size that is typed")


def test_the_child_has_ended_with_the_page(before: Before) -> None:
    assert len(before.rewards) == 1
    assert before.rewards_after == []
    assert not Path(f"/proc/{before.rewards[0]}").exists()  # not left to itself either


def test_nothing_is_there_twice(before: Before, client: Client) -> None:
    now = client.get("/crdiff-probe/registered")
    assert now == before.registered
    for name, found in now.items():
        if name != "callbacks":  # two tabs, each with the button's
            assert len(found) == len(set(found)), name
    assert len(now["axes"]) >= 10
    assert len(now["routes"]) >= 4
    assert len(now["scripts"]) == 4


def test_the_same_images_through_the_api(
    before: Before, client: Client, model: str, note: Any
) -> None:
    client.set_model(model)
    acting, off = client.draw(on()), client.draw(OFF)
    note(on=acting.hash, off=off.hash, passes=acting.passes)
    assert (acting.hash, acting.passes) == (before.acting.hash, before.acting.passes)
    assert (off.hash, off.passes) == (before.off.hash, before.off.passes)
    assert acting.hash != off.hash
    assert acting.pruned == acting.dense == off.dense > off.pruned == 0
    assert "mode" in json.dumps(client.get("/crdiff/v1/schema"))
    said = client.post("/crdiff/v1/resolve", {"model": "sdxl", "height": 512, "width": 512})
    assert said["act"] is True
    assert client.get("/crdiff/v1/refine")["results"][0]["session"] == "before"


def test_the_panel_is_back_and_acts(before: Before, after: After, page: Any, photo: Any) -> None:
    assert after.ticked
    assert not after.unfolded
    assert after.in_page == before.in_page
    assert after.counts["pruned"] == after.counts["dense"] == before.acting.dense
    photo(page, "reloaded")


def test_a_saved_default_counts_after_a_reload(before: Before, server: Server) -> None:
    # Forge keeps no default of a switch like the panel's (modules/ui_loadsave.py, InputAccordion).
    assert before.tick_by_default is (None if server.kind == "forge" else False)


def test_the_button_refines_again(
    before: Before, after: After, client: Client, model: str, page: Any, server: Server, note: Any
) -> None:
    client.set_model(model)
    client.counts()
    panel = after.panel
    panel.unfold("refine")
    panel.says("embedded", where="refine_judge")
    panel.number("refine_budget", 3)
    panel.number("refine_seeds", 1)
    panel.part("refine_run").click()
    table = page.locator("table.crdiff-refined")
    table.wait_for(timeout=SECONDS)
    assert table.locator("tr").count() == 1 + 3
    counts = client.counts()
    assert 0 < counts["pruned"] <= 2 * before.acting.pruned
    assert counts["dense"] + counts["pruned"] <= 5 * before.acting.dense
    found = client.get("/crdiff/v1/refine")["results"][0]
    assert {row["kind"] for row in found["rows"]} == {"dense", "start", "candidate"}
    assert all(row["score"] is not None for row in found["rows"])
    (child,) = server.rewards()
    assert child not in before.rewards
    os.kill(child, 0)  # it waits for the next search
    panel.part("refine_use").click()
    panel.says("on the sliders: ", where="refine_message")
    note(message=found["message"], **counts)
