"""What only Forge Neo has: a refiner in the first model's place, and compiled models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import checkpoints
from tests.live.client import OFF, Client, on
from tests.live.conftest import Draw
from tests.live.host import Server

HOST = "neo"
STEP = {"steps": 1, "width": 64, "height": 64}


@pytest.fixture
def in_place(client: Client) -> Iterator[None]:
    """The option 'Reload "state_dict" Only'."""
    client.post("/sdapi/v1/options", {"refiner_fast_sd": True})
    yield
    client.post("/sdapi/v1/options", {"refiner_fast_sd": False})


def test_a_refiner_in_the_first_models_place(draw: Draw, client: Client, in_place: None) -> None:
    plain = draw("no refiner", OFF, **{**STEP, "steps": 2})
    weights = client.weights()
    second = checkpoints.SECOND["forge"]
    body = {**STEP, "steps": 2, "refiner_checkpoint": second, "refiner_switch_at": 0.5}
    off = draw("off", OFF, **body)
    assert off.hash != plain.hash
    drawn = draw("on", on(), **body)
    assert drawn.passes == (off.dense, off.dense)
    first_only = draw("not after the switch", on(refiner=False), **body)
    assert first_only.passes == (off.dense, off.dense / 2)
    assert len({off.hash, drawn.hash, first_only.hash}) == 3
    assert "CR-Diff refiner: off" in first_only.infotext
    assert draw("prunes nothing", on(1e-9), **body).hash == off.hash
    assert draw("off again", OFF, **body).hash == off.hash
    assert draw("no refiner again", OFF, **{**STEP, "steps": 2}).hash == plain.hash
    assert client.weights() == weights


def test_a_compiled_model_is_refused(draw: Draw, client: Client, server: Server) -> None:
    """Marked by the host's own script; torch compiles nothing here (``TORCHDYNAMO_DISABLE``)."""
    names = {script["name"] for script in client.get("/sdapi/v1/script-info")}
    (compiler,) = (name for name in names if name.startswith("torch "))  # its title is translated
    compiled = {**STEP, "alwayson_scripts": {compiler: {"args": ["dynamic"]}}}
    plain = {**STEP, "alwayson_scripts": {compiler: {"args": ["Disable"]}}}
    off = draw("off", OFF, **STEP)
    drawn = draw("on, compiled", on(), **compiled)
    assert "can't be pruned" in server.log_tail()
    assert (drawn.hash, drawn.passes) == (off.hash, (off.dense, 0))
    assert "CR-Diff" not in drawn.infotext
    assert draw("on, no longer compiled", on(), **plain).passes == (off.dense, off.dense)
