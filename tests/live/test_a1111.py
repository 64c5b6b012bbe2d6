"""What only AUTOMATIC1111 has: its samplers, small models of several kinds, refiner, flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crdiff_ext.settings import Ratios
from tests.live.client import OFF, Client, on
from tests.live.conftest import Draw
from tests.live.host import Server

HOST = "a1111"
NOTHING = on(1e-9)
UNET = "model.diffusion_model."

SAMPLERS = (
    "Euler a",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM++ 2S a",
    "DPM++ 2M Karras",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 3M SDE Exponential",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "DDIM",
    "PLMS",
    "UniPC",
)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(draw: Draw, sampler: str) -> None:
    body = {"sampler_name": sampler, "steps": 6}
    off = draw("off", OFF, **body)
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    if sampler == "DPM adaptive":  # its number of calls depends on what it sees
        assert drawn.dense == drawn.pruned
    else:
        assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash
    assert draw("off again", OFF, **body).hash == off.hash


@pytest.mark.parametrize(
    ("sampler", "dense"),
    [
        # 8 steps, a dense pass at every 2nd noise level: the number of levels is the sampler's
        ("Euler", 4),
        ("Heun", 8),  # levels 1, 2, 2, 3, 3, ...: 1, 3, 3, 5, 5, 7, 7 and none left
        ("DPM2", 8),
        ("DPM++ 2S a", 8),
        ("DPM++ SDE", 8),
        ("DPM++ 2M Karras", 4),
        ("DDIM", 4),
        ("PLMS", 5),
        ("UniPC", 4),
    ],
)
def test_reuse_goes_by_noise_level_in_any_sampler(
    draw: Draw, note: Any, sampler: str, dense: int
) -> None:
    body = {"sampler_name": sampler, "steps": 8}
    off = draw("off", OFF, **body)
    exact = draw("exact", on(0.1), **body)
    drawn = draw("reuse-2", on(0.1, amplification="reuse-2"), **body)
    note(passes=drawn.passes)
    assert drawn.pruned == off.dense
    assert abs(drawn.dense - dense) <= 1
    folded = draw("folded", on(0.1, amplification="folded"), **body)
    assert folded.passes == (0, off.dense)
    assert len({off.hash, exact.hash, drawn.hash, folded.hash}) == 4
    nothing = draw("prunes nothing", on(1e-9, amplification="reuse-2"), **body)
    assert nothing.hash == off.hash
    assert draw("off again", OFF, **body).hash == off.hash


@pytest.mark.parametrize("sampler", ["Restart", "DPM adaptive", "DPM fast", "LMS"])
def test_reuse_where_the_noise_level_jumps(draw: Draw, sampler: str) -> None:
    body = {"sampler_name": sampler, "steps": 6}
    off = draw("off", OFF, **body)
    drawn = draw("reuse-4", on(amplification="reuse-4"), **body)
    assert drawn.hash != off.hash
    assert drawn.dense < drawn.pruned
    assert draw("prunes nothing", on(1e-9, amplification="reuse-4"), **body).hash == off.hash


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ SDE"])
def test_a_window_halves_the_schedule_of_any_order(draw: Draw, sampler: str) -> None:
    body = {"sampler_name": sampler, "steps": 8}
    first = draw("first half", on(end=0.5), **body)
    second = draw("second half", on(start=0.5), **body)
    assert first.pruned == 8 * (1 if sampler == "Euler" else 2) // 2
    assert first.pruned + second.pruned == first.dense == second.dense


MODELS = ("tiny-sd1-v", "tiny-sdxl", "tiny-sd1-inpaint")


@pytest.mark.parametrize("model", MODELS)
def test_kinds_of_models(draw: Draw, client: Client, model: str) -> None:
    client.set_model(f"{model}.safetensors")
    off = draw("off", OFF)
    weights = client.weights()
    drawn = draw("on", on())
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING).hash == off.hash
    assert draw("off again", OFF).hash == off.hash
    assert client.weights() == weights
    ddim = draw("DDIM, on", on(), sampler_name="DDIM")
    assert ddim.dense == ddim.pruned > 0


def test_inpainting_with_nine_channels(draw: Draw, client: Client) -> None:
    from tests.live.test_generations import _mask

    client.set_model("tiny-sd1-inpaint.safetensors")
    image = draw("source", OFF, seed=3).png[0]
    body = {"image": image, "mask": _mask(), "denoising_strength": 1, "inpainting_fill": 1}
    draw("before all", OFF, **body)  # as in test_img2img_and_inpaint
    off = draw("off", OFF, **body)
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash


@pytest.mark.parametrize("refiner", ["tiny-sd1-b", "tiny-sdxl"])
def test_refiner(draw: Draw, client: Client, refiner: str) -> None:
    """The same shape (loaded into the same model object), and another one (a new object)."""
    body = {"refiner_checkpoint": f"{refiner}.safetensors", "refiner_switch_at": 0.5, "steps": 6}
    off = draw("off", OFF, **body)
    both = draw("both", on(memory="copy"), **body)
    base = draw("base alone", on(refiner=False), **body)
    assert len({off.hash, both.hash, base.hash}) == 3
    assert both.passes == (6, 6)
    assert base.passes == (6, 3)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash
    folded = draw("both, folded", on(amplification="folded"), **body)
    assert folded.passes[1] == 6
    assert folded.dense <= 2  # loading a checkpoint into the model writes to its weights
    reused = draw("both, reuse-3", on(amplification="reuse-3"), **body)
    assert reused.passes == (2, 6)  # begun anew at the switch
    assert len({off.hash, both.hash, folded.hash, reused.hash}) == 4
    twice = {**body, "n_iter": 2}
    assert draw("two batches, on", on(), **twice).passes == (12, 12)
    assert draw("base alone, recompute", on(refiner=False, memory="recompute"), **body).hash == (
        base.hash
    )
    assert draw("off again", OFF, **body).hash == off.hash


def test_hires_with_a_checkpoint_of_its_own(draw: Draw) -> None:
    body = {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
        "hr_checkpoint_name": "tiny-sd1-b.safetensors",
    }
    off = draw("off", OFF, **body)
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash
    assert draw("off again", OFF, **body).hash == off.hash


def test_a_patch_of_the_unet_keeps_its_effect_in_both_passes(draw: Draw, client: Client) -> None:
    """As ControlNet's extension for this host: the UNet's forward, patched on the instance."""
    plain_off, plain_on = draw("off", OFF), draw("on", on())
    client.post("/crdiff-probe/control", {"strength": 0.2})
    try:
        off, drawn = draw("patched, off", OFF), draw("patched, on", on())
        nothing = draw("patched, prunes nothing", NOTHING)
    finally:
        calls = client.post("/crdiff-probe/control", {"strength": 0})["calls"]
    assert len({plain_off.hash, plain_on.hash, off.hash, drawn.hash}) == 4
    assert nothing.hash == off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert calls == off.dense + drawn.dense + drawn.pruned + nothing.dense
    assert draw("off again", OFF).hash == plain_off.hash


def test_an_engine_in_place_of_the_unet_is_refused(
    draw: Draw, client: Client, server: Server
) -> None:
    off = draw("off", OFF)
    client.post("/crdiff-probe/engine", {"on": True})
    try:
        drawn = draw("on", on())
    finally:
        client.post("/crdiff-probe/engine", {"on": False})
    assert drawn.hash == off.hash
    assert "CR-Diff" not in drawn.infotext
    assert "probe engine" in server.log_tail()
    assert draw("on, without it", on()).hash != off.hash


def test_lora_functional(draw: Draw, client: Client, server: Server) -> None:
    """A LoRA beside the weights stays as it is, and comes out again."""
    from tests.live.lora import write_lora

    write_lora(server, "beside")
    client.post("/sdapi/v1/refresh-loras")
    off = draw("off", OFF)
    weights = client.weights()
    body = {
        "prompt": "a cat <lora:beside:1>",
        "override_settings": {"lora_functional": True},
    }
    dense, drawn = draw("LoRA, off", OFF, **body), draw("LoRA, on", on(), **body)
    assert len({off.hash, dense.hash, drawn.hash}) == 3
    assert drawn.passes == (dense.dense, dense.dense)
    folded = draw("LoRA, folded", on(amplification="folded"), **body)
    assert folded.hash not in (off.hash, dense.hash, drawn.hash)
    assert folded.pruned == dense.dense
    assert draw("off again", OFF).hash == off.hash
    assert client.weights() == weights


# One call of the host against masks from the checkpoint's file, by nothing of ours

GROUPS = {"input_blocks": "down", "middle_block": "mid", "output_blocks": "up"}
LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")


def brute_force(checkpoint: Path, ratios: Ratios) -> tuple[dict[str, Any], dict[str, Any]]:
    """(masks of what is pruned, pruned weights in fp32) by sorting each group's magnitudes."""
    groups: dict[str, dict[str, torch.Tensor]] = {group: {} for group in GROUPS.values()}
    for key, tensor in load_file(checkpoint).items():
        name = key.removeprefix(UNET)
        if key != name and ".transformer_blocks." in name and name.endswith(".weight"):
            layer = name.split(".transformer_blocks.")[1].split(".", 1)[1]
            if layer.removesuffix(".weight") in LAYERS:
                groups[GROUPS[name.split(".")[0]]][name] = tensor.float()
    masks, weights = {}, {}
    for group, members in groups.items():
        magnitudes = torch.cat([tensor.abs().flatten() for tensor in members.values()])
        threshold = torch.sort(magnitudes).values[int(len(magnitudes) * getattr(ratios, group)) - 1]
        for name, tensor in members.items():
            masks[name.removesuffix(".weight")] = tensor.abs() <= threshold
            weights[name] = torch.where(tensor.abs() <= threshold, 0.0, tensor)
    return masks, weights


