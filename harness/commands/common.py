"""Arguments that `crdiff search` and `crdiff refine` have in common."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_reward(parser: argparse.ArgumentParser) -> None:
    """Which reward judges, and where its weights are."""
    add = parser.add_argument
    add("--reward", default="auto", help="auto: the embedded model's own, else image-reward")
    add("--reward-weights", type=Path, metavar="DIR", help="folder with the reward's weights")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where it is computed, and in which numbers."""
    from harness.config import DTYPES

    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--dtype", default="auto", choices=DTYPES, help="(default: fp32 on a CPU, else fp16)")
