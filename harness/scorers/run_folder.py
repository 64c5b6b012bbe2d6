"""The stored images of a finished run, cell by cell, from results.json and images.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.locate import read_json
from harness.results import SCHEMA, SCHEMA_VERSION
from harness.scorers.cache import Picture
from harness.store import pixels_sha256

Pair = tuple[str, str]


@dataclass
class RunCell:
    """One cell of a run: its entry in results.json, and its images in the order of the prompts."""

    entry: Mapping[str, Any]
    pictures: list[Picture] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    """(prompt name, seed) of each image: what is compared with what."""
    files: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Such as ``96x128/crdiff``."""
        return str(self.entry["id"])

    @property
    def size(self) -> str:
        """Such as ``96x128``."""
        return f"{self.entry['height']}x{self.entry['width']}"

    @property
    def dense_id(self) -> str:
        """The id of the dense cell of the same size."""
        return f"{self.size}/dense"


def read_run(folder: Path) -> tuple[dict[str, Any], list[RunCell]]:
    """results.json and the cells of a complete run, every image of every cell there.

    Raises CRDiffError when the run is not finished, or an image or a row is missing: nothing is
    dropped silently.
    """
    if not (folder / "results.json").is_file():
        raise CRDiffError(f"{folder} has no results.json: give the --out folder of a crdiff run")
    results = read_json(folder / "results.json")
    if results.get("schema") != SCHEMA or results.get("schema_version") != SCHEMA_VERSION:
        raise CRDiffError(f"{folder / 'results.json'} is not a run's of this version of CR-Diff")
    if results["status"] != "complete":
        raise CRDiffError(
            f"the run in {folder} is not finished (it says {results['status']}): run the same "
            "command again, then score it"
        )
    cells = {entry["id"]: RunCell(entry) for entry in results["cells"]}
    for row in _rows(folder / "images.csv"):
        if row["cell"] in cells:
            _add(cells[row["cell"]], row, folder)
    for cell in cells.values():
        _check(cell, cells)
    return results, list(cells.values())


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise CRDiffError(f"{path} does not exist: run the same crdiff run again") from None


def _add(cell: RunCell, row: Mapping[str, str], folder: Path) -> None:
    path = folder / row["file"]
    if not path.is_file():
        raise CRDiffError(
            f"the stored image {path} is missing: run the same crdiff run again, then score it"
        )
    load = partial(load_checked, path, row["pixels_sha256"])
    cell.pictures.append(Picture(row["pixels_sha256"], load, row["caption"]))
    cell.pairs.append((row["prompt_name"], row["seed"]))
    cell.files.append(row["file"])


def load_checked(path: Path, digest: str) -> Image.Image:
    """A stored image whose pixels are those that the run recorded. Raises CRDiffError."""
    try:
        with Image.open(path) as image:
            image.load()
            same = pixels_sha256(image) == digest
            shown = image.convert("RGB")
    except (OSError, SyntaxError):
        same = False
    if not same:
        raise CRDiffError(
            f"the stored image {path} is damaged or was changed: delete it and run the same "
            "crdiff run again"
        )
    return shown


def _check(cell: RunCell, cells: Mapping[str, RunCell]) -> None:
    """All images of the cell are there, and the same prompts and seeds as dense's."""
    if len(cell.pairs) != cell.entry["images"] or cell.entry["status"] != "complete":
        raise CRDiffError(
            f"{cell.id} has {len(cell.pairs)} images in images.csv and {cell.entry['images']} in "
            "results.json: run the same crdiff run again, then score it"
        )
    if len(set(cell.pairs)) != len(cell.pairs):
        raise CRDiffError(
            f"{cell.id} has a prompt twice with the same seed: its rows can't be paired"
        )
    dense = cells.get(cell.dense_id)
    if dense is not None and dense.pairs != cell.pairs:
        raise CRDiffError(
            f"{cell.id} has other prompts or seeds than {dense.id}: they can't be compared"
        )
