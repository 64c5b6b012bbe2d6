"""How a pruned pass sees pruned weights, while the dense ones are never written.

- ``recompute``: each layer's weight is masked just before the layer runs and dropped right after;
  no lasting memory.
- ``copy``: masked copies of the prunable layers are made once and swapped in for each pass; costs
  the memory of these layers (0.38 GiB for SD1.5 in fp16, 3.05 GiB for SDXL).
- ``auto``: ``copy`` when the copies take at most half of the memory that is free on the weights'
  device (CUDA: the driver's free memory and torch's own unused cache; CPU: Linux' MemAvailable),
  else ``recompute``, which it also is where free memory isn't known, and which it becomes when
  memory runs out while the copies are made.

A pass with a ``factor`` sees the same weights multiplied by it instead of zeros: the folded pass of
``amplify.py``. Everything said of pruned weights here holds for folded ones, but that ``auto``
takes up to three quarters of the free memory for them: a folded pass is there to cost what a dense
one does, which it can't when each layer's weight is made anew.

Both put a new Parameter into the layer's own table of parameters and put the very same dense
Parameter back; storage, ``_version`` and identity of the dense one never change.

Nesting: inside a pruned pass, pruning the same module again with equal thresholds and factor does
nothing; with others it is an error, because it would prune what is pruned already.
Not for several threads at once on one module.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .blocks import Threshold, prunable_layers
from .errors import CRDiffError
from .pruning import PrunePlan, prune

logger = logging.getLogger(__name__)

MODES = ("auto", "recompute", "copy")
_SHARE, _SHARE_FOLDED = 0.5, 0.75
"""What of the free memory ``auto`` takes for copies."""
_MARK = "_crdiff_thresholds"  # in a layer's __dict__ for as long as a pruned pass has hold of it


@dataclass
class _Layer:
    """One prunable layer: the table that holds its ``weight``, and what is in hand of it.

    ``dense`` is set before the table is changed and cleared after it is put right, so that
    ``restore`` is right wherever an interrupt strikes.
    """

    name: str
    module: torch.nn.Module
    table: MutableMapping[str, Any]
    threshold: Threshold
    factor: float = 0.0
    dense: torch.Tensor | None = None
    copy: torch.nn.Parameter | None = None
    copied_from: tuple[Any, ...] = ()

    @property
    def mark(self) -> tuple[Threshold, float]:
        """What a pruned pass leaves on the layer to be known by."""
        return self.threshold, self.factor

    def swap_in(self, weight: torch.nn.Parameter) -> None:
        self.dense = self.table["weight"]
        self.table["weight"] = weight

    def restore(self) -> None:
        if self.dense is not None:
            self.table["weight"] = self.dense
            self.dense = None

    def pruned(self) -> torch.nn.Parameter:
        """The pruned (or folded) weight as a new Parameter on the dense one's device."""
        weight = self.table["weight"]
        if weight.device.type == "meta":
            raise CRDiffError(
                f"layer {self.name} has no data (it is on the meta device): load the model "
                "without sequential offloading"
            )
        pruned = prune(weight, self.threshold, self.factor)
        return torch.nn.Parameter(pruned, requires_grad=False)

    def up_to_date_copy(self) -> torch.nn.Parameter:
        """The masked copy; made anew when the dense weight was moved or changed since."""
        weight = self.table["weight"]
        version = None if weight.is_inference() else weight._version
        state = (id(weight), weight.data_ptr(), version, weight.dtype, weight.device)
        if self.copy is None or state != self.copied_from:
            # Not an inference tensor: it may be used again outside inference mode.
            with torch.inference_mode(False), torch.no_grad():
                self.copy = self.pruned()
            self.copied_from = state
        return self.copy


