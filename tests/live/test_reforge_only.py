"""What reForge has: weights swapped out with a LoRA, storage by flags, a second set of samplers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import checkpoints
from tests.live.client import OFF, Client, on
from tests.live.conftest import Draw, Start
from tests.live.lora import write_lora

HOST = "reforge"
STEP = {"steps": 1, "width": 64, "height": 64}


@pytest.fixture
def swapped(client: Client) -> Iterator[Any]:
    """``swapped(share)`` has that share of the UNet loaded from the next image on."""
    yield lambda share: client.post("/crdiff-probe/swap", {"share": share})
    client.post("/crdiff-probe/swap", {"share": 1})


@pytest.mark.parametrize("way", ["exact", "folded", "reuse-2"])
def test_a_lora_on_swapped_weights_is_pruned_with_them(
    draw: Draw, client: Client, server: Any, swapped: Any, way: str
) -> None:
    """Added at each forward, it gives the pixels that it gives when it is merged."""
    write_lora(server, "swapped")
    client.post("/sdapi/v1/refresh-loras")
    body = {**STEP, "prompt": "a cat <lora:swapped:1>"}
    args = on(amplification=way)
    plain = draw("no LoRA, on", args, **STEP)
    off, merged = draw("LoRA merged, off", OFF, **body), draw("LoRA merged, on", args, **body)
    weights = client.weights()
    swapped(0.3)
    off_swapped = draw("LoRA swapped, off", OFF, **body)
    now = swapped(0.3)
    assert now["cast"] > now["functions"] > 50
    stored = client.weights()
    on_swapped = draw("LoRA swapped, on", args, **body)
    assert client.weights() == stored
    assert draw("LoRA swapped, on, copies asked for", {**args, "memory": "copy"}, **body).hash == (
        on_swapped.hash
    )
    assert (off_swapped.hash, on_swapped.hash) == (off.hash, merged.hash)
    assert len({off.hash, merged.hash, plain.hash}) == 3
    # The probe takes a forward with such a LoRA for a pruned one, so only their sum counts.
    assert sum(on_swapped.passes) == sum(merged.passes)
    assert draw("no LoRA, swapped, on", args, **STEP).hash == plain.hash
    swapped(1)
    assert draw("LoRA merged again, on", args, **body).hash == merged.hash
    assert client.weights() == weights


@pytest.fixture(scope="module", params=["--unet-in-fp8-e4m3fn", "--unet-in-fp16"])
def stored(request: Any, start: Start) -> Iterator[Any]:
    """A host of its own that keeps the UNet in fewer bits, and computes in fp32."""
    with start(request.param, "--clip-in-fp32", "--vae-in-fp32", precision=False) as server:
        yield server


@pytest.mark.parametrize("lora", ["", "<lora:stored:1>"], ids=["plain", "LoRA"])
def test_storage_in_fewer_bits(stored: Any, note: Any, lora: str) -> None:
    """Cast at each forward: pruned there, by a function of the host's own kind."""
    client = stored.client
    if lora:
        write_lora(stored, "stored")
        client.post("/sdapi/v1/refresh-loras")
    body = {**STEP, "prompt": f"a cat {lora}"}
    draw = Draw(client, note)
    off = draw("off", OFF, **body)
    assert client.get("/crdiff-probe/state")["dtype"] in ("torch.float8_e4m3fn", "torch.float16")
    weights = client.weights()
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert client.weights() == weights
    assert draw("prunes nothing", on(1e-9), **body).hash == off.hash
    folded = draw("folded", on(amplification="folded"), **body)
    assert folded.hash not in (off.hash, drawn.hash)
    assert folded.passes == (0, off.dense)
    assert client.weights() == weights
    assert draw("on again", on(), **body).hash == drawn.hash
    assert draw("off again", OFF, **body).hash == off.hash


SAMPLERS = ("Euler a", "Heun", "DPM2", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC")


@pytest.fixture(params=["A1111", "ldm patched (Comfy)"])
def sampling(request: Any, client: Client) -> Iterator[str]:
    """Whose samplers: an option of this host."""
    client.post("/sdapi/v1/options", {"sd_sampling": request.param})
    yield request.param
    client.post("/sdapi/v1/options", {"sd_sampling": "A1111"})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(draw: Draw, client: Client, sampling: str, sampler: str) -> None:
    names = {found["name"] for found in client.get("/sdapi/v1/samplers")}
    if sampler not in names:
        pytest.skip(f"this host has no sampler {sampler}")
    body = {**STEP, "steps": 2, "sampler_name": sampler}
    off = draw("off", OFF, **body)
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", on(1e-9), **body).hash == off.hash


def test_a_model_left_in_memory_is_not_the_one_that_is_refined(
    draw: Draw, client: Client, note: Any
) -> None:
    """A refiner's stays in memory; a search begins with the model that is chosen."""
    second = checkpoints.SECOND["forge"]
    body = {**STEP, "steps": 2, "refiner_checkpoint": second, "refiner_switch_at": 0.5}
    plain = draw("no refiner, off", OFF, **STEP)
    client.post("/sdapi/v1/options", {"crdiff_reward": "embedded"})
    try:
        draw("a refiner, off", OFF, **body)
        assert client.get("/crdiff-probe/state")["checkpoint"] == second
        made = client.refine({"budget": 3, "seeds": 1, "session": "left"}, on(), **STEP)
    finally:
        client.post("/sdapi/v1/options", {"crdiff_reward": "auto"})
    found = client.refined("left")
    note(message=found["message"], rows=found["rows"])
    assert [image for image, told in made.rounds if told.endswith("dense")] == [plain.hash]
    first = checkpoints.FIRST["forge"].removesuffix(".safetensors")
    assert all(f"Model: {first}," in text for text in made.info["infotexts"])
