"""SD.Next: what is tested in every host, where its API allows it, and what is its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.live.client import OFF, SIDE, STEPS, Client, on
from tests.live.conftest import Draw
from tests.live.lora import write_lora
from tests.live.test_generations import (
    NOTHING,
    test_a_wrong_value_is_4xx_with_a_sentence,
    test_batch_of_two_by_two,
    test_both_memory_modes_give_the_same_pixels,
    test_img2img_and_inpaint,
    test_lora_goes_in_and_out_around_it,
    test_ratios_k_and_window_each_matter,
    test_switching_the_checkpoint_between_jobs,
    test_the_first_generation_with_a_lora_may_be_a_pruned_one,
    test_the_list_and_the_dictionary_mean_the_same,
    test_zero_is_off_on_differs_repeats_and_off_again_is_off,
)
from tests.live.test_scripts import (
    test_an_infotext_says_what_ran,
    test_the_schema_presets_resolve_and_report,
)
from tests.live.test_ways import (
    WAYS,
    ask,
    dense_steps,
    distance,
    test_a_wrong_way_is_4xx_with_a_sentence,
    test_nothing_pruned_is_off_and_off_again_is_off,
    test_one_more_forward_only_where_the_host_merges_lazily,
    test_the_first_generation_with_a_lora_may_be_a_folded_one,
)
from tests.live.test_ways import (
    test_both_memory_modes_give_the_same_pixels as test_folded_in_both_memory_modes,
)
from tests.live.test_ways import (
    test_lora_goes_in_and_out_around_it as test_lora_goes_in_and_out_around_the_other_ways,
)

HOST = "sdnext"
__all__ = [
    "test_a_wrong_value_is_4xx_with_a_sentence",
    "test_a_wrong_way_is_4xx_with_a_sentence",
    "test_an_infotext_says_what_ran",
    "test_batch_of_two_by_two",
    "test_both_memory_modes_give_the_same_pixels",
    "test_folded_in_both_memory_modes",
    "test_img2img_and_inpaint",
    "test_lora_goes_in_and_out_around_it",
    "test_lora_goes_in_and_out_around_the_other_ways",
    "test_nothing_pruned_is_off_and_off_again_is_off",
    "test_one_more_forward_only_where_the_host_merges_lazily",
    "test_ratios_k_and_window_each_matter",
    "test_switching_the_checkpoint_between_jobs",
    "test_the_first_generation_with_a_lora_may_be_a_folded_one",
    "test_the_first_generation_with_a_lora_may_be_a_pruned_one",
    "test_the_list_and_the_dictionary_mean_the_same",
    "test_the_schema_presets_resolve_and_report",
    "test_zero_is_off_on_differs_repeats_and_off_again_is_off",
]
LATENT = "Latent Nearest"
HIRES = {
    "enable_hr": True,
    "hr_force": True,
    "hr_scale": 1.5,
    "hr_resize_mode": 1,
    "hr_second_pass_steps": 4,
    "hr_denoising_strength": 0.6,
}


@contextmanager
def options(client: Client, **values: Any) -> Iterator[None]:
    """The host's settings, for a while."""
    known = client.get("/sdapi/v1/options")
    client.post("/sdapi/v1/options", values)
    try:
        yield
    finally:
        client.post("/sdapi/v1/options", {name: known.get(name) for name in values})


def same_off_and_on(draw: Draw, **body: Any) -> None:
    """Off, on, what prunes nothing, and off again; two passes for one."""
    off = draw("off", OFF, **body)
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash
    assert draw("off again", OFF, **body).hash == off.hash


