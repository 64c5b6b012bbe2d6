"""Search the ratios for one prompt and size: a short search from the stored ones, several seeds.

Written: before-SEED.png (dense), stored-SEED.png (the ratios it starts from), after-SEED.png, and
refine.json with every state and score. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crdiff_ext.errors import CRDiffError
from harness.commands.common import GUIDANCE_HELP, STEPS_HELP, add_device, add_reward

if TYPE_CHECKING:
    from crdiff_ext.refine import Refinement
    from crdiff_ext.schedule import State
    from harness.searching.workshop import Workshop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="one prompt; the embedded model understands its own grammar only")
    add("--size", required=True, metavar="HxW", help="height x width in pixels")
    add("--budget", type=int, default=24, metavar="N", help="images to judge by (default: 24)")
    add("--seeds", type=int, default=2, metavar="N", help="images of each state (default: 2)")
    add("--fresh", type=int, default=2, metavar="N", help="more seeds to check by (default: 2)")
    add("--seed", type=int, default=0, help="the first image's, and the search's (default: 0)")
    out = Path("runs/refine")
    add("--out", type=Path, default=out, metavar="DIR", help="(default: %(default)s)")
    add("--model", default="embedded", metavar="DIR|FILE|ID", help="(default: the embedded model)")
    add("--ratios", metavar="D/M/U", help="where to start (default: the stored ones)")
    add("--k", type=float, help="amplification to start with (default: the stored one, else 1.5)")
    add("--fix-k", action="store_true", help="search the ratios only")
    add("--presets", type=Path, metavar="FILE", help="your stored ratios (see crdiff presets)")
    add_reward(parser)
    add("--steps", type=int, help=STEPS_HELP)
    add("--guidance", type=float, help=GUIDANCE_HELP)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from crdiff_ext.refine import Refinement
    from harness.config import RunConfig, Size, image_seed
    from harness.environment import all_cores
    from harness.searching.objective import Shot
    from harness.searching.refining import compare, images_of, refine, result_of, write
    from harness.searching.workshop import open_workshop
    from harness.store import Store

    size = Size.parse(args.size)
    _check(args)
    config = RunConfig(
        model=args.model,
        sizes=(size,),
        out=args.out,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        dtype=args.dtype,
        device=args.device,
        batch=args.seeds if args.model == "embedded" else 1,
    )
    store = Store(args.out)
    workshop = open_workshop(config, args.reward, args.reward_weights)
    start, origin = _start(args, workshop)
    seeds = [image_seed(args.seed, i) for i in range(args.seeds + args.fresh)]
    judged_by = seeds[: args.seeds]
    one = workshop.family.is_dit  # ratio for all layers
    search = Refinement(start, judged_by, args.budget, not args.fix_k, args.seed, one)
    shots = [Shot(args.prompt, seed) for seed in seeds]
    judging = workshop.objective(shots[: args.seeds], store)
    checking = workshop.objective(shots[args.seeds :], store)
    with all_cores():
        refine(search, judging)
        if not any(judged.score is not None for judged in search.judged):
            raise CRDiffError("no round could be drawn and judged: read the warnings above")
        states = [search.judged[0].round.state, search.start, search.best.state]
        fresh = compare(checking, states) if args.fresh else {}
        names = ("before", "stored", "after")
        pictures = {n: images_of(judging, s) for n, s in zip(names, states, strict=True)}
        judging.finish()
        checking.finish()
    about = {
        "height": size.height,
        "width": size.width,
        "model": workshop.label,
        "model_hash": workshop.sampling.model_hash,
        "reward": workshop.reward_name,
        "steps": workshop.sampling.steps,
        "guidance": workshop.sampling.guidance,
        "start_from": origin,
    }
    result = result_of(search, args.prompt, about, fresh)
    write(args.out, result, pictures)
    _print(search, workshop, origin, states, result)
    print(f"Written: {args.out / 'refine.json'}, before-, stored- and after-SEED.png")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be refused before a model is loaded. Raises CRDiffError."""
    from crdiff_ext.refine import candidates
    from harness.store import check_folder

    if args.seeds < 1 or args.fresh < 0:
        raise CRDiffError("--seeds must be at least 1, and --fresh at least 0")
    candidates(args.budget, args.seeds)
    if args.k == 0 and args.fix_k:
        raise CRDiffError(
            "k is 0, which is the dense model: give another --k, or leave --fix-k out"
        )
    check_folder(args.out)
    if args.model == "embedded":
        from harness.embedded.check import parse_caption

        try:
            parse_caption(args.prompt)
        except ValueError:
            raise CRDiffError(
                f"the embedded model does not understand {args.prompt!r}: write such as 'a red "
                "circle', 'two blue squares' or 'a red circle to the left of a green cross on a "
                "white background', or give another --model"
            ) from None


def _start(args: argparse.Namespace, workshop: Workshop) -> tuple[State, str]:
    """Where to start, and where that is from: as given, stored for the size or nearest, or 0.3."""
    from crdiff_ext.schedule import Schedule, State
    from crdiff_ext.settings import K_DEFAULT, Ratios
    from harness.choice import choose
    from harness.user_presets import stored_presets

    if args.ratios is not None:
        k = K_DEFAULT if args.k is None else args.k
        ratios = Ratios.parse(args.ratios)
        workshop.family.check(ratios)
        return State(ratios, k).rounded(), "as given"
    stored = stored_presets(args.presets)
    decision = choose(workshop.family, workshop.size, stored, k=args.k, mode="always")
    if decision.act and decision.ratios is not None:
        return State(decision.ratios, decision.k).rounded(), decision.sentence
    first = Schedule().first
    k = first.k if args.k is None else args.k
    return State(first.ratios, k), f"the authors' start ({decision.sentence})"


def _print(
    search: Refinement, workshop: Workshop, origin: str, states: list[State], result: dict
) -> None:
    from crdiff_ext.schedule import State

    print(f"{workshop.size}: {len(search.judged)} states, {len(search.seeds)} images each")
    print(f"start: {states[1]} ({origin})")
    judged = {j.round.state: j.score for j in search.judged}
    fresh = {
        State.from_dict({name: row[name] for name in ("down", "mid", "up", "k")}): row["score"]
        for row in result["fresh_seeds"]
    }
    print(f"{'':10}{'chosen by':>12}{'fresh seeds':>13}  ratios")
    for name, state in zip(("dense", "start", "refined"), states, strict=True):
        cells = [_cell(judged.get(state)), _cell(fresh.get(state))]
        print(f"{name:10}{cells[0]:>12}{cells[1]:>13}  {state}")
    print(f"reward: {workshop.reward_name}; the refined ratios were chosen by the first column")


def _cell(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
