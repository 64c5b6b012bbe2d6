"""What a report is made of: the files of a run's folder, read and checked."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from crdiff_ext.errors import CRDiffError

Results = Mapping[str, Any]
EXTRAS = ("search.json", "fidelity.json", "tables.json", "scores.json")
"""Looked for in the folder and up to two levels below."""


@dataclass(frozen=True)
class Row:
    """One image of images.csv; ``scores``: metric -> value, of those that score single images."""

    cell: str
    name: str
    caption: str
    seed: str
    file: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Extra:
    """A JSON file that another command wrote; ``place``: its folder, below the run's."""

    place: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A run's folder. ``results`` is None where only other commands' files are in it."""

    folder: Path
    results: Results | None
    rows: Sequence[Row] = ()
    extras: Mapping[str, Sequence[Extra]] = field(default_factory=dict)


def read_source(folder: Path) -> Source:
    """Read a folder that ``crdiff run``, ``demo``, ``search``, ``bench`` or ``tables`` wrote.

    Raises CRDiffError when there is nothing to report, or when a file is damaged.
    """
    if not folder.is_dir():
        raise CRDiffError(f"{folder} is not a folder: give the one that crdiff run wrote to")
    extras = read_extras(folder)
    path = folder / "results.json"
    if not path.is_file():
        if not any(extras.values()):
            raise CRDiffError(
                f"{folder} has no results.json: give the folder that crdiff run or demo wrote to"
            )
        return Source(folder, None, (), extras)
    results = _read_json(path)
    if results.get("schema") != "crdiff-results":
        raise CRDiffError(f"{path} is not a run's results: give the folder of another run")
    if results.get("status") != "complete":
        raise CRDiffError(
            f"the run in {folder} has not come to its end: run the same command again, it goes on "
            "where it stopped"
        )
    return Source(folder, results, list(read_rows(folder, results)), extras)


def read_rows(folder: Path, results: Results) -> Iterator[Row]:
    """The lines of images.csv. Raises CRDiffError when it is absent or damaged."""
    path = folder / "images.csv"
    names = [metric["name"] for metric in results["metrics"] if metric["per_image"]]
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                scores = {name: float(line[name]) for name in names if line.get(name)}
                yield Row(
                    line["cell"],
                    line["prompt_name"],
                    line["caption"],
                    line["seed"],
                    _inside(line["file"]),
                    {name: value for name, value in scores.items() if math.isfinite(value)},
                )
    except FileNotFoundError as error:
        raise CRDiffError(
            f"{folder} has no images.csv: run the same command again, which draws nothing anew"
        ) from error
    except (csv.Error, KeyError, ValueError, TypeError) as error:
        raise CRDiffError(
            f"{path} is damaged: run the same command again, which writes it anew"
        ) from error


def _inside(file: str) -> str:
    """The path of an image as it is stored: below the folder. Raises ValueError for others."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file} lies outside the run's folder")
    return file


def read_extras(folder: Path) -> dict[str, list[Extra]]:
    """Other commands' files, by their names, in the order of their folders."""
    found: dict[str, list[Extra]] = {}
    for name in EXTRAS:
        paths = [p for depth in ("", "*/", "*/*/") for p in sorted(folder.glob(depth + name))]
        found[name] = [
            Extra(path.parent.relative_to(folder).as_posix(), _read_json(path)) for path in paths
        ]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CRDiffError(f"{path} cannot be read ({error}): write it anew or move it away") from (
            error
        )
    if not isinstance(value, dict):
        raise CRDiffError(f"{path} is not what a crdiff command writes: move it away")
    return value
