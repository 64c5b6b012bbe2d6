"""Arguments and words that the commands which draw have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.config import AUTHORS_GUIDANCE, AUTHORS_STEPS, DTYPES, NOT_IN_PAPER

_CARDS = "SD3 and FLUX: their model card's"
STEPS_HELP = f"(default: the model's crdiff.json, else {AUTHORS_STEPS}: {NOT_IN_PAPER}; {_CARDS})"
GUIDANCE_HELP = (
    f"(default: the model's crdiff.json, else {AUTHORS_GUIDANCE}: {NOT_IN_PAPER}; {_CARDS})"
)
DTYPE_HELP = "(default: fp32 on a CPU, else fp16; FLUX: bf16)"


def add_reward(parser: argparse.ArgumentParser) -> None:
    """Which reward judges, and where its weights are."""
    add = parser.add_argument
    add("--reward", default="auto", help="auto: the embedded model's own, else image-reward")
    add("--reward-weights", type=Path, metavar="DIR", help="folder with the reward's weights")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where it is computed, and in which numbers."""
    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--dtype", default="auto", choices=DTYPES, help=DTYPE_HELP)
