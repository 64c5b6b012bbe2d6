"""How far the embedded model's own measures can be trusted: the caption check and the reward.

On real renders over the whole grammar: how often the caption check calls the right caption right,
and how often it and the reward tell a caption with exactly one fact swapped from the right one.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--renders", type=int, default=200, help="a size (default: 200)")
    parser.add_argument("--seed", type=int, default=11)


def run(args: argparse.Namespace) -> int:
    import random

    import numpy as np

    from crdiff_ext.errors import CRDiffError
    from harness.config import Size
    from harness.embedded.architecture import SIZES
    from harness.embedded.check import check
    from harness.embedded.reward import EmbeddedReward
    from harness.embedded.scenes import caption, render, sample_spec
    from harness.embedded.swaps import FACTS, random_swap

    if args.renders < 1:
        raise CRDiffError(f"--renders is {args.renders}: it must be at least 1")
    reward = EmbeddedReward.load()
    print(f"{'':<10}{'right':>8}" + "".join(f"{fact:>12}" for fact in (*FACTS, "all facts")))
    for size in SIZES:
        rng = random.Random(args.seed)
        specs = [sample_spec(rng, split=None) for _ in range(args.renders)]
        facts, others = zip(*(random_swap(spec, rng) for spec in specs), strict=True)
        images = [render(spec, *size, rng) for spec in specs]
        right = [check(i, spec).all_right for i, spec in zip(images, specs, strict=True)]
        told = [not check(i, other).all_right for i, other in zip(images, others, strict=True)]
        own = reward.score(images, [caption(spec) for spec in specs])
        preferred = own > reward.score(images, [caption(other) for other in others])
        print(f"{Size(*size)}, {args.renders} renders")
        for name, first, values in (
            ("check", np.mean(right), np.array(told)),
            ("reward", np.nan, preferred),
        ):
            by_fact = [values[np.array(facts) == fact] for fact in FACTS]
            cells = [v.mean() if len(v) else np.nan for v in (*by_fact, values)]
            row = "".join(f"{cell:>12.3f}" for cell in cells).replace("nan", "  –")
            print(f"  {name:<8}{first:>8.3f}".replace("nan", "  –") + row)
    return 0
