"""Draw images of a list of prompts with several methods at several sizes.

Images go to OUT/images, one PNG for each key; what is stored is never drawn again, so the same
command goes on after an interruption. Also written: results.json, images.csv, report.html.
Sizes are height x width. Settings come from EXPERIMENT.yaml (see docs/experiments.md), from the
options below, or from both: an option replaces what the file says.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from harness.commands.common import DTYPE_HELP, GUIDANCE_HELP, STEPS_HELP
from harness.config import DTYPES, RunConfig, Size
from harness.method_names import known_names

NEEDED = {
    "model": "--model",
    "sizes": "--size HEIGHTxWIDTH",
    "prompts": "--prompts FILE",
    "out": "--out DIR",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("experiment", nargs="?", type=Path, metavar="EXPERIMENT.yaml", help="settings as a file")
    add("--model", metavar="DIR|FILE|ID", help="folder, single file or hub id")
    add("--size", action="append", metavar="HxW", dest="sizes", help="repeat for more sizes")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=".txt, .csv, .tsv (MLPerf's), or COCO's captions_val2014.json, of which the authors' "
        "sample is drawn",
    )
    add("--reference", type=Path, metavar="DIR|NPZ", help="real images, or mu and sigma of them")
    add("--out", type=Path, metavar="DIR", help="where everything is written")
    add(
        "--method",
        action="append",
        metavar="NAME",
        dest="methods",
        help=f"{known_names()}; repeat or separate by commas (default: dense,crdiff)",
    )
    add(
        "--ratios",
        metavar="auto|stored|D/M/U|R",
        help="auto: stored ratios, at unseen sizes only (default); stored: at every size; "
        "or three ratios for down/mid/up, such as 0.3/0.2/0.25; or one for all, as SD3 and FLUX "
        "need it",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="prompts to calibrate wanda, taylor and obs-diff with (default: 16 that come with it)",
    )
    add("--presets", type=Path, metavar="FILE", help="your stored ratios (see crdiff presets)")
    add("--k", type=float, help="amplification, 0 to 3 (default: the stored ratios' own, else 1.5)")
    add(
        "--seed",
        action="append",
        metavar="N",
        dest="seeds",
        help="prompt number i gets seed + i (default: 0); repeat, or separate by commas, for "
        "several images of each prompt",
    )
    add("--steps", type=int, help=STEPS_HELP)
    add("--guidance", type=float, help=GUIDANCE_HELP)
    add("--negative", metavar="TEXT", help="negative prompt (default: none)")
    add("--scheduler", help="default (the model's own), ddim, euler, ...")
    add("--dtype", choices=DTYPES, help=DTYPE_HELP)
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--batch", type=int, help="images drawn together (default: 1); part of an image's key")
    add("--config", type=Path, metavar="DIR", help="diffusers folder to read a single file with")
    add("--prediction", metavar="TYPE", help="epsilon or v_prediction, if the model says it wrong")
    add("--limit", type=int, metavar="N", help="only the first N prompts")
    add(
        "--dry-run",
        action="store_true",
        help="say what would be drawn and, from a probe, how long it takes; keep nothing",
    )


def run(args: argparse.Namespace) -> int:
    from harness.main_job import draw_and_report
    from harness.prompts import read_prompts
    from harness.user_presets import stored_presets

    settings = settings_of(args)
    config = config_of(settings)
    prompts = read_prompts(settings["prompts"], config.limit, settings.get("reference"))
    presets = stored_presets(settings.get("presets"))
    return draw_and_report(config, prompts, presets, args.dry_run)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The experiment file's settings, replaced by the options given. Raises CRDiffError."""
    from harness.experiment_file import KEYS, merge, need, read_experiment

    given = {key: getattr(args, key, None) for key in KEYS}
    given["methods"] = _names(args.methods)
    given["seeds"] = seeds_of(args.seeds)
    settings = merge(read_experiment(args.experiment) if args.experiment else {}, given)
    need(settings, NEEDED)
    return settings


def config_of(settings: Mapping[str, Any]) -> RunConfig:
    """Settings as the typed configuration. Raises CRDiffError."""
    names = {field.name for field in fields(RunConfig)}
    plain = {key: value for key, value in settings.items() if key in names}
    plain["sizes"] = tuple(Size.parse(text) for text in settings["sizes"])
    seeds = settings.get("seeds") or (0,)
    return RunConfig(**{**plain, "seed": seeds[0], "more_seeds": tuple(seeds[1:])})


def _names(given: list[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = [name.strip() for text in given for name in text.split(",")]
    if any(not name for name in names):
        raise CRDiffError("--method has an empty name: write such as --method dense,crdiff")
    return tuple(names)


def seeds_of(given: list[str] | None) -> tuple[int, ...] | None:
    """Seeds as ``--seed`` takes them: repeated, or separated by commas. Raises CRDiffError."""
    if given is None:
        return None
    words = [word.strip() for text in given for word in text.split(",")]
    if not all(word.removeprefix("-").isdecimal() for word in words):
        raise CRDiffError(f"--seed is {','.join(given)}: write whole numbers, such as --seed 0,1")
    return tuple(int(word) for word in words)
