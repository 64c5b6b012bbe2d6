"""SD3 Medium at its true size with random weights, over HTTP: run where CRDIFF_LIVE_SD3 is set.

It takes 3.9 GB of disk in CRDIFF_LIVE_MODELS and 6 GB of memory, and ten minutes on one thread.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.client import OFF, Drawn, Refused, on
from tests.live.conftest import about
from tests.live.host import HERE, Installation, Server, running

HOST = "forge"
WITHOUT = ("reforge", "classic")
pytestmark = pytest.mark.skipif(
    not os.environ.get("CRDIFF_LIVE_SD3"), reason="CRDIFF_LIVE_SD3 is not set: 6 GB of memory"
)
STEP: dict[str, Any] = {
    **{"width": 64, "height": 64, "steps": 2, "cfg_scale": 1, "prompt": "a cat on a mat"},
    **{"negative_prompt": "", "sampler_name": "Euler", "scheduler": "Simple"},
}


@pytest.fixture(scope="module")
def sd3(
    installation: Installation,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Server]:
    """A Forge with the model in it."""
    if installation.kind != "forge":
        pytest.skip("Forge Neo has no SD3")
    kept = os.environ.get("CRDIFF_LIVE_MODELS")
    folder = Path(kept).resolve() if kept else tmp_path_factory.mktemp("models")
    maker = [installation.python, HERE / "maker_forge.py", installation.folder, folder, "sd3"]
    subprocess.run(maker, check=True)
    data = tmp_path_factory.mktemp("data")
    with running(installation, data, folder / "random-sd3.safetensors") as started:
        about(request.config, started)
        yield started


def test_sd3_medium(sd3: Server, note: Callable[..., None]) -> None:
    client = sd3.client
    weights = client.weights()

    def draw(label: str, args: dict[str, Any]) -> Drawn:
        made = client.draw(args, **STEP)
        assert all(image.any() for image in made.pixels), f"{label}: black, so not finite"
        facts = {"dense": made.dense, "pruned": made.pruned, "seconds": made.seconds}
        note(**{label: {"hashes": made.hashes, **facts}})
        return made

    off = draw("off", OFF)
    assert off.passes == (2, 0)
    assert draw("ratio 0", on(0)).hash == off.hash
    drawn = draw("on", on())
    assert drawn.passes == (2, 2)
    assert drawn.hash != off.hash
    assert "CR-Diff ratios: 0.4/0.4/0.4" in drawn.infotext
    assert "SD3 64x64: ratio 0.4 (set by hand)" in sd3_log(client)
    folded = draw("folded", on(amplification="folded"))
    assert folded.passes == (0, 2)
    assert folded.hash not in (off.hash, drawn.hash)
    assert draw("on again", on()).hash == drawn.hash
    assert draw("off again", OFF).hash == off.hash
    assert client.weights() == weights


def test_what_sd3_is_told(sd3: Server) -> None:
    client = sd3.client
    client.counts()
    with pytest.raises(Refused, match="SD3 has one ratio for all layers") as refused:
        client.txt2img(on(down=0.1), **STEP)
    assert refused.value.status == 422
    auto = client.draw({"mode": "auto"}, **STEP)
    assert auto.passes == (2, 0)
    assert "CR-Diff" not in auto.infotext
    body = {"height": 64, "width": 64}
    answer = client.post("/crdiff/v1/resolve", body)
    assert (answer["family"], answer["code"]) == ("sd3", "no-stored")
    answer = client.post("/crdiff/v1/resolve", {**body, "settings": {"ratios": "set"}})
    assert answer["sentence"] == "SD3 64x64: ratio 0.3 (set by hand)"
    with pytest.raises(Refused, match="one ratio for all layers"):
        client.post("/crdiff/v1/resolve", {**body, "settings": {"up": 0.1}})


def sd3_log(client: Any) -> str:
    """The extension's last sentences."""
    return "\n".join(client.get("/crdiff/v1/report")["log"])
