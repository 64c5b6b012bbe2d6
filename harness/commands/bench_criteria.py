"""``crdiff bench criteria``: seconds that each pruning criterion takes to choose its weights."""

from __future__ import annotations

import argparse
import json
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import Ratios
from harness.config import Size

MODELS = ("embedded", "sd15-random")
_DEFAULTS = {"embedded": ("64x64", 20, 16), "sd15-random": ("128x128", 2, 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", action="store_true", help="print the numbers as JSON")
    add(
        "--model",
        choices=MODELS,
        default=MODELS[0],
        help="the embedded model (default), or a UNet of SD1.5's shape with random weights in bf16",
    )
    add("--size", metavar="HxW", help="drawn in calibration (default: 64x64; SD1.5: 128x128)")
    add("--steps", type=int, metavar="N", help="sampling steps (default: 20; SD1.5: 2)")
    add("--prompts", type=int, metavar="N", help="calibration prompts (default: 16; SD1.5: 1)")
    add("--ratios", default="0.397/0.434/0.387", metavar="D/M/U", help="(default: SDXL 512x512's)")
    add("--criteria", metavar="NAMES", help="some of magnitude,random,taylor,wanda,obs-diff")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Raises CRDiffError."""
    import torch

    from harness.bench.criteria import NAMES, embedded_run, measure, random_sd15_run

    size, steps, prompts = _DEFAULTS[args.model]
    size, steps, prompts = args.size or size, args.steps or steps, args.prompts or prompts
    names = tuple(args.criteria.split(",")) if args.criteria else NAMES
    for name in names:
        if name not in NAMES:
            raise CRDiffError(f"criterion {name!r} is not known: use some of {','.join(NAMES)}")
    if steps < 1:
        raise CRDiffError(f"--steps is {steps}: it must be at least 1")
    ratios, drawn = Ratios.parse(args.ratios), Size.parse(size)
    embedded = args.model == "embedded"
    made = (embedded_run if embedded else random_sd15_run)(drawn, steps)
    cases = measure(made, names, ratios, prompts, "embedded" if embedded else "sd15")
    result = {
        "model": args.model,
        "size": str(drawn),
        "steps": steps,
        "prompts": prompts,
        "ratios": ratios.as_dict(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cases": cases,
    }
    print(json.dumps(result, indent=2) if args.json else _table(result))
    return 0


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"Choosing weights on {result['model']} at {result['size']}, {result['prompts']} "
        f"calibration prompts of {result['steps']} steps, {result['threads']} threads, torch "
        f"{result['torch']}",
        f"{'criterion':10} {'CPU time':>10} {'wall time':>10} {'calibration':>12} {'pruned':>7} "
        f"{'paper*':>9}",
    ]
    for case in result["cases"]:
        paper = "" if case["paper_seconds"] is None else f"{case['paper_seconds']:.2f}s"
        lines.append(
            f"{case['criterion']:10} {case['cpu_seconds']:9.2f}s {case['seconds']:9.2f}s "
            f"{case['calibration_seconds']:11.2f}s {case['pruned']:7.1%} {paper:>9}"
        )
    lines.append("Calibration is in both times; its own is wall time.")
    lines.append("* Section 4.5: SDXL at 512x512; the hardware and the calibration are not stated.")
    return "\n".join(lines)
