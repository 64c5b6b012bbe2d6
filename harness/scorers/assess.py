"""Scores of a finished run: scores.json (``scores.schema.json``) and scores.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crdiff_ext import __version__
from harness.environment import describe
from harness.results import utc_now
from harness.scorers.base import PROTOCOLS, ImageScorer, Scorer, SetScorer
from harness.scorers.cache import Advance, ScoreCache
from harness.scorers.derived import best_share, improved
from harness.scorers.reference import Reference, ReferenceSource
from harness.scorers.reference_features import reference_for
from harness.scorers.run_folder import Pair, RunCell
from harness.stats import Array, Interval, mean_interval, paired_interval
from harness.store import write_atomically

SCHEMA = "crdiff-scores"
SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("scores.schema.json")

Entry = dict[str, Any]
Progress = Callable[[str, int], Advance]
"""(what is scored, how many images) -> a function that is told how many more are done."""


@dataclass
class Assessment:
    """What the cells of a run scored."""

    scorers: list[Scorer]
    not_run: dict[str, str] = field(default_factory=dict)
    """Scorer -> the sentence that says what it needs."""
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    own_references: dict[str, str] = field(default_factory=dict)
    """Scorer -> the reference that it made itself, in words."""
    entries: dict[str, dict[str, Entry]] = field(default_factory=dict)
    """Cell id -> scorer -> value, n, vs_dense and, of per-image scorers, the shares of prompts."""
    per_image: dict[str, dict[str, Array]] = field(default_factory=dict)
    """Cell id -> scorer -> [n] in the order of the cell's images."""


def assess(
    cells: Sequence[RunCell],
    scorers: Sequence[Scorer],
    cache: ScoreCache,
    reference: ReferenceSource | None = None,
    progress: Progress = lambda _what, _total: lambda _done: None,
) -> Assessment:
    """Score every cell with every scorer that can be used; the others are ``not_run``.

    Raises CRDiffError when a file that is there turns out to be damaged.
    """
    found = Assessment(list(scorers))
    for cell in cells:
        found.entries[cell.id], found.per_image[cell.id] = {}, {}
    captions = [picture.caption for cell in cells for picture in cell.pictures]
    for scorer in scorers:
        sentence = why_not(scorer, reference, captions)
        if sentence is not None:
            found.not_run[scorer.name] = sentence
            continue
        try:
            found.provenance[scorer.name] = scorer.provenance()
            if isinstance(scorer, ImageScorer):
                _score_images(scorer, cells, cache, found, progress)
            elif isinstance(scorer, SetScorer):
                _score_sets(scorer, cells, cache, reference, found, progress)
        finally:
            scorer.close()
    return found


def why_not(
    scorer: Scorer, reference: ReferenceSource | None, captions: Sequence[str] = ()
) -> str | None:
    """The sentence that says why a scorer can't be used here, or None."""
    if sentence := scorer.missing():
        return sentence
    if not isinstance(scorer, SetScorer):
        return None
    if reference is not None:
        return scorer.unsuited(reference)
    lacking = scorer.without_reference(captions)
    return f"{scorer.name} {lacking}" if lacking else None


def _score_images(
    scorer: ImageScorer,
    cells: Sequence[RunCell],
    cache: ScoreCache,
    found: Assessment,
    progress: Progress,
) -> None:
    advance = progress(scorer.name, sum(len(cell.pictures) for cell in cells))
    values = {cell.id: cache.score(scorer, cell.pictures, advance) for cell in cells}
    better = scorer.higher_is_better
    for cell in cells:
        own, dense = values[cell.id], values.get(cell.dense_id)
        peers = {other.id: values[other.id] for other in cells if other.size == cell.size}
        compared = None if dense is None or cell.id == cell.dense_id else dense
        found.per_image[cell.id][scorer.name] = own
        found.entries[cell.id][scorer.name] = {
            "value": float(own.mean()),
            "n": len(own),
            "vs_dense": _paired(cell, own, compared),
            "improved": _improved(cell, own, compared, better),
            "best_share": _best_share(cell, cells, peers, better),
        }


def _paired(cell: RunCell, own: Array, dense: Array | None) -> dict[str, float] | None:
    """The interval over prompts; several seeds of a prompt count as one, by their mean."""
    if dense is None:
        return None
    ours, theirs = (by_prompt(cell.pairs, values) for values in (own, dense))
    return _plain(paired_interval(ours, theirs) if len(ours) > 1 else None)


def _improved(
    cell: RunCell, own: Array, dense: Array | None, higher_is_better: bool
) -> dict[str, Any] | None:
    """The share of images that score better than dense's, with its interval over prompts."""
    if dense is None:
        return None
    flags = improved(own, dense, higher_is_better)
    prompts = by_prompt(cell.pairs, flags)
    interval = mean_interval(prompts) if len(prompts) > 1 else None
    return {"share": float(flags.mean()), "n": len(flags), "interval": _plain(interval)}


def _best_share(
    cell: RunCell, cells: Sequence[RunCell], peers: Mapping[str, Array], higher_is_better: bool
) -> float | None:
    """Per cent of images of this size on which the cell is the best; None if they don't pair."""
    pairs = {tuple(other.pairs) for other in cells if other.id in peers}
    if len(peers) < 2 or len(pairs) != 1:
        return None
    return best_share(peers, higher_is_better)[cell.id]


