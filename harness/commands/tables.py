"""The paper's tables and figures: its values, ours, the difference, and how many prompts.

`crdiff tables 1 --model SDXL --size 512x512 --prompts captions_val2014.json --reference val2014
--weights metrics` draws and scores what Table 1's row needs; `crdiff tables --all` does all of
them. What is stored is never drawn again. A metric whose weights are not in --weights says "not
run", as do the rows of models that were not asked for. With `--model embedded` (the default of
--all) everything runs on the small model that ships, whose stand-in scores have blocks of their
own. Writes tables.md, tables.csv and tables.json; each model's images are in a folder of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.config import DTYPES

KEYS = ("1", "2", "3", "4", "5", "7a", "fig2a", "fig7b", "fig8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help=f"which: {', '.join(KEYS)}")
    add("--all", action="store_true", help="all of them")
    add(
        "--model",
        action="append",
        metavar="LABEL[=WHERE]",
        help="SDXL, SD1.5, SD2.1, SD3Medium, FLUX.dev or embedded, with the folder, file or hub id "
        "if it is not the usual one; repeat for more (default: embedded with --all, else the first "
        "three)",
    )
    add("--size", action="append", metavar="HxW", help="only rows of these sizes")
    add("--out", type=Path, default=Path("out/tables"), metavar="DIR", help="(default: out/tables)")
    add("--prompts", type=Path, metavar="FILE", help="as of crdiff run; not for embedded")
    add("--captions", type=int, metavar="N", help="only the first N prompts (embedded: 16)")
    add("--reference", type=Path, metavar="DIR|NPZ", help="real images, or mu and sigma of them")
    add("--weights", type=Path, default=Path("weights"), metavar="DIR", help="of the scorers")
    add("--protocol", default="paper-256", help="paper-256 (default) or native")
    add("--clip", default="clip-score", metavar="NAME", help="clip-score[:BACKBONE]")
    add("--search", action="append", metavar="DIR", help="folders of crdiff search, for fig7b")
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="prompts to calibrate wanda, taylor and obs-diff with (default: 16 that come with it)",
    )
    add("--presets", type=Path, metavar="FILE", help="your stored ratios")
    add("--seed", action="append", metavar="N", dest="seeds", help="as of crdiff run")
    add("--steps", type=int, help="sampling steps")
    add("--guidance", type=float, help="classifier-free guidance")
    add("--scheduler", default="default", help="default (the model's own), ddim, euler, ...")
    add("--dtype", default="auto", choices=DTYPES)
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps")
    add("--batch", type=int, help="images drawn together")
    add("--dry-run", action="store_true", help="say what would be drawn and how long it takes")


def run(args: argparse.Namespace) -> int:
    from harness.tables.job import run_tables

    return run_tables(args)
