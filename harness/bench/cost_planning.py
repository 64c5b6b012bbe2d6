"""Time and memory of finding thresholds: ours, and ``kthvalue`` as the two-UNet scheme does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.pruning import by_pool
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import free_bytes
from harness.bench.cost_subject import Subject
from harness.bench.meter import Meter
from harness.bench.two_unets import group_kthvalue, kthvalue_bytes

MIB = 2**20


def measure_planning(
    subject: Subject, ratios: Ratios, meter: Meter, theirs: bool
) -> dict[str, dict[str, Any]]:
    """Plan for ``subject`` and say what it took: ``counting``, and ``kthvalue`` if ``theirs``.

    A group whose ``kthvalue`` would take more than half of the free memory is left out of it:
    ``weights`` is the number of weights that were ranked, ``note`` says which groups are missing.
    """
    seconds, extra = _measured(meter, lambda: subject.make_plan(ratios))
    assert subject.plan is not None
    total = sum(subject.plan.totals.values())
    result = {"counting": {"seconds": seconds, "extra_mb": extra, "weights": total}}
    if theirs:
        result["kthvalue"] = _kthvalue(subject, ratios, meter)
    return result


def _kthvalue(subject: Subject, ratios: Ratios, meter: Meter) -> dict[str, Any]:
    assert subject.plan is not None
    spent, peak, ranked, same = 0.0, 0.0, 0, True
    left_out = []
    for pool in by_pool(prunable_parameters(subject.unet)):
        tensors = [weight.tensor for weight in pool.members]
        free = free_bytes(torch.device(subject.device))
        needs = kthvalue_bytes(tensors)
        if not tensors or (free is not None and 2 * needs > free):
            if tensors:
                left_out.append(f"{pool.name} (needs {needs / 2**30:.1f} GiB)")
            continue
        found: list[float | None] = []
        ratio = ratios.of(pool.group)
        seconds, extra = _measured(meter, lambda: found.append(group_kthvalue(tensors, ratio)))  # noqa: B023
        spent, peak = spent + seconds, max(peak, extra or 0.0)
        ranked += sum(tensor.numel() for tensor in tensors)
        same &= found[0] == subject.plan.thresholds[pool.name]
    note = f"not ranked, for want of memory: {', '.join(left_out)}" if left_out else None
    return {
        "seconds": spent if ranked else None,
        "extra_mb": peak if ranked else None,
        "weights": ranked,
        "same_thresholds": same,
        "note": note,
    }


def _measured(meter: Meter, work: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds, and the MiB by which the peak (VRAM where there is some) went up."""
    meter.reset()
    on_gpu = meter.vram_bytes()
    before = meter.resident_bytes() if on_gpu is None else on_gpu
    started = meter.now()
    work()
    seconds = meter.now() - started
    after = meter.peak_bytes() if on_gpu is None else meter.vram_bytes()
    if before is None or after is None:
        return seconds, None
    return seconds, (after - before) / MIB
