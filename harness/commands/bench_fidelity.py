"""``crdiff bench fidelity``: how close the cheaper amplifications come to the exact one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from crdiff_ext.errors import CRDiffError
from harness.config import Size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="64x64", help="height x width (default 64x64)")
    parser.add_argument("--captions", type=int, default=256, help="held-out captions (default 256)")
    parser.add_argument(
        "--ratios",
        default="0.1,0.2,0.3,0.4,0.5,0.6",
        help="the ratio of all three groups (default 0.1,0.2,0.3,0.4,0.5,0.6)",
    )
    parser.add_argument("--modes", help="such as exact,folded (default all; exact must be in)")
    parser.add_argument("--k", type=float, default=1.5, help="amplification (default 1.5)")
    parser.add_argument("--steps", type=int, help="sampling steps (default the model's own, 20)")
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/fidelity"),
        help="images, fidelity.json, fidelity.md, plots as SVG (default runs/fidelity)",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Draw what is missing, compare, print, write. Raises CRDiffError."""
    from harness.bench.fidelity import Fidelity, FidelityConfig
    from harness.bench.fidelity_plots import plots
    from harness.bench.fidelity_text import markdown
    from harness.bench.variants import MODES
    from harness.environment import all_cores
    from harness.store import write_atomically

    config = FidelityConfig(
        Size.parse(args.size),
        args.captions,
        _ratios(args.ratios),
        tuple(args.modes.split(",")) if args.modes else MODES,
        args.k,
        args.seed,
        args.steps,
    )
    with all_cores():
        result = Fidelity(config, args.out).measure()
    plain, text = json.dumps(result, indent=1, ensure_ascii=False), markdown(result)
    write_atomically(args.out / "fidelity.json", (plain + "\n").encode())
    write_atomically(args.out / "fidelity.md", (text + "\n").encode())
    for name, picture in plots(result).items():
        write_atomically(args.out / name, picture.encode())
    print(plain if args.json else text)
    return 0


def _ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise CRDiffError(
            f"--ratios {text!r} are not understood: give numbers such as 0.1,0.3,0.5"
        ) from None
