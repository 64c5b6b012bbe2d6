"""Measure speed and memory: ``crdiff bench plan``, ``crdiff bench criteria``."""

from __future__ import annotations

import argparse
import importlib

BENCHES = {
    "plan": ("harness.commands.bench_plan", "speed and memory of finding thresholds"),
    "criteria": ("harness.commands.bench_criteria", "seconds that pruning criteria take"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, (module, what) in BENCHES.items():
        importlib.import_module(module).add_arguments(subjects.add_parser(name, help=what))


def run(args: argparse.Namespace) -> int:
    return int(importlib.import_module(BENCHES[args.subject][0]).run(args))
