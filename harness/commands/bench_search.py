"""``crdiff bench search``: which sampler needs the fewest images."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crdiff_ext.errors import CRDiffError

if TYPE_CHECKING:
    from harness.searching.compare import Contender
    from harness.searching.grid import Grid


CHANCE = 192  # captions of the grid that stands in where none is stored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", action="store_true", help="print the numbers as JSON")
    add("--seeds", type=_at_least(2), default=20, help="searches of each sampler (default: 20)")
    add("--judging", type=_at_least(2), default=32, help="captions that judge (default: 32)")
    add("--iterations", type=_at_least(1), default=120, help="of each search (default: 120)")
    add("--samplers", default="anneal,tpe,cmaes,gp", help="separated by commas (default: all)")
    add("--repeats", type=_at_least(2), default=20, help="of the winner's curse (default: 20)")
    add("--jobs", type=_at_least(1), default=1, help="searches at once (default: 1)")
    add("--out", type=Path, metavar="DIR", help="write search.json and search.md there too")
    add("--refine", action="store_true", help="only what a search for one prompt gains")
    add("--grid", type=Path, metavar="FILE", help="a grid of real rewards (default: the shipped)")
    add("--build", type=Path, metavar="FILE", help="draw the grid of real rewards anew, into FILE")
    add("--captions", type=int, default=192, help="of the grid to build (default: 192)")
    add("--steps", type=int, default=5, help="sampling steps of the grid (default: 5)")
    add("--size", default="64x64", metavar="HxW", help="of the grid (default: 64x64)")


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < low:
            raise argparse.ArgumentTypeError(f"{text} is too small: at least {low}")
        return value

    return number


def run(args: argparse.Namespace) -> int:
    if args.build is not None:
        return _build(args)
    from harness.searching.compare import contenders, makers, race, winners_curse
    from harness.searching.grid import GRID, Grid
    from harness.searching.landscapes import chance

    path = args.grid or GRID
    grid = Grid.load(path) if args.grid or path.exists() else None
    if args.refine:
        return _refine(grid, args.json)
    runners = _wanted(args, contenders(args.iterations))
    result: dict[str, Any] = {
        "captions": args.judging,
        "iterations": args.iterations,
        "schedules": {runner.name: runner.schedule.to_dict() for runner in runners},
        "races": {},
    }
    tables = []
    for name, make in makers(grid, args.judging).items():
        rows = race(make, range(args.seeds), runners, _note, args.jobs)
        result["races"][name] = rows
        tables.append(_table(name, rows, args))
        if not args.json:
            print(tables[-1], flush=True)
    curse_of = grid or chance(CHANCE)
    counts = [n for n in (2, 4, 8, 16, 32, 64, 128) if n < curse_of.rewards.shape[-1]]
    result["winners_curse"] = winners_curse(
        curse_of, counts, args.repeats, runners[0].schedule, args.jobs
    )
    result["grid"] = curse_of.provenance
    on = "the grid" if grid else "synthetic captions with nothing to win"
    tables.append(_curse(result["winners_curse"], on))
    if grid is None:
        tables.append("no grid of real rewards is stored (--build FILE, then --grid FILE draws it)")
    if not args.json:
        print("\n".join(tables[len(result["races"]) :]))
    if args.out is not None:
        _write(args.out, result, tables)
    if args.json:
        print(json.dumps(_finite(result), indent=1, allow_nan=False))
    return 0


def _refine(grid: Grid | None, as_json: bool) -> int:
    from harness.searching.compare import makers
    from harness.searching.refine_gain import IMAGES, gains

    rows = gains(makers(grid, IMAGES))
    if as_json:
        print(json.dumps({"refine": rows}, indent=1, allow_nan=False))
        return 0
    print(f"One prompt, {IMAGES} images a state: gain over dense by the search's own score")
    print(f"{'on':12}{'images':>8}  {'moves':14}{'gain':>8}{'+-':>8}{'n':>5}")
    for row in rows:
        print(
            f"{row['on']:12}{row['images']:8}  {row['moves']:14}{row['gain']:+8.3f}"
            f"{row['error']:8.3f}{row['n']:5}"
        )
    return 0


def _wanted(args: argparse.Namespace, runners: list[Contender]) -> list[Contender]:
    """The plain schedule and those that were named; without a package, without its sampler."""
    from importlib.util import find_spec

    named = args.samplers.split(",")
    if unknown := set(named) - {runner.sampler for runner in runners}:
        raise CRDiffError(f"sampler {sorted(unknown)[0]!r} is not known")
    if "cmaes" in named and find_spec("cmaes") is None:
        print("cmaes is left out: its package is missing (pip install cmaes)", file=sys.stderr)
        named.remove("cmaes")
    return [runners[0], *(runner for runner in runners[1:] if runner.sampler in named)]


def _note(name: str, seed: int) -> None:
    if sys.stderr.isatty():
        print(f"{name}, seed {seed}    ", end="\r", file=sys.stderr, flush=True)


def _table(name: str, rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    lines = [
        f"{name}: images until the score of the plain {args.iterations}-iteration schedule, "
        f"{args.judging} captions, {args.seeds} seeds",
        f"{'sampler':18}{'median images':>14}{'of plain':>10}{'quartiles':>14}{'reached':>9}",
    ]
    for row in rows:
        never = math.isinf(row["median_images"])
        images = "never" if never else f"{row['median_images']:.0f}"
        share, *quartiles = map(_share, (row["share"], *row["share_quartiles"]))
        lines.append(
            f"{row['sampler']:18}{images:>14}{share:>10}{' - '.join(quartiles):>14}"
            f"{row['reached']:>9.0%}"
        )
    return "\n".join(lines)


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"


def _curse(rows: list[dict[str, Any]], on: str) -> str:
    lines = [
        f"The winner's curse on {on}: gain over dense of the best state, mean over repeats",
        f"{'captions':>8}{'search':>10}{'held out':>10}{'+-':>8}",
    ]
    for row in rows:
        lines.append(
            f"{row['captions']:8}{row['search']:+10.3f}{row['held_out']:+10.3f}"
            f"{row['held_out_error']:8.3f}"
        )
    return "\n".join(lines)


def _finite(value: Any) -> Any:
    """JSON has no infinity: null, which is "never"."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def _write(folder: Path, result: dict[str, Any], tables: list[str]) -> None:
    from harness.store import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(result), indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "search.json", text.encode())
    blocks = [f"```text\n{table}\n```" for table in tables]
    write_atomically(folder / "search.md", ("\n\n".join(["# Samplers", *blocks]) + "\n").encode())


