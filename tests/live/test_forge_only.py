"""What the Forge family has: patchers, wrappers of other scripts, refiner switch, fp8 storage."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crdiff_ext.blocks import prunable_names
from tests.live import checkpoints
from tests.live.client import OFF, Client, on
from tests.live.conftest import Draw

HOST = "forge"
# Small, because a real SD1.5 on one thread takes seconds a forward: the latent is 8x8.
STEP = {"steps": 1, "width": 64, "height": 64}
RATIOS = {"down": 0.3, "mid": 0.45, "up": 0.4}


def control(strength: float) -> dict[str, Any]:
    return {**STEP, "alwayson_scripts": {"CR-Diff probe control": {"args": [strength]}}}


def test_a_control_keeps_its_effect_in_both_passes(draw: Draw) -> None:
    off, steered = draw("off", OFF, **STEP), draw("off, control", OFF, **control(2))
    assert steered.hash != off.hash
    # At k = 1 the image is the pruned pass' alone: without the control it would be the plain one.
    pruned = draw("pruned alone", on(k=1), **STEP)
    assert pruned.passes == (0, off.dense)
    assert draw("pruned alone, control", on(k=1), **control(2)).hash != pruned.hash
    both = draw("on, control", on(), **control(2))
    assert both.passes == (off.dense, off.dense)
    nothing = draw("prunes nothing, control", on(1e-9), **control(2))
    assert nothing.hash == steered.hash
    assert nothing.dense > off.dense, "the second pass was not made"


@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_multidiffusion_is_called_inside_each_pass(draw: Draw, client: Client, method: str) -> None:
    """It sets the same slot, after or before us; Mixture answers with a buffer that it reuses."""
    plain_body: dict[str, Any] = {**STEP, "width": 96, "height": 96}
    plain = draw("off, no tiles", OFF, **plain_body)
    found = client.get("/sdapi/v1/script-info")
    if not any(s["name"] == "multidiffusion integrated" and not s["is_img2img"] for s in found):
        plain_body |= {"image": plain.png[0], "denoising_strength": 1}  # Forge Neo has it here
        plain = draw("off, no tiles, from an image", OFF, **plain_body)
    script = {"MultiDiffusion Integrated": {"args": [True, method, 64, 64, 16, 1]}}
    body = {**plain_body, "alwayson_scripts": script}
    off = draw("off, tiles", OFF, **body)
    assert off.hash != plain.hash
    assert off.dense > plain.dense
    drawn = draw("on, tiles", on(), **body)
    assert drawn.passes == (off.dense, off.dense)
    k1 = draw("pruned alone, tiles", on(k=1), **body)
    folded = draw("folded, tiles", on(amplification="folded"), **body)
    assert folded.passes == (0, off.dense)
    assert len({off.hash, drawn.hash, k1.hash, folded.hash}) == 4


@pytest.fixture
def second(client: Client, server: Any) -> Iterator[Path]:
    """Another checkpoint to the host, though it holds the same weights."""
    link: Path = server.checkpoint.with_name("crdiff-live-second.safetensors")
    link.unlink(missing_ok=True)
    link.symlink_to(server.checkpoint.resolve())
    client.post("/sdapi/v1/refresh-checkpoints")
    yield link
    link.unlink()
    client.post("/sdapi/v1/refresh-checkpoints")


def test_the_refiner_acts_without_any_hook(draw: Draw, client: Client, second: Path) -> None:
    body = {**STEP, "steps": 2, "refiner_checkpoint": second.stem, "refiner_switch_at": 0.5}
    off = draw("off", OFF, **body)
    assert client.get("/crdiff-probe/state")["checkpoint"] == second.name
    drawn = draw("on", on(), **body)
    assert drawn.passes == (off.dense, off.dense)
    folded = draw("folded", on(amplification="folded"), **body)
    assert folded.passes == (0, off.dense)
    assert folded.hash not in (off.hash, drawn.hash)
    first_only = draw("not after the switch", on(refiner=False), **body)
    assert first_only.passes == (off.dense, off.dense / 2)
    assert len({off.hash, drawn.hash, first_only.hash}) == 3
    assert "CR-Diff refiner: off" in first_only.infotext
    assert draw("off again", OFF, **body).hash == off.hash


@pytest.mark.parametrize("lora", ["", "<lora:online:1>"], ids=["plain", "online LoRA"])
def test_fp8_storage(draw: Draw, client: Client, server: Any, lora: str) -> None:
    """Cast at each forward, LoRA added there too: pruned by a patch of the host's own kind."""
    if server.kind in ("reforge", "classic"):
        pytest.skip("stored as a flag says, not as an option: test_reforge_only.py")
    from tests.live.lora import write_lora

    bits = "float8-e4m3fn (fp16 LoRA)" if lora else "float8-e4m3fn"
    if lora:
        write_lora(server, "online")
        client.post("/sdapi/v1/refresh-loras")
    store_in(client, bits)
    try:
        body = {**STEP, "prompt": f"a cat {lora}"}
        off = draw("off", OFF, **body)
        assert "float8_e4m3fn" in client.get("/crdiff-probe/state")["dtype"]
        weights = client.weights()
        drawn = draw("on", on(), **body)
        assert drawn.hash != off.hash
        # The probe takes a forward with an online LoRA for a pruned one, so there only their sum.
        assert lora or drawn.passes == (off.dense, off.dense)
        assert sum(drawn.passes) == 2 * sum(off.passes)
        assert client.weights() == weights
        folded = draw("folded", on(amplification="folded"), **body)
        assert folded.hash not in (off.hash, drawn.hash)
        assert sum(folded.passes) == sum(off.passes)
        assert lora or folded.dense == 0
        assert client.weights() == weights
        assert draw("on again", on(), **body).hash == drawn.hash
        assert draw("off again", OFF, **body).hash == off.hash
    finally:
        store_in(client, "Automatic")


