"""Refinement where an earlier generation left another checkpoint in memory (AUTOMATIC1111)."""

from __future__ import annotations

from typing import Any

import pytest

from crdiff_ext.presets import builtin_presets
from tests.live.client import OFF, Client
from tests.live.test_refine import BODY, BUDGET, SEEDS, STEPS, embedded, model, refine

__all__ = ["embedded", "model"]

HOST = "a1111"
OTHER = "tiny-sd1-b.safetensors"  # of no known family: the sizes stored for the base don't apply
LEFT = {
    "refiner": {"refiner_checkpoint": OTHER, "refiner_switch_at": 0.5},
    "hires": {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
        "hr_checkpoint_name": OTHER,
    },
}


def leave(client: Client, how: str, model: str) -> None:
    """Generate so that ``OTHER`` is in memory, and ``model`` still the one that is chosen."""
    client.txt2img(OFF, **BODY, **LEFT[how])
    assert client.get("/crdiff-probe/state")["checkpoint"] == OTHER
    assert client.get("/sdapi/v1/options")["sd_model_checkpoint"].startswith(model)


@pytest.mark.parametrize("how", LEFT)
def test_the_chosen_model_is_refined(embedded: Client, model: str, how: str, note: Any) -> None:
    off = [embedded.txt2img(OFF, **{**BODY, "seed": 11 + n}).hash for n in range(SEEDS)]
    leave(embedded, how, model)
    embedded.counts()
    made = refine(embedded, {"session": how})
    counts, found = embedded.counts(), embedded.refined(how)
    note(message=found["message"], rows=found["rows"])
    assert [image for image, told in made.rounds if told.endswith("dense")] == off
    assert counts == {"dense": BUDGET * STEPS, "pruned": (BUDGET - SEEDS) * STEPS}
    # By the other model's facts there would be neither: its family and native size are not known.
    stored = next(
        preset
        for preset in builtin_presets()
        if (preset.family, preset.height, preset.width) == ("embedded", 96, 128)
    )
    (start,) = (row for row in found["rows"] if row["kind"] == "start")
    assert start["ratios"] == stored.ratios.as_dict()
    assert all("Model: embedded" in text for text in made.info["infotexts"])
    assert embedded.get("/crdiff-probe/state")["checkpoint"] == model
    assert embedded.txt2img(OFF, **BODY).hash == off[0]


def test_with_a_refiner_of_its_own(embedded: Client, note: Any) -> None:
    """Each round leaves the refiner behind, and the next one begins with the chosen model."""
    body = {**BODY, **LEFT["refiner"]}
    off = [embedded.txt2img(OFF, **{**body, "seed": 11 + n}).hash for n in range(SEEDS)]
    embedded.counts()
    made = refine(embedded, {"session": "with a refiner"}, **LEFT["refiner"])
    counts, rows = embedded.counts(), embedded.refined("with a refiner")["rows"]
    note(rows=rows, **counts)
    assert [image for image, told in made.rounds if told.endswith("dense")] == off
    assert counts["dense"] == BUDGET * STEPS
    assert {row["kind"] for row in rows} == {"dense", "start", "candidate"}
    assert all("Model: embedded" in text for text in made.info["infotexts"])
    best = next(n for n, (_, told) in enumerate(made.rounds) if not told.endswith("dense"))
    again = embedded.txt2img(
        None, prompt=None, negative_prompt=None, steps=None, width=None, height=None, seed=None,
        sampler_name=None, cfg_scale=None, infotext=made.info["infotexts"][best],
        **LEFT["refiner"],
    )  # fmt: skip
    assert again.hash == made.hashes[best]


def test_picking_goes_on_after_a_refiner(embedded: Client, model: str) -> None:
    hand = {"judge": "hand", "session": "left by hand", "seeds": 1, "budget": 4}
    first = refine(embedded, hand)
    leave(embedded, "refiner", model)
    second = refine(embedded, {**hand, "choice": "second"})
    assert second.hashes[0] == first.hashes[1]
    assert len(second.hashes) == 2
    assert embedded.refined("left by hand")["waiting"] is True
