"""Draw images of a list of prompts with several methods at several sizes.

Images go to OUT/images, one PNG for each key; what is stored is never drawn again, so the same
command goes on after an interruption. Also written: results.json, images.csv, report.html.
Sizes are height x width.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crdiff_ext.errors import CRDiffError
from harness.config import AUTHORS_GUIDANCE, AUTHORS_STEPS, DTYPES, NOT_IN_PAPER, RunConfig, Size
from harness.method_names import known_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|FILE|ID", help="folder, single file or hub id")
    add("--size", required=True, action="append", metavar="HxW", help="repeat for more sizes")
    add("--prompts", required=True, type=Path, metavar="FILE", help=".txt, .csv or .tsv")
    add("--out", required=True, type=Path, metavar="DIR", help="where everything is written")
    add(
        "--method",
        action="append",
        metavar="NAME",
        help=f"{known_names()}; repeat or separate by commas (default: dense,crdiff)",
    )
    add(
        "--ratios",
        default="auto",
        metavar="auto|stored|D/M/U",
        help="auto: stored ratios, at unseen sizes only (default); stored: at every size; "
        "or three ratios for down/mid/up, such as 0.3/0.2/0.25",
    )
    add("--presets", type=Path, metavar="FILE", help="your stored ratios (see crdiff presets)")
    add("--k", type=float, help="amplification, 0 to 3 (default: the stored ratios' own, else 1.5)")
    add("--seed", type=int, default=0, help="prompt number i gets seed + i (default: 0)")
    add(
        "--steps",
        type=int,
        help=f"(default: the model's crdiff.json, else {AUTHORS_STEPS}: {NOT_IN_PAPER})",
    )
    add(
        "--guidance",
        type=float,
        help=f"(default: the model's crdiff.json, else {AUTHORS_GUIDANCE}: {NOT_IN_PAPER})",
    )
    add("--negative", default="", metavar="TEXT", help="negative prompt (default: none)")
    add("--scheduler", default="default", help="default (the model's own), ddim, euler, ...")
    add("--dtype", default="auto", choices=DTYPES, help="(default: fp32 on a CPU, else fp16)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--batch", type=int, help="images drawn together (default: 1); part of an image's key")
    add("--config", type=Path, metavar="DIR", help="diffusers folder to read a single file with")
    add("--prediction", metavar="TYPE", help="epsilon or v_prediction, if the model says it wrong")
    add("--limit", type=int, metavar="N", help="only the first N prompts")
    add("--dry-run", action="store_true", help="say what would be drawn, draw nothing")


def run(args: argparse.Namespace) -> int:
    from harness.prompts import read_prompts

    config = RunConfig(
        model=args.model,
        sizes=tuple(Size.parse(text) for text in args.size),
        out=args.out,
        methods=_names(args.method) or ("dense", "crdiff"),
        ratios=args.ratios,
        k=args.k,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        negative=args.negative,
        scheduler=args.scheduler,
        dtype=args.dtype,
        device=args.device,
        batch=args.batch,
        limit=args.limit,
        config=args.config,
        prediction=args.prediction,
    )
    prompts = read_prompts(args.prompts, config.limit)

    from harness.main_job import draw_and_report
    from harness.user_presets import stored_presets

    return draw_and_report(config, prompts, stored_presets(args.presets), args.dry_run)


def _names(given: list[str] | None) -> tuple[str, ...]:
    names = [name.strip() for text in given or [] for name in text.split(",")]
    if any(not name for name in names):
        raise CRDiffError("--method has an empty name: write such as --method dense,crdiff")
    return tuple(names)
