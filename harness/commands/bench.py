"""Measure what CR-Diff costs: ``crdiff bench``, and one SUBJECT more for each other measurement.

Without a SUBJECT: time and memory of every way to amplify, as ratios to the dense model in the same
run, on the embedded model, on random UNets of SD1.5's and SDXL's shapes, or on any checkpoint.
"""

from __future__ import annotations

import argparse
import importlib

COST = "harness.commands.bench_cost"
SUBJECTS = {
    "plan": ("harness.commands.bench_plan", "speed and memory of finding thresholds"),
    "scale": ("harness.commands.bench_scale", "planning, storing, reporting by captions"),
    "fidelity": ("harness.commands.bench_fidelity", "cheaper amplifications against the exact one"),
    "criteria": ("harness.commands.bench_criteria", "seconds that pruning criteria take"),
    "search": ("harness.commands.bench_search", "images that each sampler of ratios needs"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    importlib.import_module(COST).add_arguments(parser)
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT")
    for name, (module, what) in SUBJECTS.items():
        importlib.import_module(module).add_arguments(subjects.add_parser(name, help=what))


def run(args: argparse.Namespace) -> int:
    module = SUBJECTS[args.subject][0] if args.subject else COST
    return int(importlib.import_module(module).run(args))
