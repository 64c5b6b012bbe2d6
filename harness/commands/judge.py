"""Score images as a service on stdin and stdout, one line of JSON each: for the WebUI's refinement.

First it says {"ready": true, "reward": NAME, "version": VERSION}, or {"error": SENTENCE} and ends.
Then each line {"id": ANY, "prompt": TEXT, "images": [base64 PNG, ...]} is answered by
{"id": ANY, "scores": [NUMBER, ...]} or {"id": ANY, "error": SENTENCE}, in order. It ends when
stdin does. It never goes online.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from harness.judging import REWARDS

    add = parser.add_argument
    add("--reward", required=True, choices=REWARDS, help="what judges")
    add("--weights", type=Path, metavar="DIR", help="folder with its weights, as for crdiff score")
    add("--model", metavar="NAME", help="clip: open_clip's name (default: ViT-B-32-quickgelu)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def run(args: argparse.Namespace) -> int:
    from harness.judging import serve

    return serve(args.reward, args.weights, args.model, args.device)
