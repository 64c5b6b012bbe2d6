"""What the calibrated criteria measure while the live pipeline draws the calibration prompts.

One prompt at a time, so that the numbers don't depend on a batch; by hooks on the prunable layers,
removed whatever happens. Both halves of classifier-free guidance count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from crdiff_ext.blocks import PrunableLayer
from crdiff_ext.errors import CRDiffError
from harness.criteria.obs import timestep_weight
from harness.criteria.settings import Criterion

TIMESTEPS = 10
"""Noise levels at which Taylor's loss is taken for each prompt, evenly spread."""
LOSS_SCALE = 1024.0
"""Keeps fp16 gradients from vanishing; the ranking does not depend on it."""

StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """How calibration draws.

    Attributes:
        unet, scheduler: the live ones.
        draw: (prompt, seed, diffusers' ``callback_on_step_end``) -> final latents [1, C, h, w].
        steps: sampling steps.
        guided: whether the UNet's batch is negative prompts first, prompts second.
    """

    unet: torch.nn.Module
    scheduler: Any
    draw: Callable[[str, int, StepEnd], torch.Tensor]
    steps: int
    guided: bool

    def all_prompts(self, criterion: Criterion) -> Iterator[tuple[int, torch.Tensor]]:
        """Draw every calibration prompt; yields its number and latents."""
        for number, text in enumerate(criterion.prompts):
            yield number, self.draw(text, criterion.seed + number, _go_on)


