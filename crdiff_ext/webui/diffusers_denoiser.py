"""A diffusers pipeline's network (UNet or transformer) while CR-Diff is on it: one pipeline call.

The pipeline calls the network as a module, so its forward is replaced on the instance and put back
afterwards. accelerate's hooks (model and balanced offloading) replace the forward too, move weights
in it, and call ``_old_forward``: there is our place then, inside of them, where the weights are on
the device that they are used on for both passes, and where hooks that come and go leave it alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..amplify import Place

_MISSING: Any = object()
_SAMPLES = ("sample", "hidden_states", "x")
_TIMES = ("timestep", "timesteps", "t")


class Replaced:
    """A module's forward, replaced by ``wrap`` of it until ``undo``."""

    def __init__(
        self, module: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        held = module.__dict__
        inner = "_hf_hook" in held and "_old_forward" in held
        slot = "_old_forward" if inner else "forward"
        self._module = module
        self._original = getattr(module, slot)
        self._before = held.get(slot, _MISSING)
        self._ours = wrap(self._original)
        held[slot] = self._ours

    def undo(self) -> None:
        """Put back what was there, wherever a hook has taken ours to; harmless to repeat."""
        held = self._module.__dict__
        for slot in ("forward", "_old_forward"):
            if held.get(slot) is not self._ours:
                continue
            if self._before is not _MISSING:
                held[slot] = self._before
            elif slot == "forward":
                del held[slot]
            else:
                held[slot] = self._original


class Schedule:
    """Where in its schedule a pipeline call is: by the scheduler's own account, no step is counted.

    Args:
        scheduler: the pipeline's, with ``timesteps`` once it samples.
        whole: count from the schedule's beginning (a refiner goes on where the first model was);
            else from the call's first step (img2img begins in the middle).
    """

    def __init__(self, scheduler: Any, whole: bool) -> None:
        self._scheduler = scheduler
        self._first: int | None = 0 if whole else None
        self._level: float | None = None
        self._calls = 0

    def fraction(self, timestep: Any) -> float | None:
        """Steps done / steps in all, below 1; None when the scheduler tells too little.

        Second-order schedulers list a step's timesteps one after the other, so their calls count
        as parts of steps.
        """
        steps = getattr(self._scheduler, "timesteps", None)
        if steps is None or not len(steps):
            return None
        index = self._index(timestep, steps)
        if index is None:
            return None
        if self._first is None:
            self._first = int(index)
        done, left = index - self._first, len(steps) - self._first
        return min(max(done / left, 0.0), math.nextafter(1.0, 0.0)) if left > 0 else None

    def _index(self, timestep: Any, steps: Any) -> int | None:
        """Of the call's step among ``steps``. FLUX divides its timesteps, so they tell nothing."""
        scheduler = self._scheduler
        index = getattr(scheduler, "step_index", None)
        if index is None:  # before the first step, and in those that don't keep it (DDIM)
            index = getattr(scheduler, "begin_index", None)
        if index is None:
            index = _index_of(timestep, steps)
        if index is None and hasattr(scheduler, "step_index"):
            return 0  # it keeps account, and has made no step yet
        return index

    def number(self, level: float) -> int:
        """Of a call among those at its noise level, from 0: what tells cond from uncond."""
        self._calls = self._calls + 1 if level == self._level else 0
        self._level = level
        return self._calls


def _index_of(timestep: Any, steps: Any) -> int | None:
    wanted = float(torch.as_tensor(timestep).flatten()[0])
    found = torch.as_tensor(steps).float().cpu().sub(wanted).abs() < 1e-3
    return int(found.nonzero()[0]) if bool(found.any()) else None


def named(forward: Callable[..., Any]) -> Callable[[Any, Any], dict[str, Any]]:
    """Gives a call's arguments by name, as ``forward`` declares them."""
    names = list(inspect.signature(forward).parameters)
    return lambda args, kwargs: {**dict(zip(names, args, strict=False)), **kwargs}


def sample_of(arguments: Mapping[str, Any]) -> Any:
    """The latents among a call's arguments; None when they have another name."""
    return next((arguments[name] for name in _SAMPLES if name in arguments), None)


def timestep_of(arguments: Mapping[str, Any]) -> Any:
    """The timestep among a call's arguments."""
    return next((arguments[name] for name in _TIMES if name in arguments), None)


def size_of(arguments: Mapping[str, Any], factor: int) -> tuple[int, int] | None:
    """(height, width) in pixels; None when the call doesn't tell.

    Latents [n, c, h, w] are ``factor`` pixels a latent pixel; packed ones [n, tokens, c] (FLUX)
    come with the row and column of each token, of 2 x 2 latent pixels (``img_ids``).
    """
    sample, ids = sample_of(arguments), arguments.get("img_ids")
    if not isinstance(sample, torch.Tensor):
        return None
    if sample.dim() == 4:
        return sample.shape[-2] * factor, sample.shape[-1] * factor
    if sample.dim() == 3 and isinstance(ids, torch.Tensor):
        rows, columns = (int(ids[..., axis].max()) + 1 for axis in (-2, -1))
        return rows * 2 * factor, columns * 2 * factor
    return None


def place_of(
    schedule: Schedule, arguments: Mapping[str, Any], windowed: bool, reusing: bool
) -> Place:
    """Where a call is. Timesteps are only read where somebody needs them: it waits for a GPU."""
    timestep = timestep_of(arguments)
    fraction = schedule.fraction(timestep) if windowed and timestep is not None else None
    if not reusing or timestep is None:
        return Place(fraction)
    level = float(torch.as_tensor(timestep).max())
    shape = tuple(getattr(sample_of(arguments), "shape", ()))
    return Place(fraction, level, (schedule.number(level), shape))