def _build(args: argparse.Namespace) -> int:
    from harness.config import RunConfig, Size
    from harness.searching.grid import LEVELS, build
    from harness.searching.objective import items_of
    from harness.searching.texts import embedded_texts
    from harness.searching.workshop import EMBEDDED, open_workshop

    size = Size.parse(args.size)
    config = RunConfig(EMBEDDED, (size,), args.build.parent, steps=args.steps, batch=16)
    workshop = open_workshop(config)
    texts = embedded_texts(args.captions)
    provenance = {
        "command": f"crdiff bench search --build FILE --captions {args.captions} "
        f"--steps {args.steps} --size {size}",
        "model": "embedded model",
        "model_hash": workshop.sampling.model_hash,
        "reward": workshop.reward_name,
        "captions": f"the first {args.captions} of the search split",
        "prompts_sha256": texts.sha256,
        "size": str(size),
        "k": 1.5,
        "steps": workshop.sampling.steps,
        "guidance": workshop.sampling.guidance,
        "seed": workshop.sampling.seed,
        "batch": workshop.sampling.batch,
    }
    shots = items_of([prompt.text for prompt in texts.prompts], workshop.sampling.seed)
    build(workshop.objective(shots, None), args.build, provenance, LEVELS, 1.5, _progress)
    return 0


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total or not sys.stderr.isatty() else "\r"
    print(f"{done} of {total} ratios", end=end, file=sys.stderr, flush=True)
