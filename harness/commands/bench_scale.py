"""``crdiff bench scale``: seconds and memory of planning, storing and reporting by captions."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from crdiff_ext.errors import CRDiffError

DEFAULT = "100,1000,5000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--captions", default=DEFAULT, metavar="N,N,...", help=f"(default: {DEFAULT})")
    add("--prompts", type=Path, metavar="FILE", help="real captions (default: made ones)")
    add(
        "--draw",
        action="store_true",
        help="draw with the embedded model, 32x32 in one step (default: noise stands in for it)",
    )
    add("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    from harness.bench.scale import STAGES, exponent, measure

    counts = _counts(args.captions)
    if not Path("/proc/self/clear_refs").exists():
        raise CRDiffError("peak memory is measured through /proc: run this on Linux")
    with tempfile.TemporaryDirectory(prefix="crdiff-scale-") as folder:
        found = measure(counts, Path(folder), args.draw, args.prompts)
    growth = {stage: exponent(found, stage) for stage in STAGES}
    if args.json:
        print(json.dumps({"drawn": args.draw, "runs": [asdict(g) for g in found], "power": growth}))
        return 0
    what = "the embedded model at 32x32, 1 step" if args.draw else "noise in place of a model"
    print(f"Dense and CR-Diff at one size, {what}: seconds, and peak MiB beyond the start")
    print(f"{'captions':>9} {'images':>7}" + "".join(f"{stage:>18}" for stage in STAGES))
    for one in found:
        cells = (f"{one.seconds[s]:8.2f}s{one.peak_mb[s]:6.0f}MB" for s in STAGES)
        print(f"{one.captions:>9} {one.images:>7}" + "".join(f"{cell:>18}" for cell in cells))
    if len(found) > 1:
        powers = "".join(f"{growth[stage] or 0:>18.2f}" for stage in STAGES)
        print(f"{'power of n':>17}{powers}   (1 is linear; the two largest)")
    return 0


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 1 for word in words):
        raise CRDiffError(f"--captions is {text}: write whole numbers above 1, such as {DEFAULT}")
    return sorted({int(word) for word in words})
