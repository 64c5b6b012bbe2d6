"""``crdiff bench plan``: speed and memory of finding exact thresholds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from harness.bench.plan import measure_memory, measure_speed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument(
        "--weights",
        type=_at_least(100),
        default=50_000_000,
        help="fp16 weights to rank (default 50 M)",
    )
    parser.add_argument(
        "--repeats",
        type=_at_least(1),
        default=3,
        help="runs of each case; the best counts (default 3)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print; 1 when a mask differs from kthvalue's, else 0. Raises CRDiffError."""
    cases = measure_speed(args.weights, args.repeats)
    memory = measure_memory()
    result = {
        "speedup": min(case["speedup"] for case in cases),
        "extra_mb": memory["extra_mb"],
        "masks_equal": all(case["masks_equal"] for case in cases),
        "weights": args.weights,
        "dtype": "float16",
        "threads": 1,
        "torch": torch.__version__,
        "cases": cases,
        "memory": memory,
    }
    print(json.dumps(result, indent=2) if args.json else _table(result))
    return 0 if result["masks_equal"] else 1


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"Thresholds of {result['weights'] / 1e6:g} M fp16 weights, one thread, torch "
        f"{result['torch']}",
        f"{'weights':8} {'ratio':>5} {'kthvalue':>10} {'counting':>10} {'speed-up':>9}  masks",
    ]
    for case in result["cases"]:
        lines.append(
            f"{case['weights']:8} {case['ratio']:5g} {case['kthvalue_seconds']:9.3f}s "
            f"{case['seconds']:9.3f}s {case['speedup']:8.1f}x  "
            f"{'equal' if case['masks_equal'] else 'DIFFERENT'}"
        )
    memory = result["memory"]
    lines.append(
        f"Planning an SDXL-shaped UNet ({memory['weights'] / 1e6:.1f} M weights, fp16): "
        f"{memory['extra_mb']:.1f} MiB beyond the loaded {memory['resident_before_mb']:.0f} MiB, "
        f"{memory['seconds']:.1f} s."
    )
    return "\n".join(lines)


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(float(text))  # also 5e7
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is too small: at least {low}")
        return value

    return number
