"""The WebUI's command-line flags; hosts call `preload` before they parse theirs."""

from __future__ import annotations

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    """Add CR-Diff's flags to the host's parser."""
    parser.add_argument(
        "--crdiff-presets",
        metavar="FILE",
        default=None,
        help="CR-Diff: JSON file of your own stored block ratios (made if it doesn't exist)",
    )
    parser.add_argument(
        "--crdiff-disable",
        action="store_true",
        help="CR-Diff: load the extension, but never act",
    )