def store_in(client: Client, bits: str) -> None:
    """Set "Diffusion in Low Bits", for the next generation.

    Through the API the host takes note of it only if something else changes that makes it look
    again (``set_config`` in modules/sysinfo.py), such as the checkpoint; nothing is loaded yet.
    """
    client.post("/sdapi/v1/options", {"forge_unet_storage_dtype": bits})
    client.set_model(checkpoints.SECOND["forge"])
    client.set_model(checkpoints.FIRST["forge"])


def test_masks_and_output_from_the_file_by_brute_force(
    draw: Draw, client: Client, server: Any, tmp_path: Path
) -> None:
    """The file alone gives the masks of the running UNet, those of `inspect`, and its output."""
    client.post("/crdiff-probe/capture", {"folder": str(tmp_path)})
    drawn = client.txt2img(on(0, **RATIOS), **STEP)
    assert drawn.png
    weights, keep = masked_file(server.checkpoint)
    save_file(weights, tmp_path / "weights.safetensors")
    answer = client.post("/crdiff-probe/replay", {"weights": str(tmp_path / "weights.safetensors")})
    zeros = load_file(tmp_path / "masks.st")
    digest = hashlib.sha256()
    for name in keep:
        assert torch.equal(zeros[name].bool(), ~keep[name]), name
        digest.update(keep[name].numpy().tobytes())
    assert answer["difference"] < 1e-4
    ratios = "/".join(str(ratio) for ratio in RATIOS.values())
    command = [sys.executable, "-m", "harness.cli", "inspect", str(server.checkpoint)]
    found = subprocess.run(
        [*command, "--ratios", ratios, "--json"], capture_output=True, text=True, check=True
    )
    assert digest.hexdigest() in json.dumps(json.loads(found.stdout))


def masked_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """fp32 weights pruned as the paper says, and masks of what stays, in canonical order."""
    with safe_open(path, "pt") as file:
        parsed = prunable_names(file.keys())
        tensors = {name: file.get_tensor(name) for name in parsed}
    prefix = "model.diffusion_model."
    keep = {}
    for group, ratio in RATIOS.items():
        names = [name for name in parsed if parsed[name].group == group]
        every = torch.cat([tensors[name].abs().flatten().float() for name in names])
        limit = every.kthvalue(int(len(every) * ratio)).values
        for name in names:
            keep[name] = tensors[name].float().abs() > limit
    ordered = sorted(keep, key=lambda name: parsed[name].canonical)
    weights = {n.removeprefix(prefix): tensors[n].float() * keep[n] for n in ordered}
    masks = {n.removeprefix(prefix).removesuffix(".weight"): keep[n] for n in ordered}
    return weights, masks
