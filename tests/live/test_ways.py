"""Folded and reused amplification in any host: fewer forwards, the same care for the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.live.client import OFF, SIDE, STEPS, Client, Drawn, Refused, on
from tests.live.conftest import Draw
from tests.live.lora import write_lora

WAYS = ("folded", "reuse-2", "reuse-3", "reuse-4")


def ask(way: str, ratio: float = 0.4, **more: Any) -> dict[str, Any]:
    return on(ratio, amplification=way, **more)


def dense_steps(way: str, steps: int) -> int:
    """How many of so many steps have a dense pass."""
    return 0 if way == "folded" else -(-steps // int(way.removeprefix("reuse-")))


def distance(a: Drawn, b: Drawn) -> float:
    """Root of the mean square of the difference of two images' pixels, 0 to 255."""
    x, y = (one.pixels[0].astype(np.float64) for one in (a, b))
    return float(np.sqrt(np.mean((x - y) ** 2)))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_pruned_is_off_and_off_again_is_off(draw: Draw, client: Client, way: str) -> None:
    off = draw("off", OFF)
    weights = client.weights()
    nothing = draw("prunes nothing", ask(way, 1e-9))
    assert (nothing.hash, nothing.pruned) == (off.hash, 0)
    drawn = draw("on", ask(way))
    assert drawn.hash != off.hash
    assert drawn.pruned == off.dense
    again = draw("on again", ask(way))
    assert again.hash == drawn.hash
    assert again.passes == (dense_steps(way, STEPS), STEPS)
    assert f"CR-Diff amplification: {way}" in drawn.infotext
    after = draw("off again", OFF)
    assert (after.hash, after.passes) == (off.hash, off.passes)
    assert client.weights() == weights


def test_one_more_forward_only_where_the_host_merges_lazily(draw: Draw, server: Any) -> None:
    """Ratios that nobody has asked for yet: no thresholds are known."""
    off = draw("off", OFF)
    first, second = (draw(f"image {n}", ask("folded", 0.3713)) for n in (1, 2))
    assert first.hash == second.hash
    assert first.passes == (1 if server.kind == "a1111" else 0, off.dense)
    assert second.passes == (0, off.dense)
    single = draw("k 1", on(0.3317, k=1))
    assert single.passes == (1 if server.kind == "a1111" else 0, off.dense)


@pytest.mark.parametrize("memory", ["recompute", "copy"])
def test_close_to_exact_and_not_equal(draw: Draw, note: Any, memory: str) -> None:
    off, exact = draw("off", OFF), draw("exact", on(0.1, memory=memory))
    effect = distance(off, exact)
    assert effect > 0
    for way in WAYS:
        drawn = draw(way, ask(way, 0.1, memory=memory))
        error = distance(drawn, exact)
        note(**{f"{way}: error beside the effect": round(error / effect, 4)})
        assert drawn.hash != exact.hash or STEPS < 2
        assert error < effect / 2


def test_both_memory_modes_give_the_same_pixels(draw: Draw) -> None:
    kinds = {memory: draw(memory, ask("folded", memory=memory)) for memory in ("recompute", "copy")}
    assert kinds["recompute"].hash == kinds["copy"].hash
    assert all(drawn.pruned for drawn in kinds.values())


def test_a_window_and_the_hires_pass(draw: Draw, server: Any) -> None:
    half = draw("second half", ask("folded", start=0.5))
    assert half.pruned == STEPS / 2
    assert half.dense in (STEPS / 2, STEPS / 2 + 1)
    extra = {"hr_additional_modules": ["Use same choices"]} if server.family == "forge" else {}
    upscaler = "None" if server.kind == "neo" else "Latent"
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": upscaler}
    off = draw("hires, off", OFF, **hires, **extra)
    draw("before", ask("folded"))
    folded = draw("hires, folded", ask("folded"), **hires, **extra)
    assert folded.passes == (0, off.dense)
    reused = draw("hires, reuse-4", ask("reuse-4"), **hires, **extra)
    second_pass = off.dense - STEPS
    expected = dense_steps("reuse-4", STEPS) + dense_steps("reuse-4", second_pass)
    assert reused.passes == (expected, off.dense)
    assert len({off.hash, folded.hash, reused.hash}) == 3
    assert draw("hires, off again", OFF, **hires, **extra).hash == off.hash


