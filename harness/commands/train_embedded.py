"""Train the embedded model anew: VAE, UNet and text encoder, reward; two to three core-hours.

Killed at any moment, the same command goes on where it stopped. The model that ships was made so.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", type=Path, default=Path("runs/train-embedded"), help="data and checkpoints"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/embedded-model"), help="the finished model's folder"
    )


def run(args: argparse.Namespace) -> int:
    from harness.store import check_folder

    check_folder(args.work, "--work")
    check_folder(args.out)  # now, not after hours of training

    from harness.embedded.training import recipe

    recipe.run(args.work, args.out)
    print(f"Written: {args.out}")
    return 0
