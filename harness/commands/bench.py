"""Measure the core's speed and memory: ``crdiff bench plan``."""

from __future__ import annotations

import argparse
import importlib

BENCHES = {
    "plan": ("harness.commands.bench_plan", "speed and memory of finding thresholds"),
    "search": ("harness.commands.bench_search", "images that each sampler of ratios needs"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, (module, what) in BENCHES.items():
        importlib.import_module(module).add_arguments(subjects.add_parser(name, help=what))


def run(args: argparse.Namespace) -> int:
    return int(importlib.import_module(BENCHES[args.subject][0]).run(args))
