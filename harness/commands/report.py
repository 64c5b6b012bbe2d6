"""Write one self-contained HTML page of a folder that another crdiff command wrote.

Pairs of images (dense beside each method) with captions, scores, filters and a movable divider,
tables, cost against quality, and, where the folder has them, sparsity curves, criteria compared,
scores.json, search.json, fidelity.json and tables.json. The page opens offline, asks for nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN_FOLDER", help="what a command's --out was")
    add("--out", type=Path, metavar="FILE", help="the page (default: RUN_FOLDER/report.html)")
    add(
        "--pairs",
        type=int,
        default=64,
        metavar="N",
        help="pairs of images a size, in whole rows of all methods (default: 64)",
    )


def run(args: argparse.Namespace) -> int:
    from crdiff_ext.errors import CRDiffError
    from harness.report.page import write_report
    from harness.report.source import read_source

    if args.pairs < 1:
        raise CRDiffError(f"--pairs is {args.pairs}: it must be at least 1")
    out = args.out or args.folder / "report.html"
    if out.is_dir():
        raise CRDiffError(f"{out} is a folder: give --out the name of a file, such as report.html")
    write_report(read_source(args.folder), out, args.pairs)
    print(f"Written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0
