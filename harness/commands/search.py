"""Search block ratios: by simulated annealing as the paper does, or another sampler of Optuna's.

A state is judged by the mean reward over many captions; the best one is confirmed on others that
took no part. Everything is kept in an Optuna study (OUT/study.db unless --storage says otherwise):
the same command goes on with a search that was killed, and started again beside a running one it
adds a chain to the same study. Also written: OUT/search.json (every trial, the best so far) and
OUT/presets.json, which `crdiff presets import` reads, unless dense was not beaten or wins held out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.schedule import Schedule
from crdiff_ext.settings import Ratios
from harness.commands.common import GUIDANCE_HELP, add_device, add_reward

if TYPE_CHECKING:
    from optuna import Study

    from harness.config import RunConfig, Size
    from harness.searching.outcome import Outcome
    from harness.searching.run import SearchConfig
    from harness.searching.workshop import Workshop

BATCH = 8
PROFILES: dict[str, Callable[[Schedule], Schedule]] = {
    "brisk": Schedule.brisk,
    "repaired": lambda schedule: schedule,
    "authors": Schedule.authors,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", metavar="HxW", help="height x width in pixels")
    add("--out", type=Path, required=True, metavar="DIR", help="where the search is kept")
    add("--model", default="embedded", metavar="DIR|FILE|ID", help="(default: the embedded model)")
    add("--prompts", type=Path, metavar="FILE", help="captions (default: the embedded model's)")
    add("--captions", type=int, default=32, metavar="N", help="that judge a state (default: 32)")
    add("--seeds", type=int, default=1, metavar="N", help="images of each caption (default: 1)")
    add("--held-out", type=int, default=128, metavar="N", help="that confirm (default: 128)")
    add_reward(parser)
    add("--steps", type=int, default=10, help="sampling steps (default: 10)")
    add("--guidance", type=float, help=GUIDANCE_HELP)
    add("--seed", type=int, default=0, help="of the sampler and the images (default: 0)")
    how = parser.add_argument_group("how it is searched").add_argument
    how("--sampler", default="anneal", help="anneal (default), tpe, cmaes or gp")
    how("--iterations", type=int, default=120, metavar="N", help="states a worker (default: 120)")
    how("--k", type=float, help="amplification (default: 1.5)")
    how("--search-k", metavar="LOW-HIGH", help="search k too, within this range, such as 1-2")
    how("--uniform", action="store_true", help="search one ratio that all groups share")
    how(
        "--profile",
        choices=PROFILES,
        default="brisk",
        help="brisk (default): large moves, T0 in units of the reward's noise; repaired: the "
        "authors' numbers without the faults; authors: as their code runs it, faults included",
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
    shared(
        "--write-config",
        type=Path,
        metavar="FILE",
        help="write the authors' config.json too; where the search ends without ratios to store, "
        "one that an earlier search of this model and size wrote there is removed",
    )
    add_device(parser)
    add("--batch", type=int, help=f"images drawn together (default: {BATCH} embedded, else 1)")


def run(args: argparse.Namespace) -> int:
    from harness.environment import all_cores
    from harness.searching.outcome import conclude, report, write_report
    from harness.searching.run import Worker
    from harness.searching.study import claimed_worker, concluding, open_storage, open_study
    from harness.searching.telling import Clock, Progress, tell
    from harness.searching.texts import split_prompts

    ratios, size = _start(args)
    schedule = make_schedule(args, ratios)
    _check(args, schedule)
    prompts = split_prompts(args.prompts, args.captions, args.held_out, args.seed)
    storage = open_storage(args.storage, args.out)
    workshop = _open(args, size)
    if workshop.family.is_dit and not schedule.uniform:
        label = workshop.family.label
        raise CRDiffError(f"{label} has one ratio for all layers: add --uniform to search it")
    config = _search_config(args, workshop, schedule, prompts.sha256, prompts.source)
    with claimed_worker(args.out, args.worker) as number, all_cores():
        clock = Clock()
        study = open_study(
            storage, args.study or f"crdiff {workshop.label} {size}", config.settings()
        )
        judging, confirming = _objectives(args, workshop, [p.text for p in prompts.prompts])
        worker = Worker(study, config, judging, number)
        worker.run(Progress(config))
        with concluding(args.out):
            outcome = conclude(study, config, confirming)
            for objective in (judging, confirming):
                objective.finish()
            cost = clock.cost(judging.tally, confirming.tally)
            write_report(args.out, report(study, config, outcome, cost))
            if outcome is not None:
                _store(args, workshop, config, study, outcome)
    if outcome is None:
        raise CRDiffError("no state could be evaluated: read the warnings above")
    tell(worker, outcome, cost, judging.tally.drawn + confirming.tally.drawn)
    return 0


def _store(
    args: argparse.Namespace,
    workshop: Workshop,
    config: SearchConfig,
    study: Study,
    outcome: Outcome,
) -> None:
    """Write presets.json and --write-config, or take back what an earlier best left there."""
    from crdiff_ext.presets import save_presets
    from harness.searching.outcome import preset_of

    presets = args.out / "presets.json"
    found = outcome.beats_dense and not outcome.refuted
    if found:
        preset = preset_of(outcome, config, study, workshop.family.name, workshop.label)
        save_presets(presets, [preset])
    else:
        presets.unlink(missing_ok=True)  # of a shorter search, whose best was another one
    if args.write_config is not None:
        _authors_file(args, workshop, outcome if found else None)


def _authors_file(args: argparse.Namespace, workshop: Workshop, found: Outcome | None) -> None:
    """Write --write-config; without ratios to store remove it if a search like this wrote it."""
    from harness.searching.authors import is_written_by_us, write_config

    path, size, label = args.write_config, workshop.size, workshop.label
    if found is not None:
        best, is_dit = found.best.ratios, workshop.family.is_dit
        write_config(path, label, size, best, found.score, is_dit)
    elif args.from_config is not None and args.from_config.resolve() == path.resolve():
        print(f"{path} is left as it was: the search started from it")
    elif is_written_by_us(path, label, size):
        path.unlink()
        print(f"removed: {path}, which an earlier search of this model and size wrote")
    elif path.exists():
        print(f"{path} is left as it was: no search of this model and size wrote it")


def make_schedule(args: argparse.Namespace, start: Ratios | None = None) -> Schedule:
    """The schedule that the arguments ask for. Raises CRDiffError."""
    schedule = PROFILES[args.profile](Schedule(iterations=args.iterations))
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
    return Schedule.from_dict({**schedule.to_dict(), **changes})


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
    if args.write_config is not None:
        check_folder(args.write_config.parent, "--write-config")
        if args.write_config.is_dir():
            raise CRDiffError(f"{args.write_config} is a folder: give --write-config a file")


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
