"""Plan an SDXL-shaped UNet in this very process and print the peak of memory it took, as JSON.

Run as ``python -m harness.bench.plan_memory`` on Linux: a process's peak can't be lowered again
other than through /proc.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from crdiff_ext.blocks import PrunableWeight, prunable_parameters
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios

RATIOS = Ratios(0.397, 0.434, 0.387)

# (block, attentions in it, transformer blocks in each, width): SDXL's own
_SDXL = (
    ("down_blocks.1", 2, 2, 640),
    ("down_blocks.2", 2, 10, 1280),
    ("mid_block", 1, 10, 1280),
    ("up_blocks.0", 3, 10, 1280),
    ("up_blocks.1", 3, 2, 640),
)


def sdxl_shapes() -> dict[str, tuple[int, int]]:
    """Names and shapes of SDXL's 1,638.4 M prunable weights."""
    shapes = {}
    for block, attentions, depth, width in _SDXL:
        for slot in range(attentions):
            for index in range(depth):
                base = f"{block}.attentions.{slot}.transformer_blocks.{index}"
                for layer in ("to_q", "to_k", "to_v", "to_out.0"):
                    shapes[f"{base}.attn1.{layer}.weight"] = (width, width)
                shapes[f"{base}.ff.net.0.proj.weight"] = (8 * width, width)
                shapes[f"{base}.ff.net.2.weight"] = (width, 4 * width)
    return shapes


def make_weights(layers: int | None = None) -> list[PrunableWeight]:
    """The first ``layers`` of them (None: all) in fp16.

    The same block of random numbers over and over is quick to make, and every page is resident.
    """
    block = torch.randn(640 * 640, generator=torch.Generator().manual_seed(0)).mul_(0.03).half()
    tensors = {}
    for name, shape in islice(sdxl_shapes().items(), layers):
        tensors[name] = torch.empty(shape, dtype=torch.float16)
        tensors[name].view(-1, block.numel()).copy_(block)
    return prunable_parameters(tensors)


def status(field: str) -> int:
    """A size in bytes from /proc/self/status, such as VmRSS."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"this system does not tell {field}")


def main(layers: int | None = None) -> None:
    """Print ``extra_mb`` (peak during planning less what was resident before it, in MiB)."""
    weights = make_weights(layers)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = status("VmRSS")
    start = time.perf_counter()
    plan = make_plan(weights, RATIOS)
    seconds = time.perf_counter() - start
    extra = status("VmHWM") - before
    print(
        json.dumps(
            {
                "extra_mb": extra / 2**20,
                "resident_before_mb": before / 2**20,
                "weights": sum(plan.totals.values()),
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else None)
