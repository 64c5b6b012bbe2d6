"""Hosts of the Forge family with small transformers loaded, for tests to import the fixtures."""

from __future__ import annotations

import pytest

from crdiff_ext import dit_shapes
from crdiff_ext.settings import Settings
from crdiff_ext.webui.actor import PLANS
from tests.webui.fakes import neo, transformers
from tests.webui.fakes.forge_process import Engine, Host
from tests.webui.fakes.forge_world import attach
from tests.webui.fakes.transformers import KINDS

RATIO = 0.4
ON = Settings(mode="always", ratios=f"{RATIO}")
FAMILY_NAMES = list(KINDS)
ONE_CALL = {"steps": 1, "cfg": 1.0}
OTHER = (
    "CR-Diff: this model is not supported: it is a transformer of another structure than SD3, "
    "SD3.5, FLUX dev and FLUX schnell have"
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for family, fingerprint in transformers.FINGERPRINTS.items():
        monkeypatch.setitem(dit_shapes.KNOWN, fingerprint, family)
    PLANS.clear()
    yield
    assert neo.ForgeWeights.weight_function == [], "the list that all layers share was written to"


@pytest.fixture(params=["forge", "neo"])
def world(request, monkeypatch):
    """``make(kind, ...)`` gives a host with such a transformer loaded."""

    def make(kind, **more):
        made = KINDS[kind] if isinstance(kind, str) else kind
        host = hosts[request.param](made, more)
        attach(monkeypatch, host, host.modules())
        return host

    hosts = {
        "forge": lambda made, more: Host(Engine("base", made(**more))),
        "neo": lambda made, more: neo.NeoHost(
            neo.NeoEngine("base", made(layer_type=neo.Linear, **more))
        ),
    }
    make.name = request.param
    return make
