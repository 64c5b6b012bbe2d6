"""Score the stored images of a finished run; nothing is drawn and nothing is downloaded.

Weights are looked for in the --weights folder; a metric whose files are missing is "not run", with
one sentence that says which file to get from where, and the others go on. What is scored once is
kept beside the images. Written: scores.json, scores.csv. Sizes are height x width.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from harness.scorers import DEFAULT_PROTOCOL, PROTOCOLS, SCORERS

log = logging.getLogger(__name__)
DEFAULT_METRICS = ("fid", "clip-score", "image-reward")
NOTHING_SCORED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_FOLDER", help="the --out folder of a finished run")
    add(
        "--metrics",
        action="append",
        metavar="NAMES",
        help=f"of {', '.join(SCORERS)}; repeat or separate by commas; clip-score:BACKBONE for "
        f"another backbone (default: {','.join(DEFAULT_METRICS)})",
    )
    add("--weights", type=Path, required=True, metavar="DIR", help="where the weights lie")
    add(
        "--reference",
        type=Path,
        metavar="DIR|NPZ",
        help="reference images, or their mu and sigma, for FID and KID",
    )
    add(
        "--protocol",
        default=DEFAULT_PROTOCOL,
        choices=list(PROTOCOLS),
        help=f"(default: {DEFAULT_PROTOCOL}: all images to 256x256 first, as in the paper)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")


def run(args: argparse.Namespace) -> int:
    from harness.environment import all_cores, default_device
    from harness.scorers import get_scorers, open_reference
    from harness.scorers.assess import assess, scores_json, write_scores
    from harness.scorers.cache import ScoreCache
    from harness.scorers.run_folder import read_run

    device = default_device() if args.device == "auto" else args.device
    scorers = get_scorers(_names(args.metrics), args.weights, device, args.protocol)
    results, cells = read_run(args.run)
    reference = open_reference(args.reference) if args.reference else None
    bars = Bars()
    try:
        with all_cores():
            found = assess(cells, scorers, ScoreCache(args.run), reference, bars.start)
    finally:
        bars.close()
    scores = scores_json(results, cells, found, reference, device)
    write_scores(args.run, scores, cells, found)
    for line in lines(scores):
        print(line)
    print(f"Written: {args.run / 'scores.json'}, scores.csv")
    return NOTHING_SCORED if len(found.not_run) == len(scorers) else 0


def _names(given: Sequence[str] | None) -> list[str]:
    names = [name.strip() for text in given or [] for name in text.split(",")]
    if any(not name for name in names):
        raise CRDiffError("--metrics has an empty name: write such as --metrics fid,clip-score")
    return names or list(DEFAULT_METRICS)


def lines(scores: Mapping[str, Any]) -> list[str]:
    """What the terminal shows: the table, the shares of prompts, what was not run and why."""
    from harness.report.text import align, by_size, cell_name, number

    done = [metric for metric in scores["metrics"] if metric["status"] == "done"]
    rows = [["", "images", *(metric["label"] for metric in done)]]
    for size, cells in by_size(scores).items():
        rows.append([size])
        for cell in cells:
            values = [_text(cell, metric) for metric in done]
            rows.append([f"  {cell_name(cell)}", str(cell["images"]), *values])
    told = [f"Protocol {scores['protocol']['name']}: {scores['protocol']['what']}."]
    if done:
        told += [align(rows), "After a value: the difference to dense ± half its 95 % interval."]
    for metric in done:
        for size, cells in by_size(scores).items():
            entries = {cell_name(cell): cell["metrics"][metric["name"]] for cell in cells}
            shares = [
                f"{label} {number(100 * entry['improved']['share'], 1)} %"
                for label, entry in entries.items()
                if entry["improved"]
            ]
            best = [
                f"{label} {number(entry['best_share'], 1)} %"
                for label, entry in entries.items()
                if entry["best_share"] is not None
            ]
            if shares:
                told.append(f"{metric['label']}, {size}, better than dense: {', '.join(shares)}")
            if best:
                told.append(f"{metric['label']}, {size}, best of all: {', '.join(best)}")
    return told + [f"Not run: {m['sentence']}" for m in scores["metrics"] if m["sentence"]]


def _text(cell: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    from harness.report.text import number, signed

    entry, decimals = cell["metrics"][metric["name"]], metric["decimals"]
    text, difference = number(entry["value"], decimals), entry["vs_dense"]
    if difference is None or cell["same_as"]:
        return text
    half = number((difference["high"] - difference["low"]) / 2, decimals)
    return f"{text}  {signed(difference['estimate'], decimals)} ±{half}"


class Bars:
    """One progress bar a scorer, with rate and time left; a line each in a log."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, what: str, total: int) -> Any:
        """A function that is told how many more images are done."""
        from tqdm import tqdm

        self.close()
        show = sys.stderr.isatty()
        if not show:
            log.info("%s: %d images", what, total)
        self._bar = tqdm(total=total, desc=what, unit="image", disable=not show, smoothing=0.1)
        return self._bar.update

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
