"""Draw and score the cells that tables need, one model after the other, into resumable stores."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crdiff_ext.errors import CRDiffError
from crdiff_ext.presets import Preset
from harness.config import RunConfig, Size
from harness.embedded.scenes import SceneSpec
from harness.environment import all_cores
from harness.experiment import Experiment, open_experiment
from harness.main_job import conduct
from harness.plan import Plan
from harness.prompts import PromptSet
from harness.report.page import write_run_report
from harness.results import Metric, Scores, build_results, utc_now, write_images_csv, write_results
from harness.scorers import ReferenceSource
from harness.tables.book import Books, ModelBook
from harness.tables.cells import make_cells
from harness.tables.passes import pass_seconds
from harness.tables.quantities import Where
from harness.tables.scoring import merged, score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What ``crdiff tables`` was asked for, beside the tables themselves.

    ``models``: label -> where it is. ``settings``: of every run but its model, sizes and folder.
    ``specs``: the embedded model's captions taken apart, for its stand-in scores. ``timed``:
    whether a table asks how long pruning passes take.
    """

    out: Path
    models: Mapping[str, str]
    sizes: tuple[Size, ...]
    settings: Mapping[str, object]
    prompts: PromptSet
    presets: Sequence[Preset]
    scorers: tuple[str, ...]
    weights: Path
    protocol: str
    reference: ReferenceSource | None
    specs: tuple[SceneSpec, ...] = ()
    timed: bool = False


def wanted_cells(quantities: Iterable[object], sizes: tuple[Size, ...]) -> dict[str, list[Where]]:
    """The cells that quantities need, by model; ``sizes`` leaves out all others (none: all)."""
    cells: dict[str, list[Where]] = {}
    for quantity in quantities:
        for where in quantity.cells:  # type: ignore[attr-defined]
            if not sizes or where.size in sizes:
                cells.setdefault(where.model, []).append(where)
    return {model: list(dict.fromkeys(found)) for model, found in cells.items()}


def open_model(job: Job, model: str, wanted: Sequence[Where]) -> ModelBook:
    """A model with the plan of its cells; nothing is drawn yet. Raises CRDiffError."""
    config = RunConfig(
        model=job.models[model],
        sizes=tuple(dict.fromkeys(where.size for where in wanted)),
        out=job.out / model.lower(),
        methods=("dense",),
        **job.settings,  # type: ignore[arg-type]
    )
    experiment = open_experiment(config, job.prompts, job.presets)
    cells, absent = make_cells(wanted, config, experiment.loaded, job.presets)
    experiment = replace(
        experiment,
        config=replace(config, ratios="stored"),
        plan=Plan(list(cells.values()), job.prompts.prompts, experiment.sampling),
    )
    return ModelBook(experiment, cells, absent)


def run_model(job: Job, model: str, wanted: Sequence[Where]) -> ModelBook:
    """Draw what is missing, score it; write the model's results.json, images.csv, report.html."""
    book = open_model(job, model, wanted)
    experiment = book.experiment
    log.info("%s: %d cells", model, len(experiment.cells))
    conduct(experiment, "tables")
    with all_cores():
        book.scores, book.unscored = _scores(job, experiment)
    results = build_results(experiment, "tables", "complete", utc_now(), book.scores)
    write_images_csv(experiment, book.scores)
    write_results(experiment.store.folder, results)
    write_run_report(experiment.store.folder, results)
    timed = {cell.id: pass_seconds(experiment, cell) for cell in experiment.cells if job.timed}
    book.seconds = {name: value for name, value in timed.items() if value is not None}
    _release(experiment)
    return book


def _release(experiment: Experiment) -> None:
    """Let go of the model, so that two never take memory together; what was drawn is stored."""
    import torch

    experiment.loaded = replace(experiment.loaded, pipe=None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _scores(job: Job, experiment: Experiment) -> tuple[Scores, dict[str, str]]:
    """By the scorers that can be used; for the embedded model its stand-ins beside them."""
    scores, unscored = score(experiment, job.scorers, job.weights, job.protocol, job.reference)
    if not job.specs:
        return scores, unscored
    from harness.demo import score_cells

    return merged(scores, score_cells(experiment, job.specs)), unscored


def run_models(job: Job, wanted: Mapping[str, list[Where]], metrics: Mapping[str, Metric]) -> Books:
    """Every model that was asked for; one that can't be had is a reason in the tables.

    Raises CRDiffError when none could be run.
    """
    books = Books(metrics)
    for model, cells in wanted.items():
        if model not in job.models:
            continue
        try:
            books.models[model] = run_model(job, model, cells)
        except CRDiffError as error:
            if len(job.models) == 1:
                raise
            log.warning("%s was not run: %s", model, error)
            books.reasons[model] = f"not run: {error}"
    return books