@pytest.mark.parametrize("upscaler", [LATENT, "Resize Lanczos"])
def test_hires(draw: Draw, upscaler: str) -> None:
    hires = {**HIRES, "hr_upscaler": upscaler}
    off = draw("off", OFF, **hires)
    first_pass = draw("one pass", OFF).dense
    assert off.dense > first_pass
    assert off.pixels[0].shape[:2] == (SIDE * 3 // 2, SIDE * 3 // 2)
    assert draw("prunes nothing", NOTHING, **hires).hash == off.hash
    both = draw("both", on(), **hires)
    assert both.passes == (off.dense, off.dense)
    first = draw("first", on(passes="first"), **hires)
    assert first.passes == (off.dense, first_pass)
    second = draw("hires", on(passes="hires"), **hires)
    assert second.passes == (off.dense, off.dense - first_pass)
    own = {"hires_ratios": "set", "hires_down": 0.2, "hires_mid": 0.2, "hires_up": 0.2}
    other = draw("own ratios", on(**own), **hires)
    assert len({one.hash for one in (off, both, first, second, other)}) == 5
    assert "CR-Diff hires ratios" in other.infotext
    for way in ("folded", "reuse-4"):
        expected = dense_steps(way, STEPS) + dense_steps(way, off.dense - first_pass)
        assert draw(way, ask(way), **hires).passes == (expected, off.dense)
    assert draw("off again", OFF, **hires).hash == off.hash


@pytest.mark.parametrize(
    "sampler",
    ["Euler a", "DDIM", "DPM++ 2M", "DPM++ SDE", "Heun", "UniPC", "LCM", "DEIS", "PNDM", "KDPM2"],
)
def test_samplers(draw: Draw, sampler: str) -> None:
    body = {"sampler_name": sampler}
    same_off_and_on(draw, **body)
    off = draw("off, for its passes", OFF, **body)
    half = draw("second half", on(start=0.5), **body)
    assert 0 < half.pruned < off.dense == half.dense
    assert draw("folded", ask("folded"), **body).passes == (0, off.dense)
    reused = draw("reuse-2", ask("reuse-2"), **body)
    assert reused.pruned == off.dense
    assert 0 < reused.dense <= 0.75 * off.dense


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("CFG 1", {"cfg_scale": 1}),
        ("CFG ends early", {"extra": {"cfg_end": 0.5}}),
        ("long prompt", {"prompt": "a cat, " * 60}),
        ("not square", {"width": SIDE * 3 // 2}),
        ("tiling", {"tiling": True}),
        ("prompt that changes", {"prompt": "a [cat:dog:0.5] on a mat"}),
    ],
)
def test_ways_of_sampling(draw: Draw, name: str, body: dict[str, Any]) -> None:
    same_off_and_on(draw, **body)
    passes = draw("reuse-2", ask("reuse-2"), **body).passes
    off = draw("off", OFF, **body).dense
    assert passes[1] == off
    assert passes[0] < off, name


@pytest.mark.parametrize(
    "values",
    [
        {"token_merging_method": "ToMe", "tome_ratio": 0.5},
        {"hypertile_unet_enabled": True},
        {"freeu_enabled": True},
        {"schedulers_use_karras": True},
        {"prompt_attention": "compel"},
    ],
)
def test_settings_that_change_the_network_or_its_schedule(
    draw: Draw, client: Client, values: dict[str, Any]
) -> None:
    plain = draw("plain", OFF)
    with options(client, **values):
        same_off_and_on(draw)
    assert draw("plain again", OFF).hash == plain.hash


@pytest.mark.parametrize("way", ["exact", "folded"])
@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("kind", ["exception", "button"])
def test_after_a_fault_in_a_pruned_pass_all_is_as_before(
    draw: Draw, client: Client, kind: str, memory: str, way: str
) -> None:
    """The host ends such a generation without an error, and without an image."""
    off = draw("off", OFF)
    weights = client.weights()
    client.counts()
    client.inject(kind, at=2)
    client.txt2img(ask(way, memory=memory))  # whose answer may hold the image before it
    assert client.counts()["pruned"] in (1, 2), "the fault did not strike in a pruned pass"
    assert client.weights() == weights
    after = draw("off after it", OFF)
    assert (after.hash, after.passes) == (off.hash, off.passes)
    assert draw("on after it", ask(way, memory=memory)).pruned == off.dense


def test_sdxl(draw: Draw, client: Client) -> None:
    # The host's own way with prompts finds no pooled embedding in an encoder as small as this.
    with options(client, prompt_attention="fixed"):
        client.set_model("Diffusers/tiny-sdxl")
        same_off_and_on(draw)
        assert draw("folded", ask("folded")).pruned


def test_a_refiner(draw: Draw, client: Client) -> None:
    """The probe counts the first model's passes alone."""
    body = {"refiner_start": 0.5, "refiner_steps": 4, "enable_hr": True}
    body["hr_denoising_strength"] = 0.5
    with options(client, sd_model_refiner="Diffusers/tiny-sd-b"):
        off = draw("off", OFF, **body)
        assert off.hash != draw("without", OFF).hash
        assert draw("prunes nothing", NOTHING, **body).hash == off.hash
        drawn = {
            "both": draw("both", on(), **body),
            "first model": draw("first model", on(refiner=False), **body),
            "folded": draw("folded", ask("folded"), **body),
        }
        assert len({off.hash, *(one.hash for one in drawn.values())}) == 4
        assert "CR-Diff refiner: off" in drawn["first model"].infotext
        assert "CR-Diff refiner" not in drawn["both"].infotext
        assert draw("off again", OFF, **body).hash == off.hash


def test_a_fused_lora(draw: Draw, client: Client, server: Any) -> None:
    """Its rounding stays behind in the weights, with or without CR-Diff."""
    write_lora(server, "fused", seed=11)
    client.post("/sdapi/v1/refresh-loras")
    prompt = "a cat <lora:fused:1>"
    with options(client, lora_fuse_native=True):
        off = draw("LoRA, off", OFF, prompt=prompt)
        assert off.hash != draw("without", OFF, prompt="a cat").hash
        drawn = draw("LoRA, on", on(), prompt=prompt)
        assert drawn.hash != off.hash
        assert drawn.pruned == off.dense
        assert draw("LoRA, folded", ask("folded"), prompt=prompt).passes == (0, off.dense)
        dense = draw("without, on", on(), prompt="a cat")
        assert dense.pruned == off.dense
    client.set_model("Diffusers/tiny-sd-b")  # what it leaves in the network goes with it


@pytest.mark.parametrize("mode", ["balanced", "group", "model"])
def test_offloading(draw: Draw, client: Client, mode: str) -> None:
    """Without a GPU nothing is moved, but the hooks come and go."""
    with options(client, diffusers_offload_mode=mode):
        client.set_model("Diffusers/tiny-sd-b")
        off = draw("off", OFF)
        drawn = draw("on", on())
        assert draw("off again", OFF).hash == off.hash
        if drawn.pruned:
            assert drawn.passes == (off.dense, off.dense)
            assert drawn.hash != off.hash
            assert draw("folded", ask("folded")).passes == (0, off.dense)
        else:
            assert drawn.hash == off.hash
            assert "CR-Diff" not in drawn.infotext
            assert mode == "group"


def xyz(client: Client, name: str, *axes: tuple[str, str]) -> list[Any]:
    """Arguments of the host's X/Y/Z script ``name``."""
    scripts = client.get("/sdapi/v1/script-info")
    plot = next(s for s in scripts if s["name"] == name and not s["is_img2img"])
    args = [argument["value"] for argument in plot["args"]]
    first = 1 if plot["args"][0]["label"] == "Enabled" else 0
    if first:
        args[0] = True
    choices = plot["args"][first]["choices"]
    labels = [argument["label"] for argument in plot["args"]]
    for place in range(3):
        axis, values = axes[place] if place < len(axes) else (choices[0], "")
        at = first + 3 * place
        args[at : at + 3] = [choices.index(axis), values, []]
    for label, value in (
        ("Use text inputs", True),
        ("Draw legend", False),
        ("Include main grid", False),
        ("Include images", True),
        ("Add time info", False),
        ("Add text info", False),
    ):
        args[labels.index(label)] = value
    return args


def test_axes_are_registered_once(client: Client) -> None:
    scripts = client.get("/sdapi/v1/script-info")
    plots = [script for script in scripts if script["name"].startswith("xyz grid")]
    assert plots
    for plot in plots:
        text = json.dumps([argument.get("choices") for argument in plot["args"][:2]])
        ours = re.findall(r"\[CR-Diff\] [^\"]+", text)
        assert len(ours) == len(set(ours)) >= 10


def test_cells_equal_direct_calls(draw: Draw, client: Client) -> None:
    axes = ("[CR-Diff] Ratio (all blocks)", "0, 0.2, 0.4"), ("[CR-Diff] k", "1, 1.5")
    body = {"script_name": "xyz grid script", "script_args": xyz(client, "xyz grid script", *axes)}
    plot = draw("grid", on(0.3), **body)
    direct = [
        draw(f"ratio {ratio}, k {k}", on(ratio, k=k)).hash
        for k in (1, 1.5)
        for ratio in (0, 0.2, 0.4)
    ]
    assert plot.hashes[-6:] == direct
    assert len(set(direct)) == 5  # ratio 0 is the same for any k


def test_the_settings_page_counts(draw: Draw, client: Client) -> None:
    with options(client, crdiff_memory="copy", crdiff_notice_level="quiet"):
        report = client.get("/crdiff/v1/report")
        assert report["settings"]["crdiff_memory"] == "copy"
        assert report["settings"]["crdiff_notice_level"] == "quiet"
        assert report["host"]["version"].startswith("sd.next")
        assert draw("on", on()).pruned


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_nearer_to_exact_than_the_dense_image_is(draw: Draw, note: Any, memory: str) -> None:
    off, exact = draw("off", OFF), draw("exact", on(0.05, memory=memory))
    effect = distance(off, exact)
    assert effect > 0
    for way in WAYS:
        drawn = draw(way, ask(way, 0.05, memory=memory))
        error = distance(drawn, exact)
        note(**{f"{way}: error beside the effect": round(error / effect, 4)})
        assert drawn.hash != exact.hash
        assert error < effect
