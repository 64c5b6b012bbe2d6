"""``crdiff bench``: time and memory of every way to amplify, as ratios to dense in the same run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

DEFAULT_ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        default="embedded",
        metavar="embedded|sd15-shape|sdxl-shape|DIR|FILE|ID",
        help="the embedded model (default), a random UNet of SD1.5's or SDXL's shape, or a "
        "checkpoint: folder, single file or hub id",
    )
    add("--modes", metavar="A,B", help="only these, beside dense (default: all)")
    add("--size", metavar="HxW", help="height x width in pixels (default: an unseen size)")
    add("--ratios", default="0.3", metavar="R|D/M/U", help="block ratios (default: 0.3)")
    add(
        "--rounds",
        type=int,
        default=DEFAULT_ROUNDS,
        metavar="N",
        help=f"times that each mode is measured, in turns (default: {DEFAULT_ROUNDS})",
    )
    add("--batch", type=int, metavar="N", help="of a UNet call (default: 2; sdxl-shape: 1)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: all; 1: CPU time counts)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "fp16", "bf16"),
        help="(default: fp32 on a CPU, else fp16; sdxl-shape on a CPU: bf16)",
    )
    add(
        "--out",
        type=Path,
        default=Path("out/bench"),
        metavar="DIR",
        help="where cost-MODEL-SIZE.json and .md are written (default: out/bench)",
    )
    add("--no-images", action="store_true", help="measure UNet calls only")
    add("--json", action="store_true", help="print the numbers as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    from harness.bench.cost import CostConfig, measure
    from harness.bench.cost_report import markdown, save

    config = CostConfig(
        model=args.model,
        modes=tuple(name.strip() for name in args.modes.split(",")) if args.modes else (),
        size=args.size,
        ratios=args.ratios,
        rounds=args.rounds,
        batch=args.batch,
        threads=args.threads,
        device=args.device,
        dtype=args.dtype,
        images=not args.no_images,
    )
    result = measure(config, lambda so_far: save(so_far, args.out))
    written = save(result, args.out)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(markdown(result))
        print(f"\nWritten: {' and '.join(str(path) for path in written)}")
    return 0
