"""Drawing: noise, neighbours, negative prompts, and that the pipeline is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.generate import Painter
from harness.methods import DENSE, Drawing
from harness.plan import Batch, Item, Sampling
from harness.prompts import Prompt

SAMPLING = Sampling("0" * 64, 2, 3.0, "", "DDIMScheduler", "1" * 64, "fp32", "cpu", 7, 4)
CRDIFF = Drawing("amplified", Ratios(0.5, 0.5, 0.5), 1.5)
PRUNED = replace(CRDIFF, k=1.0)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)


def batch(drawing: Drawing, *prompts: tuple[str, int]) -> Batch:
    items = [Item(i, Prompt(str(i), text), seed, {}) for i, (text, seed) in enumerate(prompts)]
    return Batch(Size(64, 64), drawing, tuple(items))


def draw(pipe: Any, drawn: Batch, **changes: Any) -> np.ndarray:
    images, seconds = Painter(pipe, replace(SAMPLING, **changes)).draw(drawn)
    assert seconds > 0
    return np.stack([np.asarray(image) for image in images]).astype(int)


RED, BLUE = ("a red circle", 1), ("two blue squares", 2)


def test_an_image_is_its_prompts_and_seeds_own(pipe: Any) -> None:
    both = draw(pipe, batch(DENSE, RED, BLUE))
    swapped = draw(pipe, batch(DENSE, BLUE, RED))
    assert both.shape == (2, 64, 64, 3)
    assert np.abs(both - swapped[::-1]).max() <= 1  # the last bit may differ, nothing else
    other_seed = draw(pipe, batch(DENSE, ("a red circle", 3)))
    assert np.abs(other_seed[0] - both[0]).max() > 1


def test_methods_differ_and_leave_nothing_behind(pipe: Any) -> None:
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    dense = draw(pipe, batch(DENSE, RED))
    pruned = draw(pipe, batch(PRUNED, RED))
    crdiff = draw(pipe, batch(CRDIFF, RED))
    assert not np.array_equal(dense, pruned)
    assert not np.array_equal(pruned, crdiff)
    assert np.array_equal(draw(pipe, batch(DENSE, RED)), dense)
    assert "forward" not in pipe.unet.__dict__
    after = pipe.unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_forward_is_restored_after_an_error(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.vae, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(pipe, batch(CRDIFF, RED))
    assert "forward" not in pipe.unet.__dict__


def test_negative_prompt_and_guidance_count(pipe: Any) -> None:
    plain = draw(pipe, batch(DENSE, RED))
    assert not np.array_equal(plain, draw(pipe, batch(DENSE, RED), negative="a red circle"))
    assert not np.array_equal(plain, draw(pipe, batch(DENSE, RED), guidance=1.0))


def test_noise_does_not_depend_on_the_dtype(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    call = type(pipe).__call__

    def spy(self: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["latents"])
        return call(self, **kwargs)

    monkeypatch.setattr(type(pipe), "__call__", spy)
    draw(pipe, batch(DENSE, RED))
    expected = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    assert torch.equal(seen[0], expected)


def test_encoded_prompts_are_kept_up_to_a_limit(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.generate.KEPT_PROMPTS", 2)
    painter = Painter(pipe, SAMPLING)
    for word in ("red", "blue", "green"):
        painter._encode(f"a {word} circle")
    assert list(painter._encoded) == ["a blue circle", "a green circle"]


def test_inpainting_models_are_refused(pipe: Any) -> None:
    class Inpainting:
        class unet:
            class config:
                in_channels = 9

        vae = pipe.vae

    with pytest.raises(CRDiffError, match="9 channels"):
        Painter(Inpainting(), SAMPLING)