class PrunedWeights:
    """A network's prunable layers with a plan's thresholds; ``active()`` makes them count.

    Args:
        module: any module with prunable layers (LDM or diffusers names).
        plan: its thresholds; layers of pools left alone are not touched.
        memory: "auto", "recompute" or "copy", see this module's docstring.
        factor: what small weights are multiplied by; 0 prunes them.

    Raises CRDiffError for an unknown mode, for compiled modules, and for layers whose weight is
    no plain attribute.
    """

    def __init__(
        self, module: torch.nn.Module, plan: PrunePlan, memory: str = "auto", factor: float = 0.0
    ) -> None:
        if memory not in MODES:
            raise CRDiffError(f"memory is {memory!r}: use one of {', '.join(MODES)}")
        _refuse_compiled(module)
        self._layers = [
            _Layer(layer.name, layer.module, _table_of(layer.module, layer.name), threshold, factor)
            for layer in prunable_layers(module)
            if (threshold := layer.threshold(plan.thresholds)) is not None
        ]
        self._memory = memory
        self._may_fall_back = memory == "auto"

    @property
    def copy_bytes(self) -> int:
        """What the masked copies of all layers take, in bytes."""
        weights = (layer.table["weight"] for layer in self._layers)
        return sum(weight.numel() * weight.element_size() for weight in weights)

    @property
    def memory(self) -> str:
        """Either "recompute" or "copy"; "auto" is settled at the first use and then kept."""
        if self._memory == "auto" and self._layers:
            device = self._layers[0].table["weight"].device
            free = free_bytes(device)
            share = _SHARE_FOLDED if self._layers[0].factor else _SHARE
            fits = free is not None and self.copy_bytes <= share * free
            self._memory = "copy" if fits else "recompute"
        return self._memory

    @contextmanager
    def active(self) -> Iterator[None]:
        """Forwards inside see pruned weights. Undone whatever happens, BaseException included."""
        mine = [layer for layer in self._layers if not _is_marked(layer)]
        with ExitStack() as stack:
            stack.callback(_release, mine)
            for layer in mine:
                layer.module.__dict__[_MARK] = layer.mark
            if self._copied(mine):
                for layer in mine:
                    layer.swap_in(layer.up_to_date_copy())
            else:
                for layer in mine:
                    _hook(layer, stack)
            yield

    def _copied(self, layers: list[_Layer]) -> bool:
        """Whether the pass runs on copies, which then are made. Falls back as ``auto`` promises."""
        if self.memory != "copy":
            return False
        try:
            for layer in layers:
                layer.up_to_date_copy()
        except torch.cuda.OutOfMemoryError:
            if not self._may_fall_back:
                raise
            self.free()
            self._memory = "recompute"
            logger.warning(
                "not enough memory for copies of the pruned layers: they are made anew in each "
                "pass, which is slower"
            )
            return False
        return True

    def free(self) -> None:
        """Drop the masked copies; the next use makes them anew."""
        for layer in self._layers:
            layer.copy = None
            layer.copied_from = ()


@contextmanager
def pruned_weights(
    module: torch.nn.Module, plan: PrunePlan, memory: str = "recompute"
) -> Iterator[None]:
    """Forwards of ``module`` inside see pruned weights; everything is undone at the end."""
    weights = PrunedWeights(module, plan, memory)
    try:
        with weights.active():
            yield
    finally:
        weights.free()


def free_bytes(device: torch.device) -> int | None:
    """Memory that a new tensor on ``device`` could take, in bytes; None when not known."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    if device.type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:  # not Linux
            return None
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _hook(layer: _Layer, stack: ExitStack) -> None:
    """Mask the layer's weight for the time of its forward; ``stack`` removes the hooks."""

    def before(*_: object) -> None:
        # dense not None: a forward inside its own forward. No mark: an interrupt struck while
        # hooks were being removed, and this one is left over.
        if layer.dense is None and _MARK in layer.module.__dict__:
            layer.swap_in(layer.pruned())

    def after(*_: object) -> None:
        layer.restore()

    # Each in one statement, so that an interrupt finds no hook that the stack doesn't know.
    stack.callback(layer.module.register_forward_pre_hook(before).remove)
    # always_call: also when the forward raises an Exception. What a BaseException (an interrupt)
    # leaves behind, active() restores.
    stack.callback(layer.module.register_forward_hook(after, always_call=True).remove)


def _refuse_compiled(module: torch.nn.Module) -> None:
    """Compiled code need not look at hooks or parameters again: the pruned pass could be dense."""
    for part in module.modules():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            raise CRDiffError(
                "the UNet was compiled with torch.compile, which would not see pruned weights: "
                "load it without"
            )


def _release(layers: list[_Layer]) -> None:
    for layer in layers:
        layer.restore()
        layer.module.__dict__.pop(_MARK, None)


def _is_marked(layer: _Layer) -> bool:
    """Whether a surrounding pruned pass has the layer already, with the same threshold and factor.

    Raises CRDiffError when it has it with another one.
    """
    mark = layer.module.__dict__.get(_MARK)
    if mark is not None and mark != layer.mark:
        raise CRDiffError(
            f"layer {layer.name} is inside a pruned pass with another threshold: end that one first"
        )
    return mark is not None


def _table_of(module: torch.nn.Module, name: str) -> MutableMapping[str, Any]:
    """The dict in which the module keeps its ``weight``: parameters, buffers, or attributes."""
    for table in (module._parameters, module._buffers, module.__dict__):
        if isinstance(table.get("weight"), torch.Tensor):
            return table
    raise CRDiffError(
        f"the weight of layer {name} is computed (a parametrization), so it can't be pruned: "
        "remove the parametrization first"
    )
