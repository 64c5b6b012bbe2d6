"""What holds in every host: off is off to the last pixel, on is on, and nothing is left behind."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.live import checkpoints
from tests.live.client import OFF, SIDE, Client, Refused, on
from tests.live.conftest import Draw
from tests.live.lora import write_lora

NOTHING = on(1e-9)  # goes through both passes, and prunes not a single weight


def test_zero_is_off_on_differs_repeats_and_off_again_is_off(draw: Draw, client: Client) -> None:
    off = draw("off", OFF)
    weights = client.weights()
    calls = off.dense
    assert off.pruned == 0
    assert "CR-Diff" not in off.infotext
    without = draw("not mentioned")  # the panel's defaults: Auto
    assert without.hash == off.hash
    zero = draw("ratio 0", on(0))
    assert (zero.hash, zero.passes) == (off.hash, (calls, 0))
    assert "CR-Diff" not in zero.infotext
    nothing = draw("prunes nothing", NOTHING)
    assert nothing.hash == off.hash
    assert nothing.dense > calls, "the second pass was not made, so equality proves nothing"
    first, second = draw("0.4", on()), draw("0.4 again", on())
    assert first.hash != off.hash
    assert first.passes == (calls, calls)
    assert second.hash == first.hash
    assert "CR-Diff ratios" in first.infotext
    again = draw("off again", OFF)
    assert (again.hash, again.passes) == (off.hash, (calls, 0))
    assert client.weights() == weights


def test_both_memory_modes_give_the_same_pixels(draw: Draw) -> None:
    kinds = {memory: draw(memory, on(memory=memory)) for memory in ("auto", "recompute", "copy")}
    assert len({drawn.hash for drawn in kinds.values()}) == 1
    assert all(drawn.pruned for drawn in kinds.values())


def test_ratios_k_and_window_each_matter(draw: Draw) -> None:
    drawn = {
        "0.4": draw("0.4", on()),
        "0.2": draw("0.2", on(0.2)),
        "down": draw("down alone", on(0, down=0.4)),
        "mid": draw("mid alone", on(0, mid=0.4)),
        "up": draw("up alone", on(0, up=0.4)),
        "k": draw("k 2", on(k=2)),
        "window": draw("second half", on(start=0.5)),
    }
    assert len({one.hash for one in drawn.values()}) == len(drawn)
    whole, half = drawn["0.4"], drawn["window"]
    assert half.dense == whole.dense
    assert half.pruned == whole.pruned / 2
    # The pruned pass alone: the plan is known from the images before.
    assert draw("k 1", on(k=1)).passes == (0, whole.pruned)
    assert draw("k 0", on(k=0)).pruned == 0


def test_the_list_and_the_dictionary_mean_the_same(draw: Draw) -> None:
    by_name = draw("dictionary", on())
    by_place = draw("list", [True, "always", "set", 0.4, 0.4, 0.4])
    text = draw("numbers as text", on("0.4"))
    assert by_name.hash == by_place.hash == text.hash
    assert by_name.pruned


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (on(1.5), "down"),
        (on("abc"), "down"),
        (on("nan"), "down"),
        (on(k=-1), "k"),
        (on(k=7), "k"),
        (on(start=0.5, end=0.5), "start"),
        (on(mode="sometimes"), "mode"),
        ({"rations": "set"}, "rations"),
        ([True, "always", "set", 0.4, 1.0], "mid"),
    ],
)
def test_a_wrong_value_is_4xx_with_a_sentence(client: Client, args: Any, field: str) -> None:
    client.counts()
    with pytest.raises(Refused) as caught:
        client.txt2img(args)
    assert 400 <= caught.value.status < 500
    assert field in caught.value.detail
    assert client.counts() == {"dense": 0, "pruned": 0}


@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("kind", ["exception", "interrupt", "button"])
def test_after_a_fault_in_a_pruned_pass_all_is_as_before(
    draw: Draw, client: Client, kind: str, memory: str
) -> None:
    off = draw("off", OFF)
    weights = client.weights()
    client.counts()
    client.inject(kind, at=2)
    if kind == "exception":
        with pytest.raises(Refused) as caught:
            client.txt2img(on(memory=memory))
        assert caught.value.status == 500
    else:
        assert client.txt2img(on(memory=memory)).hash != off.hash
    passes = client.counts()
    assert passes["pruned"] in (1, 2), "the fault did not strike in the second pruned pass"
    assert client.weights() == weights
    after = draw("off after it", OFF)
    assert (after.hash, after.passes) == (off.hash, off.passes)
    assert draw("on after it", on(memory=memory)).pruned == off.dense


def test_lora_goes_in_and_out_around_it(draw: Draw, client: Client, server: Any) -> None:
    path = write_lora(server, "style")
    client.post("/sdapi/v1/refresh-loras")
    prompt = "a cat <lora:style:1>"
    off = draw("off", OFF)
    weights = client.weights()
    dense = draw("LoRA, off", OFF, prompt=prompt)
    merged = client.weights()
    assert dense.hash != draw("without LoRA", OFF, prompt="a cat").hash
    drawn = draw("LoRA, on", on(), prompt=prompt)
    assert (drawn.dense, drawn.pruned) == (dense.dense, dense.dense)
    assert drawn.hash != dense.hash
    assert client.weights() == merged
    assert draw("LoRA, on, again", on(), prompt=prompt).hash == drawn.hash
    # straight from one LoRA to none, and to another strength, with CR-Diff on
    plain = draw("no LoRA, on", on())
    half = draw("LoRA at half, on", on(), prompt="a cat <lora:style:0.5>")
    assert len({drawn.hash, plain.hash, half.hash}) == 3
    again = draw("off again", OFF)
    assert again.hash == off.hash
    assert client.weights() == weights, path


def test_the_first_generation_with_a_lora_may_be_a_pruned_one(
    draw: Draw, client: Client, server: Any
) -> None:
    """A host that backs weights up in the first forward must not back up masked ones."""
    write_lora(server, "fresh", seed=5)
    client.post("/sdapi/v1/refresh-loras")
    off = draw("off", OFF)
    weights = client.weights()
    drawn = draw("LoRA, on", on(memory="copy"), prompt="a cat <lora:fresh:1>")
    assert drawn.pruned
    assert draw("off again", OFF).hash == off.hash
    assert client.weights() == weights


HIRES = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6}
HIRES_FORGE = {"hr_additional_modules": ["Use same choices"]}


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires(draw: Draw, server: Any, upscaler: str) -> None:
    if server.kind == "neo":
        if upscaler == "Latent":
            pytest.skip("this Forge Neo has no latent upscaler")
        upscaler = "None"  # Lanczos by another name (modules/images.py, resize_image)
    extra = HIRES_FORGE if server.family == "forge" else {}
    hires = {**HIRES, **extra, "hr_upscaler": upscaler}
    off = draw("off", OFF, **hires)
    first_pass = draw("one pass", OFF).dense
    assert off.dense > first_pass
    side = SIDE * 3 // 2
    if server.kind == "neo":
        side = (side + 32) // 64 * 64  # modules/processing.py
    assert off.pixels[0].shape[:2] == (side, side)
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
    assert draw("off again", OFF, **hires).hash == off.hash


def _mask(size: int = SIDE) -> str:
    import base64

    picture = Image.new("L", (size, size), 0)
    picture.paste(255, (size // 4, size // 4, size // 2, size // 2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "only masked"])
def test_img2img_and_inpaint(draw: Draw, kind: str) -> None:
    image = draw("source", OFF, seed=3).png[0]
    body: dict[str, Any] = {"image": image, "denoising_strength": 0.75}
    if kind != "img2img":
        body |= {"mask": _mask(), "inpainting_fill": 1, "mask_blur": 2}
        body["inpaint_full_res"] = kind == "only masked"
    # The encoder draws from torch's global generator, which is as the generation before left it
    # (modules/sd_samplers_common.py, images_tensor_to_samples): let that be the same one each time.
    draw("before all", OFF, **body)
    off = draw("off", OFF, **body)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("off again", OFF, **body).hash == off.hash


def test_batch_of_two_by_two(draw: Draw) -> None:
    batch = {"batch_size": 2, "n_iter": 2}
    off, drawn = draw("off", OFF, **batch), draw("on", on(), **batch)
    assert len(off.hashes) == len(drawn.hashes) in (4, 5)  # with a grid, five
    assert not set(off.hashes) & set(drawn.hashes)
    assert len(set(drawn.hashes)) == len(drawn.hashes)
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING, **batch).hashes == off.hashes
    assert draw("off again", OFF, **batch).hashes == off.hashes
    assert draw("on again", on(), **batch).hashes == drawn.hashes
    assert all("CR-Diff ratios" in text for text in drawn.info["infotexts"][-4:])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("AND", {"prompt": "a cat AND a dog :0.7"}),
        ("CFG 1", {"cfg_scale": 1}),
        ("NGMS", {"override_settings": {"s_min_uncond": 4.0}}),
        ("token merging", {"override_settings": {"token_merging_ratio": 0.5}}),
        ("tiling", {"tiling": True}),
        ("long prompt", {"prompt": "a cat, " * 60}),
        ("cond and uncond apart", {"override_settings": {"batch_cond_uncond": False}}),
        ("not square", {"width": SIDE * 3 // 2}),
    ],
)
def test_ways_of_sampling(draw: Draw, server: Any, name: str, body: dict[str, Any]) -> None:
    if server.kind == "neo" and name == "cond and uncond apart":
        pytest.skip("Forge Neo has no option that keeps them apart")
    off = draw("off", OFF, **body)
    drawn = draw("on", on(), **body)
    assert drawn.hash != off.hash
    assert drawn.passes == (off.dense, off.dense)
    assert draw("prunes nothing", NOTHING, **body).hash == off.hash
    assert draw("off again", OFF, **body).hash == off.hash


def test_switching_the_checkpoint_between_jobs(draw: Draw, client: Client, server: Any) -> None:
    """A queue that changes the model: no thresholds or copies of the earlier one."""
    second = checkpoints.SECOND[server.family]
    before = draw("first model, on", on(memory="copy"))
    first = client.get("/crdiff-probe/state")["checkpoint"]
    client.set_model(second)
    other_off = draw("second model, off", OFF)
    other = draw("second model, on", on(memory="copy"))
    assert len({before.hash, other.hash, other_off.hash}) == 3
    body = {"override_settings": {"sd_model_checkpoint": first}}
    assert draw("first for one image", on(memory="copy"), **body).hash == before.hash
    assert draw("second again, on", on(memory="recompute")).hash == other.hash
    assert draw("second again, off", OFF).hash == other_off.hash
