"""Search block ratios: by simulated annealing as the paper does, or another sampler of Optuna's.

A state is judged by the mean reward over many captions; the best one is confirmed on others that
took no part. Everything is kept in an Optuna study (OUT/study.db unless --storage says otherwise):
the same command goes on with a search that was killed, and started again beside a running one it
adds a chain to the same study. Also written: OUT/search.json (every trial, the best so far) and
OUT/presets.json, which `crdiff presets import` reads.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule
from crdiff_ext.settings import Ratios

if TYPE_CHECKING:
    from harness.config import RunConfig, Size
    from harness.searching.outcome import Outcome
    from harness.searching.run import SearchConfig, Worker
    from harness.searching.workshop import Workshop

BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from harness.config import DTYPES

    add = parser.add_argument
    add("--size", metavar="HxW", help="height x width in pixels")
    add("--out", type=Path, required=True, metavar="DIR", help="where the search is kept")
    add("--model", default="embedded", metavar="DIR|FILE|ID", help="(default: the embedded model)")
    add("--prompts", type=Path, metavar="FILE", help="captions (default: the embedded model's)")
    add("--captions", type=int, default=32, metavar="N", help="that judge a state (default: 32)")
    add("--seeds", type=int, default=1, metavar="N", help="images of each caption (default: 1)")
    add("--held-out", type=int, default=128, metavar="N", help="that confirm (default: 128)")
    add("--reward", default="auto", help="auto: the embedded model's own, else image-reward")
    add("--reward-weights", type=Path, metavar="DIR", help="folder with the reward's weights")
    add("--steps", type=int, default=10, help="sampling steps (default: 10)")
    add("--guidance", type=float, help="(default: the model's own, else the authors' 7.5)")
    add("--seed", type=int, default=0, help="of the sampler and the images (default: 0)")
    how = parser.add_argument_group("how it is searched").add_argument
    how("--sampler", default="anneal", help="anneal (default), tpe, cmaes or gp")
    how("--iterations", type=int, default=120, metavar="N", help="states a worker (default: 120)")
    how("--k", type=float, help="amplification (default: 1.5)")
    how("--search-k", metavar="LOW-HIGH", help="search k too, within this range, such as 1-2")
    how("--uniform", action="store_true", help="search one ratio that all groups share")
    how(
        "--profile",
        choices=("repaired", "authors"),
        default="repaired",
        help="authors: the annealing schedule as their code runs it, faults included",
    )
    how(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting of the schedule, such as temperature=0.02; repeat for more",
    )
    how("--no-stop", action="store_true", help="see all captions of hopeless states too")
    how("--from-config", type=Path, metavar="FILE", help="start from the authors' config.json")
    shared = parser.add_argument_group("where it is kept, and with whom it is shared").add_argument
    shared("--storage", metavar="URL", help="a database URL, or journal:FILE")
    shared("--study", metavar="NAME", help="the study's name (default: from model and size)")
    shared("--worker", type=int, metavar="N", help="this process's chain (default: a free one)")
    shared("--write-config", type=Path, metavar="FILE", help="write the authors' config.json too")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--dtype", default="auto", choices=DTYPES, help="(default: fp32 on a CPU, else fp16)")
    add("--batch", type=int, help=f"images drawn together (default: {BATCH} embedded, else 1)")


def run(args: argparse.Namespace) -> int:
    from crdiff_ext.presets import save_presets
    from harness.environment import all_cores
    from harness.searching.outcome import conclude, preset_of, report, write_report
    from harness.searching.run import Worker
    from harness.searching.study import claim_worker, open_storage, open_study
    from harness.searching.texts import split_prompts

    ratios, size = _start(args)
    schedule = make_schedule(args, ratios)
    _check(args, schedule)
    prompts = split_prompts(args.prompts, args.captions, args.held_out, args.seed)
    workshop = _open(args, size)
    config = _search_config(args, workshop, schedule, prompts.sha256, prompts.source)
    number, lock = claim_worker(args.out, args.worker)
    with lock, all_cores():
        started = time.perf_counter()
        name = args.study or f"crdiff {workshop.label} {size}"
        study = open_study(open_storage(args.storage, args.out), name, config.settings())
        judging, confirming = _objectives(args, workshop, [p.text for p in prompts.prompts])
        worker = Worker(study, config, judging, number)
        worker.run(_Progress(config))
        outcome = conclude(study, config, confirming)
        for objective in (judging, confirming):
            objective.finish()
        spent = judging.tally.seconds + confirming.tally.seconds
        cost = _cost(time.perf_counter() - started, spent)
        write_report(args.out, report(study, config, outcome, cost))
    if outcome is None:
        raise CRDiffError("no state could be evaluated: read the warnings above")
    if outcome.beats_dense:
        preset = preset_of(outcome, config, study, workshop.family.name, workshop.label)
        save_presets(args.out / "presets.json", [preset])
        if args.write_config is not None:
            from harness.searching.authors import write_config

            label = workshop.label
            write_config(args.write_config, label, size, outcome.best.ratios, outcome.score)
    _print(worker, outcome, cost, judging.tally.drawn + confirming.tally.drawn)
    return 0


def make_schedule(args: argparse.Namespace, start: Ratios | None = None) -> Schedule:
    """The schedule that the arguments ask for. Raises CRDiffError."""
    schedule = Schedule(iterations=args.iterations)
    if args.profile == "authors":
        schedule = schedule.authors()
    changes: dict[str, Any] = {"uniform": args.uniform}
    if start is not None:
        values = list(start.as_dict().values())
        changes["start"] = [sum(values) / 3] * 3 if args.uniform else values
    if args.k is not None:
        changes["k"] = args.k
    if args.search_k is not None:
        low, _, high = args.search_k.partition("-")
        try:
            changes["k_range"] = (float(low), float(high))
        except ValueError:
            raise CRDiffError(
                f"--search-k {args.search_k} is not understood: write the lowest and the highest "
                "k, such as 1-2"
            ) from None
    for text in args.set:
        name, _, value = text.partition("=")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            raise CRDiffError(
                f"--set {text} is not understood: write a setting and its value, such as "
                "temperature=0.02 or start=[0.2,0.2,0.2]"
            ) from None
    try:
        return Schedule.from_dict({**schedule.to_dict(), **changes})
    except TypeError as error:
        raise CRDiffError(f"--set has a value of the wrong kind ({error})") from error


def _start(args: argparse.Namespace) -> tuple[Ratios | None, Size]:
    from harness.config import Size

    ratios, size = None, Size.parse(args.size) if args.size else None
    if args.from_config is not None:
        from harness.searching.authors import read_config

        ratios, theirs = read_config(args.from_config)
        size = size or theirs
    if size is None:
        raise CRDiffError("no size was given: add --size HEIGHTxWIDTH, such as --size 512x512")
    return ratios, size


def _check(args: argparse.Namespace, schedule: Schedule) -> None:
    """What can be refused before a model is loaded. Raises CRDiffError."""
    from harness.store import check_folder

    _search_config(args, None, schedule, "", "")
    if args.model != "embedded" and args.prompts is None:
        raise CRDiffError(
            "only the embedded model brings captions: give --prompts a .txt, .csv or .tsv file"
        )
    check_folder(args.out)


def _open(args: argparse.Namespace, size: Size) -> Workshop:
    from harness.searching.workshop import open_workshop

    return open_workshop(run_config(args, size), args.reward, args.reward_weights)


def run_config(args: argparse.Namespace, size: Size) -> RunConfig:
    """The part of the arguments that says how images are drawn."""
    from harness.config import RunConfig

    return RunConfig(
        model=args.model,
        sizes=(size,),
        out=args.out,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        dtype=args.dtype,
        device=args.device,
        batch=args.batch or (BATCH if args.model == "embedded" else 1),
    )


def _search_config(
    args: argparse.Namespace,
    workshop: Workshop | None,
    schedule: Schedule,
    prompts_sha256: str,
    prompts: str,
) -> SearchConfig:
    from harness.searching.run import SearchConfig

    config = SearchConfig(
        model_hash="",
        height=1,
        width=1,
        reward="",
        prompts=prompts,
        prompts_sha256=prompts_sha256,
        captions=args.captions,
        seeds=args.seeds,
        held_out=args.held_out,
        steps=args.steps,
        seed=args.seed,
        sampler=args.sampler,
        stop=not args.no_stop,
        schedule=schedule,
    )
    if workshop is None:
        return config
    sampling = workshop.sampling
    return replace(
        config,
        model_hash=sampling.model_hash,
        height=workshop.size.height,
        width=workshop.size.width,
        reward=workshop.reward_name,
        guidance=sampling.guidance,
        batch=sampling.batch,
    )


def _objectives(args: argparse.Namespace, workshop: Workshop, texts: list[str]) -> Any:
    """What judges, and what confirms: other captions and other noise."""
    from harness.searching.objective import items_of
    from harness.store import Store

    store = Store(args.out)
    judging = items_of(texts[: args.captions], args.seed, args.seeds)
    confirming = items_of(texts[args.captions :], args.seed, args.seeds, len(judging))
    return workshop.objective(judging, store), workshop.objective(confirming, store)


class _Progress:
    """A bar of states with the best score."""

    def __init__(self, config: SearchConfig) -> None:
        import sys

        from tqdm import tqdm

        total = config.schedule.iterations + config.schedule.baseline
        self.bar = tqdm(total=total, unit="state", disable=not sys.stderr.isatty())

    def __call__(self, worker: Worker) -> None:
        from harness.searching.sampler import best_trial, counts

        if self.bar.disable:
            return
        best = best_trial(worker.study.get_trials(deepcopy=False))
        self.bar.n = sum(map(counts, worker.mine()))
        if best is not None and best.value is not None:
            self.bar.set_postfix(best=f"{best.value:.3f}", refresh=True)


def _cost(seconds: float, spent: float) -> dict[str, float]:
    """Of this process, model loading left out."""
    share = 1 - spent / seconds if seconds > 0 else 0.0
    return {
        "seconds": round(seconds, 2),
        "drawing_and_scoring": round(spent, 2),
        "share_beyond": round(share, 4),
    }


def _print(worker: Worker, outcome: Outcome, cost: dict[str, float], drawn: int) -> None:
    from harness.searching.sampler import counts, was_stopped

    trials = [t for t in worker.study.get_trials(deepcopy=False) if counts(t)]
    stopped = sum(map(was_stopped, trials))
    size = f"{worker.config.height}x{worker.config.width}"
    dense = "not evaluated" if outcome.dense is None else f"{outcome.dense:.3f}"
    print(f"{size}: {len(trials)} states, {stopped} of them given up early")
    if not outcome.beats_dense:
        print(f"search score: dense's {dense} was not beaten, so there are no ratios to store")
    else:
        print(f"best ratios {outcome.best}")
        print(f"search score {outcome.score:.3f} (dense {dense})")
    if outcome.held_out is not None:
        held, difference = outcome.held_out, outcome.held_out["difference"]
        print(
            f"held out ({held['captions']} captions): {held['score']:.3f}, difference to dense "
            f"{difference['estimate']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        )
    print(f"reward: {worker.config.reward}")
    if drawn:
        print(
            f"this process drew {drawn} images in {cost['seconds']:.1f} s; beyond drawing and "
            f"scoring: {cost['share_beyond']:.1%}"
        )