def _score_sets(
    scorer: SetScorer,
    cells: Sequence[RunCell],
    cache: ScoreCache,
    source: ReferenceSource | None,
    found: Assessment,
    progress: Progress,
) -> None:
    total = sum(len(cell.pictures) for cell in cells) + (len(source.files) if source else 0)
    advance = progress(scorer.name, total)
    references = _references(scorer, cells, cache, source, found, advance)
    features = {cell.id: cache.features(scorer, cell.pictures, advance) for cell in cells}
    for cell in cells:
        own, dense = features[cell.id], features.get(cell.dense_id)
        compared = dense is not None and cell.id != cell.dense_id
        reference = references[cell.size]
        found.entries[cell.id][scorer.name] = {
            "value": scorer.distance(own, reference) if len(own) > 1 else None,
            "n": len(own),
            "vs_dense": _difference(scorer, cell, own, dense, reference) if compared else None,
            "improved": None,
            "best_share": None,
        }


def _references(
    scorer: SetScorer,
    cells: Sequence[RunCell],
    cache: ScoreCache,
    source: ReferenceSource | None,
    found: Assessment,
    advance: Advance,
) -> dict[str, Reference]:
    """By size: the one that was given, or what the scorer makes for the captions of that size."""
    if source is not None:
        given = reference_for(scorer, source, cache, advance)
        return {cell.size: given for cell in cells}
    made: dict[str, Reference] = {}
    for cell in cells:
        if cell.size not in made:
            captions = [picture.caption for picture in cell.pictures]
            size = cell.entry["height"], cell.entry["width"]
            made[cell.size], found.own_references[scorer.name] = scorer.own_reference(
                captions, *size
            )
    return made


def _difference(
    scorer: SetScorer, cell: RunCell, own: Array, dense: Array | None, reference: Reference
) -> dict[str, float] | None:
    """The interval over prompts: all images of a prompt count together."""
    assert dense is not None
    if np.array_equal(own, dense):
        return _plain(Interval(0.0, 0.0, 0.0, 0.95, len(own)))
    prompts = [prompt for prompt, _ in cell.pairs]
    repeated = len(set(prompts)) < len(prompts)
    return _plain(scorer.difference(own, dense, reference, prompts if repeated else None))


def by_prompt(pairs: Sequence[Pair], values: Array) -> Array:
    """The mean over seeds of each prompt's values, in the order of first occurrence."""
    places: dict[str, list[int]] = {}
    for place, (prompt, _) in enumerate(pairs):
        places.setdefault(prompt, []).append(place)
    return np.array([values[own].mean() for own in places.values()], dtype=np.float64)


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return interval.as_dict() if interval is not None else None


def scores_json(
    results: Mapping[str, Any],
    cells: Sequence[RunCell],
    found: Assessment,
    reference: ReferenceSource | None,
    device: str,
) -> dict[str, Any]:
    """The whole of scores.json. ``results``: the run's results.json."""
    protocol = found.scorers[0].protocol
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "written": utc_now(),
        "crdiff_version": __version__,
        "environment": describe(device),
        "protocol": {"name": protocol, "what": PROTOCOLS[protocol]},
        "reference": reference.describe() if reference else None,
        "model": results["model"],
        "prompts": results["prompts"],
        "metrics": [_metric(scorer, found) for scorer in found.scorers],
        "cells": [
            {
                **{name: cell.entry[name] for name in ("id", "height", "width", "method", "label")},
                "same_as": cell.entry["same_as"],
                "forced": cell.entry.get("forced", False),
                "drawing": cell.entry.get("drawing"),
                "images": len(cell.pictures),
                "images_sha256": cell.entry["images_sha256"],
                "metrics": found.entries[cell.id],
            }
            for cell in cells
        ],
    }


def _metric(scorer: Scorer, found: Assessment) -> dict[str, Any]:
    sentence = found.not_run.get(scorer.name)
    return {
        "name": scorer.name,
        "label": scorer.label,
        "what": scorer.what,
        "higher_is_better": scorer.higher_is_better,
        "per_image": scorer.per_image,
        "decimals": scorer.decimals,
        "status": "not run" if sentence else "done",
        "sentence": sentence,
        "provenance": found.provenance.get(scorer.name),
        "own_reference": found.own_references.get(scorer.name),
    }


def write_scores(
    folder: Path, scores: Mapping[str, Any], cells: Sequence[RunCell], found: Assessment
) -> None:
    """Write scores.json and scores.csv (a line for each image), each whole or not at all."""
    text = json.dumps(scores, indent=2, ensure_ascii=False, allow_nan=False)
    names = [scorer.name for scorer in found.scorers if scorer.per_image]
    names = [name for name in names if name not in found.not_run]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["cell", "prompt_name", "seed", "caption", "file", *names])
    for cell in cells:
        values = found.per_image[cell.id]
        rows = zip(cell.pairs, cell.pictures, cell.files, strict=True)
        for i, ((prompt, seed), picture, file) in enumerate(rows):
            scored = (f"{values[name][i]:.9g}" for name in names)
            writer.writerow([cell.id, prompt, seed, picture.caption, file, *scored])
    write_atomically(folder / "scores.csv", buffer.getvalue().encode())
    write_atomically(folder / "scores.json", (text + "\n").encode())
