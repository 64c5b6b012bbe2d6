"""The panel of an opened page, as a person uses it; for fake pages and for real hosts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = int(os.environ.get("CRDIFF_PATIENCE", "60000"))
"""Milliseconds; a loaded machine is slow, a hung page is a failure."""


def find_chromium() -> str | None:
    """The path of an installed Chromium; CRDIFF_CHROMIUM names another one."""
    named = os.environ.get("CRDIFF_CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browser(path: str) -> Iterator[Any]:
    """A headless Chromium."""
    from playwright import sync_api

    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


@contextmanager
def opened(browser: Any, address: str, whose: str = "") -> Iterator[Any]:
    """A page; fails at the end if a script in it raised, one whose trace names ``whose``.

    Asks nothing of other machines (fonts).
    """
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
    page.route("**/*", lambda route: route.continue_() if _is_own(route) else route.abort())
    page.goto(address)
    yield page
    page.close()
    assert [error for error in errors if whose in error] == []


def _is_own(route: Any) -> bool:
    return "127.0.0.1" in route.request.url or not route.request.url.startswith("http")


class Panel:
    """CR-Diff's panel in one tab of a page."""

    def __init__(self, page: Any, tab: str = "txt2img") -> None:
        self.page, self.tab = page, tab

    def part(self, name: str) -> Any:
        """One of its components; gradio 3 gives an HTML block's id to its inner element as well."""
        return self.page.locator(f"#script_{self.tab}_crdiff_{name}").first

    @property
    def tick(self) -> Any:
        """The switch in its title."""
        return self.part("enabled-visible-checkbox")

    def unfold(self, name: str = "enabled") -> None:
        """Open, or close, it or one of the accordions in it."""
        self.tick.wait_for()  # the host's scripts are done
        self.part(name).locator(".label-wrap").first.click()

    def says(self, text: str, where: str = "line") -> None:
        """Wait until the line holds ``text``."""
        from playwright.sync_api import expect

        expect(self.part(where)).to_contain_text(text)

    def choose(self, name: str, value: str) -> None:
        """Set a radio."""
        self.part(name).get_by_label(value, exact=True).check()

    def number(self, name: str, value: float) -> None:
        """Type a slider's number."""
        self._type(f"script_{self.tab}_crdiff_{name}", value)

    def size(self, height: int, width: int) -> None:
        """Type the page's size."""
        self._type(f"{self.tab}_width", width)
        self._type(f"{self.tab}_height", height)

    def _type(self, elem_id: str, value: float) -> None:
        field = self.page.locator(f"#{elem_id} input[type=number]")
        field.fill(str(value))
        field.press("Tab")
