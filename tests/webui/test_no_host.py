"""A WebUI without any hook that CR-Diff knows: which adapter it gets, and what that one says."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui import hosts
from crdiff_ext.webui.job import decide_for
from crdiff_ext.webui.no_host import SENTENCE, NoAdapter
from tests.webui.jobs import PRESETS


def test_a_host_without_a_known_hook_gets_an_adapter_that_says_so(monkeypatch, caplog) -> None:
    monkeypatch.setattr(hosts, "there", lambda name: False)
    adapter = hosts.make_adapter()
    assert isinstance(adapter, NoAdapter)
    with caplog.at_level(logging.WARNING, logger="crdiff"):
        adapter.install()
    assert [record.getMessage() for record in caplog.records] == [SENTENCE]
    assert adapter.refused == SENTENCE


@pytest.mark.parametrize("mode", ["auto", "always"])
@pytest.mark.parametrize("ratios", [None, Ratios(0.3, 0.3, 0.3)])
def test_no_image_is_acted_on_and_the_panel_says_why(mode, ratios) -> None:
    facts = NoAdapter().loaded_model()
    assert facts is not None
    settings = Settings(mode=mode, ratios=ratios)
    decision = decide_for(settings, PRESETS, facts, (512, 512))
    assert (decision.act, decision.code, decision.sentence) == (False, "refused", SENTENCE)


def nowhere(monkeypatch) -> logging.Logger:
    """Ours, below a root logger that leads nowhere, as SD.Next's (modules/logger.py).

    Not as a fixture: pytest gives the root handlers of its own before each test.
    """
    logger, root = logging.getLogger("crdiff"), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logger, "handlers", [])
    return logger


def test_warnings_go_where_the_hosts_own_go(monkeypatch) -> None:
    logger = nowhere(monkeypatch)
    theirs = logging.StreamHandler()
    module = ModuleType("modules.logger")
    module.log = SimpleNamespace(handlers=[theirs])
    monkeypatch.setitem(sys.modules, "modules.logger", module)
    hosts.show_notices()
    hosts.show_notices()
    assert logger.handlers == [theirs]


def test_warnings_are_printed_where_the_host_has_no_place_for_them(monkeypatch) -> None:
    logger = nowhere(monkeypatch)
    hosts.show_notices()
    assert [type(handler) for handler in logger.handlers] == [logging.StreamHandler]
