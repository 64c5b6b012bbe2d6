"""The page's tests need gradio, and a browser for some: `make test-webui` brings both."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.webui.browsing import find_chromium

# No calls home, no proxy between a test and its own server.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

HAS_GRADIO = importlib.util.find_spec("gradio") is not None
NEEDS_GRADIO = {
    "test_panel.py",
    "test_line.py",
    "test_editor.py",
    "test_browser.py",
    "test_refine_panel.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without gradio, the tests of the page are skipped with a reason."""
    for item in items:
        if not HAS_GRADIO and item.path.parent.name == "webui" and item.path.name in NEEDS_GRADIO:
            item.add_marker(pytest.mark.skip(reason="needs gradio: run `make test-webui`"))


@pytest.fixture
def webui() -> Iterator[SimpleNamespace]:
    """The package's page modules inside a fake host."""
    from tests.webui.fakes.gradio_host import installed

    with installed() as modules:
        yield modules


@pytest.fixture
def library(tmp_path: Path) -> Any:
    """A user's presets, none yet."""
    from crdiff_ext.webui.library import Library

    return Library(tmp_path / "presets.user.json")


@pytest.fixture
def host(webui: SimpleNamespace, library: Any) -> Any:
    """A fake host whose page has the panel, and that has SDXL loaded."""
    from tests.webui.fakes.gradio_host import FakeAdapter, Host

    return Host(FakeAdapter.of("sdxl"), library, webui.panel)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of an installed Chromium."""
    found = find_chromium()
    if not found:
        pytest.skip("no Chromium is installed (on Debian: apt install chromium)")
    return found