def _go_on(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
    return values


@contextmanager
def _watching(
    layers: Sequence[PrunableLayer], see: Callable[[PrunableLayer, torch.Tensor], None]
) -> Iterator[None]:
    """``see(layer, inputs [tokens, in])`` at every forward of the layers."""

    def hook(layer: PrunableLayer) -> Callable[..., None]:
        def before(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            see(layer, args[0].detach().flatten(0, -2).float())

        return before

    handles = []
    try:
        for layer in layers:
            handles.append(layer.module.register_forward_pre_hook(hook(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def input_norms(
    layers: Sequence[PrunableLayer], run: Run, criterion: Criterion
) -> dict[str, torch.Tensor]:
    """||X_j||_2 [in] of each layer's inputs over all calibration tokens, fp64 on the CPU."""
    squares: dict[str, torch.Tensor] = {}

    def see(layer: PrunableLayer, inputs: torch.Tensor) -> None:
        one = inputs.square().sum(0).cpu().double()
        squares[layer.canonical] = squares.get(layer.canonical, 0) + one

    with _watching(layers, see):
        for _ in run.all_prompts(criterion):
            pass
    return {name: _finite(total, name).sqrt() for name, total in squares.items()}


@torch.no_grad()
def hessians(
    layers: Sequence[PrunableLayer], run: Run, criterion: Criterion
) -> dict[str, torch.Tensor]:
    """``sum_t alpha_t X_t X_t^T`` [in, in] of each layer's inputs, fp32 on the layer's device."""
    found: dict[str, torch.Tensor] = {}
    step = 0

    def count(_pipe: Any, done: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal step
        step = done + 1
        return values

    def see(layer: PrunableLayer, inputs: torch.Tensor) -> None:
        name, width = layer.canonical, inputs.shape[1]
        if name not in found:
            found[name] = inputs.new_zeros((width, width))
        weight = timestep_weight(min(step, run.steps - 1), run.steps)
        found[name].addmm_(inputs.T, inputs, alpha=weight)

    with _watching(layers, see):
        for number, text in enumerate(criterion.prompts):
            step = 0
            run.draw(text, criterion.seed + number, count)
    return {name: _finite(total, name) for name, total in found.items()}


def gradients(
    layers: Sequence[PrunableLayer], run: Run, criterion: Criterion
) -> dict[str, torch.Tensor]:
    """The diffusion loss' gradient for each layer's weight [out, in], fp32, times a constant.

    The loss is the training loss: the mean squared error of the UNet's prediction on noised
    latents, with the prompt and without guidance, over ``TIMESTEPS`` noise levels for each
    calibration prompt. There are no training images at hand, so the clean latents are the dense
    model's own for that prompt.
    """
    kind = run.scheduler.config.prediction_type
    if kind not in _TARGETS:
        raise CRDiffError(
            f"Taylor's criterion needs a model that predicts epsilon or v, not {kind}: leave it out"
        )
    parameters = [cast(torch.Tensor, layer.module.weight) for layer in layers]
    asked = [parameter.requires_grad for parameter in parameters]
    totals = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with _conditions_of(run) as conditions, torch.inference_mode(False):
            for number, clean in _drawn(run, criterion):
                generator = torch.Generator().manual_seed(criterion.seed + number)
                for time in _times(run.scheduler):
                    with torch.enable_grad():
                        loss = _loss(run, clean, time, generator, conditions)
                        found = torch.autograd.grad(loss * LOSS_SCALE, parameters)
                    for total, gradient in zip(totals, found, strict=True):
                        total += gradient
    finally:
        for parameter, before in zip(parameters, asked, strict=True):
            parameter.requires_grad_(before)
    return {
        layer.canonical: _finite(total, layer.canonical)
        for layer, total in zip(layers, totals, strict=True)
    }


def _drawn(run: Run, criterion: Criterion) -> Iterator[tuple[int, torch.Tensor]]:
    for number, text in enumerate(criterion.prompts):
        with torch.no_grad():
            latents = run.draw(text, criterion.seed + number, _go_on)
        yield number, latents.detach().clone()


@contextmanager
def _conditions_of(run: Run) -> Iterator[dict[str, Any]]:
    """The keyword arguments of the UNet's last call while drawing: text, and SDXL's pooled text."""
    kept: dict[str, Any] = {}

    def before(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():  # the pipeline's call, not ours
            kept.clear()
            kept.update(kwargs)

    handle = run.unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield kept
    finally:
        handle.remove()


def _loss(
    run: Run,
    clean: torch.Tensor,
    time: int,
    generator: torch.Generator,
    conditions: dict[str, Any],
) -> torch.Tensor:
    """Mean squared error at one noise level; x_t = sqrt(a) x_0 + sqrt(1 - a) noise."""
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    a = run.scheduler.alphas_cumprod[time].to(clean.device, torch.float32)
    signal, spread = a.sqrt().to(clean.dtype), (1 - a).sqrt().to(clean.dtype)
    noised = signal * clean + spread * noise
    given = {name: _prompt_half(value, run.guided) for name, value in conditions.items()}
    times = torch.tensor([time], device=clean.device)
    output = run.unet(noised, times, **{**given, "return_dict": False})[0]
    target = _TARGETS[run.scheduler.config.prediction_type](clean, noise, signal, spread)
    return torch.nn.functional.mse_loss(output.float(), target.float())


_TARGETS: dict[str, Callable[..., torch.Tensor]] = {
    "epsilon": lambda clean, noise, signal, spread: noise,
    "v_prediction": lambda clean, noise, signal, spread: signal * noise - spread * clean,
    "sample": lambda clean, noise, signal, spread: clean,
}


def _prompt_half(value: Any, guided: bool) -> Any:
    """The prompt's rows of what guidance stacked; inference tensors as ordinary ones."""
    if isinstance(value, dict):
        return {name: _prompt_half(item, guided) for name, item in value.items()}
    if isinstance(value, torch.Tensor):
        return (value[value.shape[0] // 2 :] if guided else value).detach().clone()
    return value


def _times(scheduler: Any) -> list[int]:
    """``TIMESTEPS`` training timesteps, in the middles of equal parts of the schedule."""
    total = scheduler.config.num_train_timesteps
    return [int((i + 0.5) * total / TIMESTEPS) for i in range(TIMESTEPS)]


def _finite(total: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(total).all():
        raise CRDiffError(
            f"calibration gave values that are not numbers (NaN) at layer {name}: try --dtype fp32 "
            "or bf16"
        )
    return total