@pytest.mark.parametrize("way", ["folded", "reuse-4"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("AND", {"prompt": "a cat AND a dog :0.7"}),
        ("NGMS", {"override_settings": {"s_min_uncond": 4.0}}),
        ("long prompt", {"prompt": "a cat, " * 60}),
        ("apart", {"override_settings": {"batch_cond_uncond": False}}),
        ("not square", {"width": SIDE * 3 // 2}),
        ("batch", {"batch_size": 2, "n_iter": 2}),
    ],
)
def test_ways_of_sampling(
    draw: Draw, server: Any, way: str, name: str, body: dict[str, Any]
) -> None:
    if server.kind == "neo" and name == "apart":
        pytest.skip("Forge Neo has no option that keeps cond and uncond apart")
    off = draw("off", OFF, **body)
    draw("exact", on(), **body)
    drawn = draw(way, ask(way), **body)
    assert not set(drawn.hashes) & set(off.hashes)
    assert drawn.pruned == off.dense
    # NGMS: steps without uncond have differences of their own, so there may be no step to save in
    most = 0 if way == "folded" else 1 if name == "NGMS" else 0.75
    assert drawn.dense <= off.dense * most
    assert draw("prunes nothing", ask(way, 1e-9), **body).hashes == off.hashes
    assert draw("off again", OFF, **body).hashes == off.hashes


@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("kind", ["exception", "interrupt", "button"])
def test_after_a_fault_in_a_folded_pass_all_is_as_before(
    draw: Draw, client: Client, kind: str, memory: str
) -> None:
    off = draw("off", OFF)
    weights = client.weights()
    client.counts()
    client.inject(kind, at=2)
    if kind == "exception":
        with pytest.raises(Refused) as caught:
            client.txt2img(ask("folded", memory=memory))
        assert caught.value.status == 500
    else:
        assert client.txt2img(ask("folded", memory=memory)).hash != off.hash
    passes = client.counts()
    assert passes["pruned"] in (1, 2), "the fault did not strike in the second folded pass"
    assert client.weights() == weights
    after = draw("off after it", OFF)
    assert (after.hash, after.passes) == (off.hash, off.passes)
    assert draw("folded after it", ask("folded", memory=memory)).passes == (0, off.dense)


@pytest.mark.parametrize("way", ["folded", "reuse-2"])
def test_lora_goes_in_and_out_around_it(draw: Draw, client: Client, server: Any, way: str) -> None:
    """On, changed, off, on, without a dense image in between: the weights are the host's own."""
    write_lora(server, "around")
    client.post("/sdapi/v1/refresh-loras")
    off = draw("off", OFF)
    weights = client.weights()
    merged = {}
    for strength in ("1", "0.5"):
        draw(f"LoRA at {strength}, off", OFF, prompt=f"a cat <lora:around:{strength}>")
        merged[strength] = client.weights()
    assert draw("off, LoRA out", OFF).hash == off.hash
    assert client.weights() == weights
    drawn = []
    for strength in ("1", "0.5", "", "1", "1"):
        prompt = f"a cat <lora:around:{strength}>" if strength else None
        body = {"prompt": prompt} if prompt else {}
        drawn.append(draw(f"{len(drawn)}: {way}, LoRA {strength or 'out'}", ask(way), **body))
        assert drawn[-1].pruned == off.dense
        assert client.weights() == (merged[strength] if strength else weights)
    assert drawn[0].hash == drawn[3].hash == drawn[4].hash
    assert len({one.hash for one in drawn}) == 3
    assert drawn[4].passes == (dense_steps(way, STEPS), STEPS)
    discarded = 1 if server.kind == "a1111" and way == "folded" else 0
    assert drawn[3].dense == dense_steps(way, STEPS) + discarded
    again = draw("off again", OFF)
    assert again.hash == off.hash
    assert client.weights() == weights


def test_the_first_generation_with_a_lora_may_be_a_folded_one(
    draw: Draw, client: Client, server: Any
) -> None:
    write_lora(server, "new", seed=9)
    client.post("/sdapi/v1/refresh-loras")
    off = draw("off", OFF)
    weights = client.weights()
    drawn = draw("LoRA, folded", ask("folded", memory="copy"), prompt="a cat <lora:new:1>")
    assert drawn.pruned == off.dense
    again = draw("LoRA, folded, again", ask("folded"), prompt="a cat <lora:new:1>")
    assert again.hash == drawn.hash
    assert draw("off again", OFF).hash == off.hash
    assert client.weights() == weights


def test_a_wrong_way_is_4xx_with_a_sentence(client: Client) -> None:
    client.counts()
    for wrong in ("fast", "reuse-1", "", None):
        with pytest.raises(Refused) as caught:
            client.txt2img(ask("exact") | {"amplification": wrong})
        assert caught.value.status == 422
        assert "amplification is" in caught.value.detail
    assert client.counts() == {"dense": 0, "pruned": 0}
