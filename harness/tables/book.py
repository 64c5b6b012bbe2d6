"""What was measured, looked up by a table's cells; a gap in it is an error, never left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from harness.experiment import Experiment
from harness.plan import Cell
from harness.results import Metric, Scores
from harness.stats import Array, by_prompt, complete
from harness.tables.cells import Absent, Cells
from harness.tables.quantities import NotRun, Ours, Where


@dataclass
class ModelBook:
    """One model's cells and scores. ``unscored``: metric -> why it has no scores.

    ``seconds``: cell id -> what its pruning pass took, where a table asks for it.
    """

    experiment: Experiment
    cells: Cells
    absent: Absent
    scores: Scores = field(default_factory=Scores)
    unscored: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Books:
    """The models that were run, and why the others were not. ``metrics``: all that is asked for."""

    metrics: Mapping[str, Metric]
    models: dict[str, ModelBook] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def prompts(self, where: Where, metric: str) -> Array:
        """Scores a prompt [n], averaged over its seeds. Raises NotRun, CRDiffError."""
        images = self.images(where, metric)
        return by_prompt(images.ravel(), len(images))

    def images(self, where: Where, metric: str) -> Array:
        """Scores an image [seeds, n]. Raises NotRun; CRDiffError where some are missing."""
        book, cell = self._cell(where, metric)
        experiment = book.experiment
        seeds, n = len(experiment.sampling.seeds), len(experiment.prompts.prompts)
        values = book.scores.per_image.get(cell.id, {}).get(metric, np.empty(0))
        what = f"{metric} of {where.model} {cell.id}"
        return complete(values, seeds * n, what).reshape(seeds, n)

    def of_set(self, where: Where, metric: str) -> Ours:
        """The score of a cell's images as a set. Raises NotRun."""
        book, cell = self._cell(where, metric)
        entry = book.scores.cells[cell.id][metric]
        return Ours(entry["value"], entry["n"])

    def of_set_less_dense(self, where: Where, metric: str) -> Ours:
        """Its difference to dense, where there are enough images for an interval."""
        book, cell = self._cell(where, metric)
        difference = book.scores.cells[cell.id][metric]["vs_dense"]
        if difference is None:
            raise NotRun("no interval: too few images for one")
        n, ends = difference["n"], (difference["low"], difference["high"])
        return Ours(difference["estimate"], n, *ends)

    def is_per_image(self, metric: str) -> bool:
        """Whether the metric scores single images."""
        return self.metrics[metric].per_image

    def rises(self, metric: str) -> bool:
        """Whether higher is better."""
        return self.metrics[metric].higher_is_better

    def seconds(self, where: Where) -> float:
        """Seconds that choosing the weights took. Raises NotRun."""
        book, cell = self._drawn(where)
        if cell.id not in book.seconds:
            raise NotRun("not run: how long this criterion took was not written down")
        return book.seconds[cell.id]

    def ratios(self, where: Where) -> str:
        """Such as ``0.397 / 0.434 / 0.387``; one number where all are equal. Raises NotRun."""
        ratios = self._drawn(where)[1].drawing.ratios
        if ratios is None:
            return "dense"
        values = [f"{value:g}" for value in ratios.as_dict().values()]
        return values[0] if len(set(values)) == 1 else " / ".join(values)

    def _drawn(self, where: Where) -> tuple[ModelBook, Cell]:
        book = self.models.get(where.model)
        if book is None:
            raise NotRun(self.reasons.get(where.model, f"not run: {where.model} was not asked for"))
        if where in book.absent:
            raise NotRun(book.absent[where])
        if where not in book.cells:
            raise NotRun(f"not run: {where.model} at {where.size} was not asked for")
        return book, book.cells[where]

    def _cell(self, where: Where, metric: str) -> tuple[ModelBook, Cell]:
        book, cell = self._drawn(where)
        if metric in book.unscored:
            raise NotRun(f"not run: {book.unscored[metric]}")
        return book, cell
