"""Conduct an experiment: record its status, draw, assess, write results, table and report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.presets import Preset
from harness.config import RunConfig
from harness.criteria.cost import calibration_passes, calibrations
from harness.environment import all_cores
from harness.execute import Tally, missing_batches
from harness.experiment import Experiment, open_experiment
from harness.locate import read_json
from harness.plan import Batch
from harness.probe import estimate, estimate_line, passes
from harness.prompts import PromptSet
from harness.report.page import write_run_report
from harness.report.text import cell_table, decision_lines
from harness.results import Scores, build_results, utc_now, write_images_csv, write_results

Assessment = tuple[Scores, Mapping[str, Any] | None]


def conduct(
    experiment: Experiment,
    kind: str,
    assess: Callable[[Experiment], Assessment] | None = None,
) -> tuple[dict[str, Any], Scores, Tally]:
    """Draw what is missing, assess it, write every output file.

    results.json says "running" from the start; "interrupted" when anything ends the run that can
    be caught (after a kill it still says "running"). The same command then goes on.
    """
    folder = experiment.store.folder
    started = utc_now()
    # A finished run's file is good until its successor is: nothing is lost if that is interrupted.
    fresh = bool(missing_batches(experiment.plan, experiment.store)) or not _is_complete(folder)
    if fresh:
        write_results(folder, build_results(experiment, kind, "running", started))
    try:
        with all_cores():
            tally = experiment.draw()
            scores, verdict = assess(experiment) if assess else (Scores(), None)
        results = build_results(experiment, kind, "complete", started, scores, verdict)
        write_images_csv(experiment, scores)
        write_run_report(folder, results)
    except BaseException:
        with contextlib.suppress(OSError, CRDiffError):  # a full disk: the first error is told
            if fresh:
                write_results(folder, build_results(experiment, kind, "interrupted", started))
        raise
    write_results(folder, results)
    return results, scores, tally


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds the results.json of a run that came to its end."""
    try:
        return bool(read_json(folder / "results.json").get("status") == "complete")
    except CRDiffError:
        return False


def draw_and_report(
    config: RunConfig, prompts: PromptSet, presets: Sequence[Preset], dry_run: bool = False
) -> int:
    """``crdiff run``. Returns the exit code."""
    experiment = open_experiment(config, prompts, presets)
    for line in decision_lines(experiment):
        print(line)
    if prompts.note:
        print(f"- {prompts.note}")
        experiment.notes.append(prompts.note)
    if dry_run:
        print(dry_run_line(experiment))
        print(probe_line(experiment))
        return 0
    results, _, tally = conduct(experiment, "run")
    print(cell_table(results))
    print(tally_line(tally))
    print(f"Written: {config.out / 'report.html'}, results.json, images.csv")
    return 0


def dry_run_line(experiment: Experiment) -> str:
    """What is missing, counted in images and in UNet passes per image and step."""
    todo = missing_batches(experiment.plan, experiment.store)
    draw = sum(len(batch.items) for batch in todo if not batch.sources)
    scale = sum(len(batch.items) for batch in todo if batch.sources)
    steps = experiment.sampling.steps
    made = sum(
        passes(batch.drawing, steps) * len(batch.items) for batch in todo if not batch.sources
    )
    return (
        f"Dry run: {draw} images to draw ({made} UNet passes at {steps} steps), "
        f"{scale} to scale from them{_calibration_words(experiment, todo)}; nothing was drawn."
    )


def _calibration_words(experiment: Experiment, todo: Sequence[Batch]) -> str:
    """Such as ``, 2 calibrations of criteria (about 640 passes more)``."""
    sampling = experiment.sampling
    found = calibrations(todo)
    if not found:
        return ""
    guided = sampling.guidance > 1
    more = sum(
        calibration_passes(drawing.criterion, sampling.steps, guided)
        for _, drawing in found
        if drawing.criterion
    )
    one = "1 calibration" if len(found) == 1 else f"{len(found)} calibrations"
    return f", {one} of criteria (about {more:.0f} passes more)"


def probe_line(experiment: Experiment) -> str:
    """How long drawing what is missing will take here, by trying."""
    from harness.generate import Painter

    todo = missing_batches(experiment.plan, experiment.store)
    if not any(not batch.sources for batch in todo):
        return "There is nothing to draw."
    pipe = experiment.loaded.pipe
    with all_cores():
        estimated = estimate(todo, experiment.sampling, lambda some: Painter(pipe, some))
    return estimate_line(estimated, experiment.sampling.device)


def tally_line(tally: Tally) -> str:
    """What a run did, for people."""
    if not tally.drawn and not tally.scaled:
        return f"All {tally.stored} images were stored already: nothing was drawn."
    return (
        f"Images: {tally.drawn} drawn, {tally.scaled} scaled, {tally.stored} were stored already."
    )