@pytest.mark.parametrize(("model", "layers"), [("tiny-sd1", 16 * 6), ("tiny-sdxl", 28 * 6)])
def test_one_call_has_the_masks_of_a_brute_force_sort(
    client: Client, models: Path, tmp_path: Path, model: str, layers: int, note: Any
) -> None:
    ratios = Ratios(0.397, 0.434, 0.387)
    client.set_model(f"{model}.safetensors")
    client.txt2img(OFF)
    client.post("/crdiff-probe/capture", {"folder": str(tmp_path)})
    client.txt2img(on(**ratios.as_dict(), memory="recompute"), steps=1)
    masks, weights = brute_force(models / f"{model}.safetensors", ratios)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "w.st")
    body = {"weights": str(tmp_path / "w.st")}
    difference = client.post("/crdiff-probe/replay", body)["difference"]
    found = load_file(tmp_path / "masks.st")
    assert len(masks) == layers
    for name, mask in masks.items():
        assert torch.equal(found[name].bool(), mask), name
    others = {name: mask for name, mask in found.items() if name not in masks}
    assert others
    assert not any(mask.float().mean() > 0.02 for mask in others.values()), "cross-attention"
    assert difference < 1e-5
    outputs = load_file(tmp_path / "outputs.st")
    assert not torch.equal(outputs["dense"], outputs["pruned"])
    pruned = sum(int(mask.sum()) for mask in masks.values())
    note(layers=layers, pruned_weights=pruned, output_difference=difference)
