"""Figure 7b: how the best score rises during a search, read from the search's own record."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from harness.config import Size
from harness.locate import read_json
from harness.tables.layout import Entry, Row, Table
from harness.tables.quantities import Book, NotRun, Ours, Where

log = logging.getLogger(__name__)

FILE = "search.json"
SHARES = (0.25, 0.5, 0.75, 1.0)
STATES, CAPTIONS, HELD_OUT = 8, 4, 2
"""Of the searches that are made for the embedded model when none is given: they show the layout,
and that it works; a curve worth reading needs the search's own defaults."""
NONE_GIVEN = (
    "not run: give --search the folders of two crdiff searches, one block-wise and one with "
    "--uniform"
)


@dataclass(frozen=True)
class Curve:
    """One search. ``points``: (images drawn so far, score, best so far) of each state."""

    name: str
    searched: str
    size: Size
    captions: int
    reward: str
    dense: float | None
    points: tuple[tuple[int, float | None, float | None], ...]

    @property
    def is_stand_in(self) -> bool:
        """Whether its reward is the embedded model's."""
        return "embedded" in self.reward.lower()

    def best_at(self, share: float) -> float | None:
        """The best score once this share of all its images was drawn."""
        budget = share * self.points[-1][0] if self.points else 0
        reached = [best for images, _, best in self.points if images <= budget]
        return reached[-1] if reached else None


def read_curve(folder: Path) -> Curve:
    """The curve in a folder of ``crdiff search``. Raises CRDiffError."""
    path = folder / FILE
    if not path.is_file():
        raise CRDiffError(f"{folder} has no {FILE}: give --search a folder of crdiff search")
    data = read_json(path)
    try:
        config = data["config"]
        dense = data["dense"]
        if isinstance(dense, list):
            dense = math.fsum(dense) / len(dense)
        return Curve(
            folder.name,
            data.get("searched", "block-wise ratios"),
            Size(config["height"], config["width"]),
            config["captions"],
            _reward(config),
            dense,
            tuple(_points(data["trials"], config["captions"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CRDiffError(f"{path} is not a search's record ({error}): search again") from error


def _reward(config: dict[str, Any]) -> str:
    reward = config.get("reward", "embedded reward")  # older records know no other
    name = str(reward.get("name", reward) if isinstance(reward, dict) else reward)
    return name.partition(" (")[0]  # what it is, without what it is not


def _points(
    trials: Sequence[dict[str, Any]], captions: int
) -> list[tuple[int, float | None, float | None]]:
    points: list[tuple[int, float | None, float | None]] = []
    best: float | None = None
    for number, trial in enumerate(trials, 1):
        score = trial["score"]
        if score is not None and not trial.get("stopped", False):
            best = score if best is None else max(best, score)
        points.append((trial.get("images", number * captions), score, best))
    return points


@dataclass(frozen=True)
class Given:
    """A number of a search's record."""

    value: float | None
    n: int | None

    @property
    def cells(self) -> tuple[Where, ...]:
        """Nothing has to be drawn."""
        return ()

    def of(self, _: Book) -> Ours:
        """The number. Raises NotRun where the record has none."""
        if self.value is None:
            raise NotRun("not run: the search's record has no score there")
        return Ours(self.value, self.n)


def curve_table(title: str, notes: tuple[str, ...], curves: Sequence[Curve], block: str) -> Table:
    """The searches in rows, the best score after shares of their images in columns."""
    rows = []
    for curve in curves:
        entries = [Entry(None, Given(float(len(curve.points)), None), 0)]
        values = [curve.dense, *(curve.best_at(share) for share in SHARES)]
        entries += [Entry(None, Given(value, curve.captions)) for value in values]
        label = f"{curve.searched}, {curve.reward}"
        rows.append(Row((curve.name, str(curve.size), label), tuple(entries)))
    columns = ("states", "dense", *(f"best at {share:.0%} of the images" for share in SHARES))
    return Table("fig7b", title, ("Search", "Size", "What"), columns, tuple(rows), notes, block)


def curves_csv(curves: Sequence[Curve]) -> str:
    """All states of all searches."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["search", "searched", "reward", "state", "images", "score", "best_so_far"])
    for curve in curves:
        for number, (images, score, best) in enumerate(curve.points, 1):
            place = [curve.name, curve.searched, curve.reward, number, images]
            writer.writerow([*place, *("" if v is None else f"{v:.6g}" for v in (score, best))])
    return buffer.getvalue()


def search_embedded(out: Path, size: Size, seed: int) -> list[Path]:
    """Two small searches of the embedded model, resumed where they exist; their folders."""
    from harness.commands import search

    folders = []
    for name, more in (("block-wise", []), ("uniform", ["--uniform"])):
        folder = out / f"search-{name}"
        parser = argparse.ArgumentParser()
        search.add_arguments(parser)
        words = ["--size", str(size), "--out", str(folder), "--seed", str(seed)]
        words += ["--captions", str(CAPTIONS), "--held-out", str(HELD_OUT)]
        args, unknown = parser.parse_known_args([*words, "--iterations", str(STATES), *more])
        if unknown:
            log.warning("fig7b: crdiff search has no %s: left out", " ".join(unknown))
            continue
        with contextlib.redirect_stdout(sys.stderr):
            search.run(args)
        folders.append(folder)
    return folders
