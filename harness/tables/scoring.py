"""Scores of one model's stored images: by the scorers whose files are there, or by stand-ins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.experiment import Experiment
from harness.plan import Cell
from harness.results import Scores
from harness.scorers import ImageScorer, Scorer, SetScorer, get_scorers
from harness.scorers.reference import Reference, ReferenceSource
from harness.scorers.registry import SCORERS
from harness.stats import Array, by_prompt, complete, paired_interval

CHUNK = 16
"""Stored images that are in memory together."""

Unscored = dict[str, str]


def usable(
    names: Sequence[str], weights: Path, device: str, protocol: str, source: ReferenceSource | None
) -> tuple[list[Scorer], Unscored]:
    """The scorers that can be run, and for the others a sentence that says what is missing."""
    known = [name for name in names if name.partition(":")[0] in SCORERS]
    unscored = {name: f"there is no scorer named {name}" for name in names if name not in known}
    ready = []
    for name, scorer in zip(known, get_scorers(known, weights, device, protocol), strict=True):
        reason = scorer.missing()
        if isinstance(scorer, SetScorer) and reason is None:
            reason = "it needs --reference" if source is None else scorer.unsuited(source)
        if reason is None:
            ready.append(scorer)
        else:
            unscored[name] = reason
    return ready, unscored


def score(
    experiment: Experiment, scorers: Sequence[Scorer], source: ReferenceSource | None
) -> Scores:
    """Every cell by every scorer, with the paired difference to dense at the same size.

    Raises CRDiffError when an image is missing or a score is not a number.
    """
    scores = Scores(tuple(scorer.metric() for scorer in scorers))
    for cell in experiment.cells:
        scores.per_image[cell.id] = {}
        scores.cells[cell.id] = {}
    for scorer in scorers:
        if isinstance(scorer, ImageScorer):
            _score_images(experiment, scorer, scores)
        elif isinstance(scorer, SetScorer):
            assert source is not None, "usable() leaves it out without a reference"
            _score_sets(experiment, scorer, source, scores)
        scorer.close()
    return scores


def _score_images(experiment: Experiment, scorer: ImageScorer, scores: Scores) -> None:
    count = len(experiment.prompts.prompts) * len(experiment.sampling.seeds)
    for cell in experiment.cells:
        twin = experiment.plan.same_as(cell)
        if twin is not None:
            values = scores.per_image[twin][scorer.name]
        else:
            parts = [scorer.score(*chunk) for chunk in _chunks(experiment, cell)]
            joined = np.concatenate(parts)
            values = complete(joined, count, f"{scorer.name} of {cell.id}")
        scores.per_image[cell.id][scorer.name] = values
    for cell in experiment.cells:
        values = scores.per_image[cell.id][scorer.name]
        dense = scores.per_image.get(f"{cell.size}/dense", {}).get(scorer.name)
        compared = None if cell.method.name == "dense" or dense is None else dense
        seeds = len(experiment.sampling.seeds)
        pair = None if compared is None else (by_prompt(values, seeds), by_prompt(compared, seeds))
        difference = paired_interval(*pair).as_dict() if pair and len(pair[0]) > 1 else None
        scores.cells[cell.id][scorer.name] = _entry(float(values.mean()), len(values), difference)


def _score_sets(
    experiment: Experiment, scorer: SetScorer, source: ReferenceSource, scores: Scores
) -> None:
    reference = source.statistics or _reference(scorer, source)
    features: dict[str, Array] = {}
    for cell in experiment.cells:
        twin = experiment.plan.same_as(cell)
        features[cell.id] = (
            features[twin]
            if twin is not None
            else np.concatenate([scorer.features(chunk[0]) for chunk in _chunks(experiment, cell)])
        )
    for cell in experiment.cells:
        own, dense = features[cell.id], features.get(f"{cell.size}/dense")
        difference = None
        if dense is not None and cell.method.name != "dense":
            found = scorer.difference(own, dense, reference)
            difference = None if found is None else found.as_dict()
        value = scorer.distance(own, reference)
        scores.cells[cell.id][scorer.name] = _entry(value, len(own), difference)


def _reference(scorer: SetScorer, source: ReferenceSource) -> Reference:
    parts = []
    for start in range(0, len(source.files), CHUNK):
        images = [source.load(file) for file in source.files[start : start + CHUNK]]
        parts.append(scorer.features(images))
    return Reference.of_features(np.concatenate(parts))


def _chunks(experiment: Experiment, cell: Cell) -> Iterator[tuple[list[Image.Image], list[str]]]:
    items = experiment.plan.items(cell)
    for start in range(0, len(items), CHUNK):
        group = items[start : start + CHUNK]
        yield (
            [experiment.store.load(item.key) for item in group],
            [item.prompt.text for item in group],
        )


def _entry(value: float, n: int, difference: dict[str, float] | None) -> dict[str, Any]:
    return {"value": value, "n": n, "vs_dense": difference}


def merged(first: Scores, second: Scores) -> Scores:
    """Both sets of metrics."""
    return Scores(
        (*first.metrics, *second.metrics),
        {cell: {**values, **second.per_image[cell]} for cell, values in first.per_image.items()},
        {cell: {**values, **second.cells[cell]} for cell, values in first.cells.items()},
    )
