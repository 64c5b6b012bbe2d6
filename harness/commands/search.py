"""Search block ratios for the embedded model by simulated annealing, as the paper does for SDXL.

Judged by the embedded reward on captions that the demo never draws; the best state is confirmed on
further ones. Writes search.json (a killed search goes on from it) and presets.json, which
`crdiff presets import` reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", required=True, metavar="HxW", help="height x width in pixels")
    add("--out", type=Path, required=True, metavar="DIR", help="where the search is kept")
    add("--k", type=float, default=1.5, help="amplification (default: 1.5)")
    add("--captions", type=int, default=32, metavar="N", help="that judge a state (default: 32)")
    add("--held-out", type=int, default=128, metavar="N", help="that confirm (default: 128)")
    add("--steps", type=int, default=10, help="sampling steps (default: 10)")
    add("--iterations", type=int, default=120, metavar="N", help="states (default: 120)")
    add("--seed", type=int, default=0, help="of the annealer and the images (default: 0)")


def run(args: argparse.Namespace) -> int:
    from crdiff_ext.presets import save_presets
    from crdiff_ext.settings import check_k
    from harness.config import Size
    from harness.embedded.reward import EmbeddedReward
    from harness.embedded.weights import embedded_model_dir
    from harness.environment import all_cores
    from harness.generate import Painter
    from harness.modelhash import model_hash
    from harness.pipelines import load_pipeline
    from harness.plan import Sampling
    from harness.search import Objective, Search, SearchConfig

    size = Size.parse(args.size)
    loaded = load_pipeline(embedded_model_dir())
    size.check_step(loaded.family.step, loaded.family.label)
    config = SearchConfig(
        model_hash=model_hash(loaded.path, args.out / "model-hashes.json"),
        height=size.height,
        width=size.width,
        k=check_k(args.k),
        captions=args.captions,
        held_out=args.held_out,
        steps=args.steps,
        guidance=float(loaded.defaults["guidance"]),
        seed=args.seed,
        iterations=args.iterations,
    )
    sampling = Sampling(
        model_hash=config.model_hash,
        steps=config.steps,
        guidance=config.guidance,
        negative="",
        scheduler=type(loaded.pipe.scheduler).__name__,
        scheduler_sha256="",
        dtype="fp32",
        device="cpu",
        seed=config.seed,
        batch=config.batch,
    )
    objective = Objective(Painter(loaded.pipe, sampling), EmbeddedReward.load(), config)
    search = Search(config, objective, args.out)
    with all_cores():
        state = search.run()
    preset = search.preset(loaded.family.label)
    save_presets(args.out / "presets.json", [preset])
    difference = state["held_out"]["difference"]
    print(f"{size}: best ratios {preset.ratios} of {len(state['trials'])} states")
    print(
        f"search score {preset.provenance['search_score']:.3f} "
        f"(dense {preset.provenance['search_score_dense']:.3f})"
    )
    print(
        f"held out ({state['held_out']['captions']} captions): {state['held_out']['score']:.3f}, "
        f"difference to dense {difference['estimate']:+.3f} "
        f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"
    )
    return 0
