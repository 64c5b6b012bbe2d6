"""Scores of one model's stored images: by the scorers whose files are there, and by stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.commands.score import Bars
from harness.experiment import Experiment
from harness.results import Scores
from harness.scorers import ReferenceSource, get_scorers
from harness.scorers.assess import assess
from harness.scorers.cache import ScoreCache
from harness.scorers.run_folder import read_run

Unscored = dict[str, str]


def score(
    experiment: Experiment,
    names: Sequence[str],
    weights: Path,
    protocol: str,
    reference: ReferenceSource | None,
) -> tuple[Scores, Unscored]:
    """Every cell by every scorer that can be used, and why the others can't.

    The folder's results.json and images.csv have to be written: they say which images there are.
    Values are cached beside the images. Raises CRDiffError when an image is missing or damaged.
    """
    folder = experiment.store.folder
    scorers = get_scorers(names, weights, experiment.sampling.device, protocol)
    cells = read_run(folder)[1]
    bars = Bars()
    try:
        found = assess(cells, scorers, ScoreCache(folder), reference, bars.start)
    finally:
        bars.close()
    done = [scorer.metric() for scorer in scorers if scorer.name not in found.not_run]
    return Scores(tuple(done), found.per_image, found.entries), dict(found.not_run)


def merged(first: Scores, second: Scores) -> Scores:
    """Both sets of metrics, of the same cells."""
    return Scores(
        (*first.metrics, *second.metrics),
        {cell: {**values, **second.per_image[cell]} for cell, values in first.per_image.items()},
        {cell: {**values, **second.cells[cell]} for cell, values in first.cells.items()},
    )
