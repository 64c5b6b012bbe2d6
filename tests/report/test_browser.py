"""The page in a real headless Chromium, opened as a file.

Photographs are left in pytest's temporary folder, or in CRDIFF_PHOTOS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report.page import write_report
from harness.report.source import read_source

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(run_folder: Path) -> str:
    path = run_folder / "report.html"
    write_report(read_source(run_folder), path)
    return path.as_uri()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("CRDIFF_PHOTOS") or tmp_path_factory.mktemp("photos"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A page; at its end nothing was asked of anyone, and no error was raised or logged."""
    page = browser.new_page(**options)
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on(
        "request",
        lambda request: (
            None
            if request.url == address or request.url.startswith("data:")
            else wrong.append(request.url)
        ),
    )
    page.goto(address)
    yield page
    page.close()
    assert wrong == []


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    yield from opened(chromium, address, viewport=WIDE)


ORDERS = """() => [...document.querySelectorAll("section.size")].map((section) =>
  [...section.querySelectorAll(".case")].filter((row) => row.getClientRects().length)
    .map((row) => Number(row.dataset.order)))"""
DIFFERENCES = """([method, metric]) => [...document.querySelectorAll("section.size")].map((s) =>
  [...s.querySelectorAll(`figure[data-method="${method}"]`)].map((figure) =>
    JSON.parse(figure.dataset.differences)[metric]))"""
SHARE = "() => getComputedStyle(document.querySelector('.stage')).getPropertyValue('--share')"


def test_captions_do_not_run(page: Any) -> None:
    assert page.title() == "CR-Diff run: made <model>"
    assert page.locator("h4", has_text="<script>document.title").count() == 2
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def test_the_policy_refuses_other_scripts(chromium: Any, address: str) -> None:
    page = chromium.new_page()
    page.goto(address)
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); }"
    )
    assert page.evaluate("window.ran") is None
    page.close()


def test_sorting_and_filters(page: Any) -> None:
    natural = page.evaluate(ORDERS)
    assert natural == [list(range(8)), list(range(8))]
    page.select_option("#filter-method", "crdiff")
    page.select_option("#sort-by", "0")
    for value in page.evaluate(DIFFERENCES, ["crdiff", 0]):
        assert value == sorted(value, reverse=True)
    assert page.evaluate(ORDERS) != natural
    page.select_option("#sort-way", "1")
    for value in page.evaluate(DIFFERENCES, ["crdiff", 0]):
        assert value == sorted(value)
    page.select_option("#sort-way", "0")
    for value in page.evaluate(DIFFERENCES, ["crdiff", 0]):
        assert [abs(one) for one in value] == sorted(map(abs, value), reverse=True)
    page.select_option("#sort-by", "")
    assert page.evaluate(ORDERS) == natural
    page.select_option("#filter-size", "160x96")
    assert page.evaluate(ORDERS) == [[], list(range(8))]
    assert page.locator(".tools output").inner_text() == "8 of 16 rows"
    shown = (
        "[...document.querySelectorAll('.case figure')].filter((f) => f.getClientRects().length)"
    )
    methods = page.evaluate(f"[...new Set({shown}.map((f) => f.dataset.method))]")
    assert methods == ["dense", "crdiff"]


def test_one_metric_of_cost_at_a_time(page: Any) -> None:
    shown = page.locator(".cost:visible")
    assert [shown.nth(i).get_attribute("data-metric") for i in range(shown.count())] == ["0", "0"]
    page.select_option("#cost-metric", "2")
    assert [shown.nth(i).get_attribute("data-metric") for i in range(shown.count())] == ["2", "2"]


def test_divider_by_mouse_and_keys(page: Any, photos: Path) -> None:
    button = page.locator('figure[data-method="crdiff"] button').first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    dialog.wait_for()
    assert page.evaluate(SHARE) == "50%"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(SHARE) == "52%"
    box = page.locator(".stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    assert page.evaluate(SHARE) == "20%"
    page.mouse.move(box["x"] - 500, middle)
    assert page.evaluate(SHARE) == "0%"
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] * 0.7, middle)
    assert page.evaluate(SHARE) == "0%"  # let go
    page.mouse.click(box["x"] + box["width"] * 0.6, middle)
    clip = "getComputedStyle(document.querySelector('.over')).clipPath"
    assert page.evaluate(clip) == "inset(0px 0px 0px 60%)"
    assert "document.title = 'hacked'" in dialog.locator("h3").inner_text()
    assert "Dense" in dialog.locator(".left").inner_text()
    page.screenshot(path=photos / "dialog.png")
    before = dialog.locator(".over").get_attribute("src")
    dialog.locator(".next").click()
    assert dialog.locator(".over").get_attribute("src") != before
    dialog.locator(".previous").click()
    assert dialog.locator(".over").get_attribute("src") == before
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_themes_differ(
    chromium: Any, address: str, photos: Path, scheme: str
) -> None:
    for name, size in (("wide", WIDE), ("narrow", NARROW)):
        for page in opened(chromium, address, viewport=size, color_scheme=scheme):
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"]
            sides = page.evaluate(
                "[...document.querySelectorAll('.case img')].map((image) =>"
                " Math.max(image.clientWidth, image.clientHeight))"
            )
            assert min(sides) >= 100
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(251, 251, 249)", "dark": "rgb(22, 24, 27)"}[scheme]
            page.screenshot(path=photos / f"{name}-{scheme}.png", full_page=True)


def test_without_scripts_it_is_whole(chromium: Any, address: str) -> None:
    for page in opened(chromium, address, viewport=WIDE, java_script_enabled=False):
        assert page.locator(".case").count() == 16
        assert page.locator(".tools").first.is_hidden()
        assert page.locator(".scores").is_visible()
        charts = page.locator(".cost")
        assert all(charts.nth(i).is_visible() for i in range(charts.count()))
        image = page.locator(".case img").first
        image.scroll_into_view_if_needed()
        assert image.bounding_box()["height"] == 168
