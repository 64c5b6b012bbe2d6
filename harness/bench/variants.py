"""The ways of amplifying that the fidelity table compares: those of the core, and two on trial.

On trial are a window of the schedule, which the core has but ``crdiff run`` does not offer, and
amplifying the conditional half of guidance alone, which exists here only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from crdiff_ext.amplify import EXACT, FOLDED, Window, combine, expected_cost
from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.patch import CRDiff, fresh
from crdiff_ext.pruning import PrunePlan, make_plan
from crdiff_ext.settings import AMPLIFICATIONS, Ratios
from crdiff_ext.weights import PrunedWeights
from harness.config import Size
from harness.generate import Painter
from harness.methods import Drawing

ON_TRIAL = ("first-half", "last-half", "cond-only")
MODES = (*AMPLIFICATIONS, "pruned", *ON_TRIAL)
_WINDOWS = {"first-half": (0.0, 0.5), "last-half": (0.5, 1.0)}


@dataclass(frozen=True)
class Variant(Drawing):
    """A drawing that ``crdiff run`` does not offer."""

    window: tuple[float, float] = (0.0, 1.0)
    cond_only: bool = False

    def key_fields(self) -> dict[str, Any]:
        """What of this goes into an image's key."""
        return {
            **super().key_fields(),
            "window": list(self.window),
            "cond_only": self.cond_only,
        }


def drawing_of(mode: str, ratios: Ratios, k: float) -> Drawing:
    """The drawing of a mode; ``mode`` is one of ``MODES``."""
    if mode == "pruned":
        return Drawing("amplified", ratios, 1.0)
    if mode in ON_TRIAL:
        window = _WINDOWS.get(mode, (0.0, 1.0))
        return Variant("amplified", ratios, k, window=window, cond_only=mode == "cond-only")
    return Drawing("amplified", ratios, k, amplification=mode)


def cost_of(mode: str, k: float) -> float:
    """UNet passes a step, dense being 1 (of a batch with both halves of guidance)."""
    if mode in ("dense", "pruned"):
        return 1.0
    return 1.5 if mode in ON_TRIAL else expected_cost(mode, k)


class VariantPainter(Painter):
    """A ``Painter`` that draws variants too."""

    def _handle(self, drawing: Drawing) -> Any:
        if not isinstance(drawing, Variant):
            return super()._handle(drawing)
        if drawing not in self._handles:
            assert drawing.ratios is not None
            assert drawing.k is not None
            plan = make_plan(prunable_parameters(self.pipe.unet), drawing.ratios)
            made: Any
            if drawing.cond_only:
                made = CondOnly(self.pipe.unet, plan, drawing.k)
            else:
                made = Clocked(self.pipe, plan, drawing.k, drawing.window)
            self._handles = {drawing: made}
        return self._handles[drawing]


class Clocked:
    """CR-Diff in a window of the schedule of a diffusers pipeline."""

    def __init__(self, pipe: Any, plan: PrunePlan, k: float, window: tuple[float, float]) -> None:
        self._pipe = pipe
        self._handle = CRDiff(pipe.unet, plan, k, window=Window(*window))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the UNet's calls in the window are amplified."""

        def clock(_: Any, args: Any, kwargs: Any) -> None:
            schedule = self._pipe.scheduler.timesteps
            timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
            step = int((schedule == timestep).nonzero()[0])
            self._handle.fraction = step / len(schedule)

        hook = self._pipe.unet.register_forward_pre_hook(clock, with_kwargs=True)
        try:
            with self._handle.attached():
                yield
        finally:
            hook.remove()


class CondOnly:
    """Amplifies the second half of the batch, which is the conditional one in diffusers."""

    def __init__(self, unet: torch.nn.Module, plan: PrunePlan, k: float) -> None:
        self._unet, self._k = unet, k
        self._weights = PrunedWeights(unet, plan)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, each call of the UNet is a dense pass and a pruned one of half of the batch."""

        def forward(original: Any, sample: Any, timestep: Any, **rest: Any) -> Any:
            z, *more = original(sample, timestep, **rest)
            half = len(sample) // 2
            text = rest.pop("encoder_hidden_states")[half:]
            with self._weights.active():
                pruned = original(sample[half:], timestep, encoder_hidden_states=text, **rest)[0]
            return (torch.cat([z[:half], combine(z[half:], pruned, self._k)]), *more)

        try:
            with replaced_forward(self._unet, forward):
                yield
        finally:
            self._weights.free()


class StepErrors:
    """Relative errors of each mode's prediction, step by step along the exact trajectory.

    Attributes:
        errors: mode -> for each UNet call ``|z_mode - z_exact| / |z_exact|`` over the whole batch.
        corrections: for each call ``|z_exact - z_dense| / |z_exact|``: the error of not amplifying.
    """

    def __init__(self, unet: torch.nn.Module, plan: PrunePlan, k: float) -> None:
        self._unet, self._k = unet, k
        self._pruned = PrunedWeights(unet, plan)
        self._folded = PrunedWeights(unet, plan, factor=1 - k)
        self._deltas: list[torch.Tensor] = []
        self.errors: dict[str, list[float]] = {
            mode: [] for mode in (*AMPLIFICATIONS, "pruned") if mode != EXACT
        }
        self.corrections: list[float] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the UNet's calls are exact, and what the others would give is compared."""
        self._deltas.clear()
        try:
            with replaced_forward(self._unet, self._forward):
                yield
        finally:
            self._pruned.free()
            self._folded.free()

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        dense, *more = original(*fresh(args), **fresh(kwargs))
        with self._pruned.active():
            pruned = original(*fresh(args), **fresh(kwargs))[0]
        with self._folded.active():
            folded = original(*fresh(args), **fresh(kwargs))[0]
        exact = combine(dense, pruned, self._k)
        self._deltas.append(pruned - dense)
        step = len(self._deltas) - 1
        size = exact.norm()
        self.corrections.append(float((exact - dense).norm() / size))
        for mode, errors in self.errors.items():
            if mode == FOLDED:
                z = folded
            elif mode == "pruned":
                z = pruned
            else:
                every = int(mode.rpartition("-")[2])
                z = pruned + (self._k - 1) * self._deltas[step - step % every]
            errors.append(float((z - exact).norm() / size))
        return (exact, *more)


@contextmanager
def replaced_forward(unet: torch.nn.Module, forward: Any) -> Iterator[None]:
    """Inside, calls of ``unet`` go to ``forward(original, ...)``."""
    assert "forward" not in unet.__dict__, "something is attached to this UNet already"
    original = unet.forward
    unet.__dict__["forward"] = lambda *args, **kwargs: forward(original, *args, **kwargs)
    try:
        yield
    finally:
        del unet.__dict__["forward"]


def native_resize(native: Size) -> Drawing:
    """Drawn densely at the native size, then scaled."""
    return Drawing("resize", source_size=native)
