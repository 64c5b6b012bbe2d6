"""Made folders of runs, and a Chromium where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.folders import write_run
from tests.webui import browsing


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    write_run(folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A started Chromium; skips without one or without playwright."""
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = browsing.find_chromium()
    if not found:
        pytest.skip("no Chromium is installed (on Debian: apt install chromium)")
    with browsing.browser(found) as started:
        yield started
