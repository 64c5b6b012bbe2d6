"""A person refines by eye, in the page of whichever host runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.client import SIDE, STEPS
from tests.live.test_browser_live import SECONDS, chromium, model, page, panel, photo, type_into

__all__ = ["chromium", "model", "page", "panel", "photo"]


@pytest.fixture
def by_hand(client: Any) -> Iterator[None]:
    client.post("/sdapi/v1/options", {"crdiff_reward": "hand"})
    yield
    client.post("/sdapi/v1/options", {"crdiff_reward": "auto"})


def test_two_buttons_choose(by_hand: None, panel: Any, client: Any, photo: Any) -> None:
    page = panel.page
    page.locator("#txt2img_prompt textarea").fill("a red circle")
    panel.unfold()
    panel.size(SIDE, SIDE)
    panel.choose("mode", "always")
    panel.choose("ratios", "set")
    type_into(page, "txt2img_steps", STEPS)
    panel.unfold("refine")
    panel.part("refresh").click()
    panel.number("refine_budget", 4)
    panel.number("refine_seeds", 1)
    client.counts()
    panel.part("refine_run").click()
    second = panel.part("refine_second")
    second.wait_for(timeout=SECONDS)
    panel.says("which is better", where="refine_result")
    counts = client.counts()
    assert counts["pruned"] > 0
    assert counts["dense"] == 2 * counts["pruned"]  # two images, and only the second acts
    photo(page, "by-hand")
    for _ in range(3):
        panel.says("which is better", where="refine_result")
        before = panel.part("refine_result").inner_text()
        second.click()
        page.wait_for_function(
            "before => document.querySelector('#script_txt2img_crdiff_refine_result').innerText"
            " != before",
            arg=before,
            timeout=SECONDS,
        )
    panel.says("the budget is spent", where="refine_result")
    assert not second.is_visible()
    panel.part("refine_use").click()
    panel.says("(set by hand)")
    found = client.get("/crdiff/v1/refine")["results"][0]
    assert [row["number"] for row in found["rows"]] == [3]
    photo(page, "by-hand-done")
