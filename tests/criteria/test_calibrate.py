"""What calibration measures in a live pipeline, against the same by other means."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from crdiff_ext.blocks import PrunableLayer, prunable_layers
from crdiff_ext.errors import CRDiffError
from harness.criteria.calibrate import LOSS_SCALE, TIMESTEPS, Run, gradients, hessians, input_norms
from harness.criteria.settings import Criterion
from tests.criteria.conftest import SAMPLING, SIZE

TWO = Criterion("wanda", 5, ("a red circle", "two blue squares"))
ONE = Criterion("taylor", 5, ("a red circle",))


def some_layers(pipe: Any) -> list[PrunableLayer]:
    """One of each width of input."""
    found = {layer.module.weight.shape[1]: layer for layer in prunable_layers(pipe.unet)}
    return list(found.values())


def recorded(pipe: Any, layer: PrunableLayer, criterion: Criterion) -> list[list[torch.Tensor]]:
    """The layer's inputs [tokens, in], by prompt and step, from plain pipeline calls."""
    prompts = []
    for i, text in enumerate(criterion.prompts):
        steps: list[torch.Tensor] = []
        hook = layer.module.register_forward_hook(
            lambda _m, args, _o, steps=steps: steps.append(args[0].flatten(0, 1).double())
        )
        latents(pipe, text, criterion.seed + i)
        hook.remove()
        assert len(steps) == SAMPLING.steps
        prompts.append(steps)
    return prompts


def latents(pipe: Any, text: str, seed: int) -> torch.Tensor:
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    return pipe(
        text,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=SAMPLING.steps,
        guidance_scale=SAMPLING.guidance,
        latents=noise,
        output_type="latent",
    ).images


def test_norms_are_those_of_all_inputs(pipe: Any, run: Run) -> None:
    layers = some_layers(pipe)
    norms = input_norms(layers, run, TWO)
    assert set(norms) == {layer.canonical for layer in layers}
    for layer in layers:
        everything = torch.cat([x for steps in recorded(pipe, layer, TWO) for x in steps])
        assert everything.shape[1] == layer.module.weight.shape[1]
        assert torch.allclose(norms[layer.canonical], everything.norm(dim=0), rtol=1e-4)


def test_hessians_are_weighted_by_step(pipe: Any, run: Run) -> None:
    layer = some_layers(pipe)[0]
    found = hessians([layer], run, TWO)[layer.canonical]
    first = last = 0
    for steps in recorded(pipe, layer, TWO):
        first, last = first + steps[0].T @ steps[0], last + steps[1].T @ steps[1]
    expected = 1.2 * first + 0.8 * last  # two steps
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
    assert not torch.allclose(found.double(), first + last, rtol=1e-2)


def test_gradients_are_the_training_loss_by_autograd(pipe: Any, run: Run) -> None:
    """With diffusers' own noising and velocity, prompt encoding, and loss.backward()."""
    layers = some_layers(pipe)
    found = gradients(layers, run, ONE)

    clean = latents(pipe, "a red circle", 5)
    text = pipe.encode_prompt("a red circle", "cpu", 1, False)[0].detach()
    unet = copy.deepcopy(pipe.unet)
    generator = torch.Generator().manual_seed(5)
    scheduler = pipe.scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    for i in range(TIMESTEPS):
        t = torch.tensor([50 + 100 * i])
        noise = torch.randn(clean.shape, generator=generator)
        output = unet(scheduler.add_noise(clean, noise, t), t, encoder_hidden_states=text).sample
        target = scheduler.get_velocity(clean, noise, t)
        ((output - target) ** 2).mean().backward()  # adds up in .grad
    modules = dict(unet.named_modules())
    for layer in layers:
        expected = modules[layer.name].weight.grad
        assert float(expected.abs().max()) > 0
        assert torch.allclose(found[layer.canonical] / LOSS_SCALE, expected, rtol=1e-2, atol=1e-7)


def test_epsilon_models_are_judged_by_their_noise(pipe: Any, run: Run) -> None:
    layer = some_layers(pipe)[0]
    v = gradients([layer], run, ONE)[layer.canonical]
    kind = pipe.scheduler.config.prediction_type
    try:
        pipe.scheduler.register_to_config(prediction_type="epsilon")
        epsilon = gradients([layer], run, ONE)[layer.canonical]
        pipe.scheduler.register_to_config(prediction_type="flow")
        with pytest.raises(CRDiffError, match="flow"):
            gradients([layer], run, ONE)
    finally:
        pipe.scheduler.register_to_config(prediction_type=kind)
    assert not torch.allclose(v, epsilon, rtol=0.1)


@pytest.mark.parametrize("measure", [input_norms, hessians, gradients])
def test_nothing_is_left_behind_even_after_an_error(
    pipe: Any, run: Run, measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = some_layers(pipe)
    pipe.unet.requires_grad_(False)
    layers[0].module.weight.requires_grad_(True)
    asked = [layer.module.weight.requires_grad for layer in layers]

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def check() -> None:
        assert [layer.module.weight.requires_grad for layer in layers] == asked
        assert all(layer.module.weight.grad is None for layer in layers)
        modules = [pipe.unet, *(layer.module for layer in layers)]
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)

    measure(layers[:2], run, ONE)
    check()
    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet.conv_out, "forward", broken)
        with pytest.raises(KeyboardInterrupt):
            measure(layers, run, ONE)
    check()
    pipe.unet.requires_grad_(True)


def test_numbers_that_are_none_are_told(
    pipe: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = some_layers(pipe)[0]
    monkeypatch.setattr(
        pipe.unet.conv_in, "forward", lambda x: torch.full((len(x), 64, 8, 8), torch.nan)
    )
    with pytest.raises(CRDiffError, match=r"not numbers \(NaN\) at layer"):
        input_norms([layer], run, ONE)
