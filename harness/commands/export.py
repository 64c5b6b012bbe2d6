"""Write a Stable Diffusion pipeline as the single file that WebUIs read, with its yaml.

Without --model it is the embedded model. Put the three (checkpoint, yaml, the -clip folder) into
the WebUI's models/Stable-diffusion folder; the yaml names the clip folder by its absolute path.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--model", help="pipeline folder (default: the embedded model)")
    parser.add_argument("--dtype", choices=("fp16", "fp32", "bf16"), default="fp16")


def run(args: argparse.Namespace) -> int:
    from crdiff_ext.errors import CRDiffError
    from harness.embedded.weights import embedded_model_dir
    from harness.layouts.export import export_ldm
    from harness.pipelines import load_pipeline

    if args.out.suffix != ".safetensors":
        raise CRDiffError(f"{args.out} is no safetensors name: end it in .safetensors")
    loaded = load_pipeline(args.model or embedded_model_dir(), args.dtype)
    loaded.unet("crdiff export")
    for path in export_ldm(loaded.pipe, args.out.absolute()):
        print(f"Written: {path}")
    return 0
