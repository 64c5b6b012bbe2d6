"""``crdiff bench search``: which sampler needs the fewest images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--build", type=Path, metavar="FILE", help="draw the grid of real rewards anew, into FILE")
    add("--captions", type=int, default=192, help="of the grid to build (default: 192)")
    add("--steps", type=int, default=5, help="sampling steps of the grid (default: 5)")
    add("--size", default="64x64", metavar="HxW", help="of the grid (default: 64x64)")


def run(args: argparse.Namespace) -> int:
    if args.build is not None:
        return _build(args)
    return 0


def _build(args: argparse.Namespace) -> int:
    from harness.config import RunConfig, Size
    from harness.searching.grid import LEVELS, build
    from harness.searching.objective import items_of
    from harness.searching.texts import embedded_texts
    from harness.searching.workshop import EMBEDDED, open_workshop

    size = Size.parse(args.size)
    config = RunConfig(EMBEDDED, (size,), args.build.parent, steps=args.steps, batch=16)
    workshop = open_workshop(config)
    texts = embedded_texts(args.captions)
    provenance = {
        "command": f"crdiff bench search --build FILE --captions {args.captions} "
        f"--steps {args.steps} --size {size}",
        "model": "embedded model",
        "model_hash": workshop.sampling.model_hash,
        "reward": workshop.reward_name,
        "captions": f"the first {args.captions} of the search split",
        "prompts_sha256": texts.sha256,
        "size": str(size),
        "k": 1.5,
        "steps": workshop.sampling.steps,
        "guidance": workshop.sampling.guidance,
        "seed": workshop.sampling.seed,
        "batch": workshop.sampling.batch,
    }
    shots = items_of([prompt.text for prompt in texts.prompts], workshop.sampling.seed)
    build(workshop.objective(shots, None), args.build, provenance, LEVELS, 1.5, _progress)
    return 0


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total or not sys.stderr.isatty() else "\r"
    print(f"{done} of {total} ratios", end=end, file=sys.stderr, flush=True)
