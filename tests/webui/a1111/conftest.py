"""The adapter for A1111 on a fake host, one for each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from crdiff_ext.webui import actor as actor_module
from crdiff_ext.webui.actor import PLANS
from tests.webui.a1111.bench import Bench


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    PLANS.clear()
    made = Bench(monkeypatch)
    yield made
    assert made.host.script_callbacks.errors == []
    assert "apply_model" not in made.host.sd_model.__dict__
    assert made.host.networks.foreign == 0  # LoRAs were merged into dense weights alone


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each plan that is really computed."""
    made: list[Any] = []

    def counted(weights: Any, ratios: Ratios) -> Any:
        made.append(make_plan(weights, ratios))
        return made[-1]

    monkeypatch.setattr(actor_module, "make_plan", counted)
    return made
