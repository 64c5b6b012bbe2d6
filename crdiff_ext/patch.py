"""CR-Diff attached to a live UNet or transformer: each call becomes two passes and their mix."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .amplify import EXACT, FOLDED, Amplifier, PassCounts, Place, Window, small_weight_factor
from .errors import CRDiffError
from .pruning import PrunePlan
from .settings import K_DEFAULT
from .weights import PrunedWeights

logger = logging.getLogger(__name__)

_ARGUMENTS = (
    ("sample", "x", "hidden_states"),
    ("timestep", "timesteps"),
    ("encoder_hidden_states", "context"),
)
"""Sample, timestep and text as UNets (diffusers, LDM) and diffusers' transformers call them."""
_HANDLE = "_crdiff_handle"  # on our own forward function, to know it again


class CRDiff:
    """CR-Diff for one UNet or transformer; nothing is changed outside ``attached()``.

    Args:
        unet: a UNet (diffusers or LDM) or a transformer (diffusers' SD3, FLUX): a module whose
            forward gives a tensor, a tuple that begins with one, or an object with a ``sample``
            (diffusers). Extra members of tuples and objects are the dense ones.
        plan: thresholds, from ``make_plan`` on this UNet's weights.
        k: amplification, 0 to 3; at 1 only the pruned pass is made, at 0 only the dense one.
        memory: how the pruned pass gets its weights, see ``weights.py``.
        window: part of the schedule to act in; unless it is whole, set ``fraction`` at each step.
        amplification: "exact", "folded" or "reuse-N", see ``amplify.py``.

    Attributes:
        fraction: steps done / steps in all, set by whoever samples; None until then.
        note: a sentence when every call will be one unchanged dense pass, else None.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        plan: PrunePlan,
        k: float = K_DEFAULT,
        memory: str = "auto",
        window: Window = Window(),  # noqa: B008 - immutable
        amplification: str = EXACT,
    ) -> None:
        self.unet = unet
        self.plan = plan
        self.fraction: float | None = None
        self._amplifier = Amplifier(k, window, amplification)
        factor = small_weight_factor(amplification, self._amplifier.k)
        self._weights = PrunedWeights(unet, plan, memory, factor)
        self.note = plan.why_noop
        if self.note is None and self._amplifier.k == 0:
            self.note = "k is 0: one dense pass, nothing changed"

    @property
    def stats(self) -> PassCounts:
        """``dense_passes`` and ``pruned_passes`` made through this handle so far."""
        return self._amplifier.stats

    @property
    def memory(self) -> str:
        """Either "recompute" or "copy", as settled for this UNet."""
        return self._weights.memory

    def prepare(self) -> None:
        """Make the copies of weights now, inside ``attached()``, instead of in the first call."""
        if self.note is None:
            with self._weights.active():
                pass

    @contextmanager
    def attached(self) -> Iterator[CRDiff]:
        """Inside, calling the UNet applies CR-Diff; at the end its forward is what it was.

        Attaching the same handle again inside is harmless; another handle on the same UNet raises
        CRDiffError. Masked copies of weights live as long as the outermost ``attached()``.
        """
        current = getattr(self.unet.__dict__.get("forward"), _HANDLE, None)
        if current is self:
            yield self
            return
        if current is not None:
            raise CRDiffError("CR-Diff is attached to this UNet already: leave that one first")
        if self.note is not None:
            logger.info("CR-Diff: %s", self.note)
        try:
            with forward_replaced(self.unet, self._wrap):
                yield self
        finally:
            self._weights.free()
            self._amplifier.free()

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that makes both passes of ``original`` and combines them."""
        names = list(inspect.signature(original).parameters)

        def dense(args: Any, kwargs: Any) -> Any:
            return original(*fresh(args), **fresh(kwargs))

        def pruned(args: Any, kwargs: Any) -> Any:
            with self._weights.active():
                return original(*fresh(args), **fresh(kwargs))

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._amplifier(
                lambda: dense(args, kwargs),
                None if self.plan.is_noop else lambda: pruned(args, kwargs),
                self._place({**dict(zip(names, args, strict=False)), **kwargs}, args),
            )

        setattr(forward, _HANDLE, self)
        return forward

    def _place(self, named: Mapping[str, Any], args: Sequence[Any]) -> Place:
        """The call's timestep, and what tells it from others of its step: shape and conditioning.

        ``named``: the call's arguments by name; ``args``: those without, for a forward that names
        none of ``_ARGUMENTS``, which then come in a UNet's order.
        """
        if self._amplifier.amplification in (EXACT, FOLDED):
            return Place(self.fraction)  # the rest isn't needed; reading a timestep may wait for it
        sample, timestep, text = (
            next(
                (named[name] for name in names if name in named),
                args[position] if position < len(args) else None,
            )
            for position, names in enumerate(_ARGUMENTS)
        )
        level = None if timestep is None else float(torch.as_tensor(timestep).max())
        return Place(self.fraction, level, (tuple(getattr(sample, "shape", ())), id(text)), text)


@contextmanager
def forward_replaced(
    module: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Inside, calling ``module`` calls ``wrap(its forward)``; then all is as it was."""
    missing = object()
    before = module.__dict__.get("forward", missing)
    try:
        module.__dict__["forward"] = wrap(module.forward)
        yield
    finally:
        if before is missing:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before


def fresh(value: Any) -> Any:
    """The same arguments in lists and dicts of their own, with the same tensors.

    UNets consume some: diffusers' pops from ``down_intrablock_additional_residuals``, ControlNet's
    LDM code from ``control``; the second pass must see all of them.
    """
    if type(value) is dict:
        return {key: fresh(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(fresh(item) for item in value)
    return value
