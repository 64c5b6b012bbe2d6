"""How planning, storing and reporting grow with the number of captions.

The images are noise from a stand-in that takes next to no time, so that what is measured is
everything around a model; ``draw`` draws with the embedded model instead, tiny and in one step.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness.bench.plan_memory import status
from harness.coco import authors_sample
from harness.config import RunConfig, Size
from harness.execute import Draws, execute, missing_batches
from harness.experiment import Experiment, make_cells, open_experiment
from harness.pipelines import LoadedPipeline
from harness.plan import Batch, Plan, Sampling
from harness.prompts import PromptSet, read_prompts
from harness.report.page import write_run_report
from harness.results import Metric, Scores, build_results, utc_now, write_images_csv, write_results
from harness.scorers.run_folder import read_run
from harness.stats import paired_interval
from harness.store import Store

METRIC = Metric("noise", "noise", "Random numbers that stand in for scores.", True)
SIZE = Size(16, 16)
DRAWN_SIZE = Size(32, 32)
BATCH = 20
IMAGES_A_CAPTION = 8
"""COCO's validation set has about eight images for each of the 5 000 that are sampled."""
STAGES = ("sample", "plan", "store", "resume", "score", "report")


@dataclass
class Growth:
    """Seconds and MiB beyond the start of each stage, with the number of captions."""

    captions: int
    images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)


class Noise:
    """A stand-in painter: pixels of the item's seed."""

    def draw(self, batch: Batch) -> tuple[list[Image.Image], float]:
        """Images of noise; 0 seconds."""
        shape = (*batch.size, 3)
        pixels = (
            np.random.default_rng(item.seed).integers(0, 256, shape, dtype=np.uint8)
            for item in batch.items
        )
        return [Image.fromarray(one) for one in pixels], 0.0


def measure(
    counts: Sequence[int], folder: Path, draw: bool = False, prompts: Path | None = None
) -> list[Growth]:
    """Every stage at each number of captions, smallest first. ``folder`` should be empty.

    ``draw``: with the embedded model. ``prompts``: captions from a file instead of made ones.
    """
    base = status("VmRSS")
    return [_measure(count, folder / str(count), draw, prompts, base) for count in sorted(counts)]


def exponent(growths: Sequence[Growth], stage: str) -> float | None:
    """The power of n by which a stage grew between the two largest counts; 1 is linear."""
    if len(growths) < 2:
        return None
    small, large = growths[-2:]
    times = large.seconds[stage] / max(small.seconds[stage], 1e-9)
    return math.log(max(times, 1e-9)) / math.log(large.captions / small.captions)


def _measure(count: int, folder: Path, draw: bool, file: Path | None, base: int) -> Growth:
    growth = Growth(count)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        _forget_peak()
        started = time.perf_counter()
        yield
        growth.seconds[name] = time.perf_counter() - started
        growth.peak_mb[name] = (status("VmHWM") - base) / 2**20

    folder.mkdir(parents=True)
    made = None if file else _captions_file(folder / "captions.json", count)
    with stage("sample"):
        prompts = _prompts(file or made, count)
    experiment, painter = _experiment(prompts, folder, draw)
    with stage("plan"):
        cells, sampling = experiment.cells, experiment.sampling
        experiment.plan = Plan(cells, prompts.prompts, sampling)
        keys = {item.key for batch in experiment.plan for item in batch.items}
    growth.images = len(keys)
    with stage("store"):
        execute(experiment.plan, experiment.store, painter)
    with stage("resume"):
        experiment.store = Store(folder)
        assert not missing_batches(experiment.plan, experiment.store)
    with stage("score"):
        scores = _scores(experiment)
    with stage("report"):
        results = build_results(experiment, "run", "complete", utc_now(), scores)
        write_images_csv(experiment, scores)
        write_results(folder, results)
        write_run_report(folder, results)
        read_run(folder)
    return growth


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _captions_file(path: Path, count: int) -> Path:
    """A captions file in COCO's form with eight images for each that is sampled, five captions."""
    made = random.Random(0)
    rows = [
        {"image_id": image, "id": 5 * image + i, "caption": f"Scene {image}, told for time {i}."}
        for image in range(IMAGES_A_CAPTION * count)
        for i in range(5)
    ]
    made.shuffle(rows)
    path.write_text(json.dumps({"annotations": rows}), encoding="utf-8")
    return path


def _prompts(path: Path | None, count: int) -> PromptSet:
    assert path is not None
    if path.name != "captions.json":
        return read_prompts(path, count)
    chosen = authors_sample(path.read_text(encoding="utf-8"), count)
    return PromptSet.of_texts([row.text for row in chosen], "made captions in COCO's form")


def _experiment(
    prompts: PromptSet, folder: Path, draw: bool
) -> tuple[Experiment, Callable[[], Draws]]:
    """Dense and CR-Diff at one size; with the embedded model, or around it."""
    from harness.embedded.weights import embedded_model_dir

    config = RunConfig(
        model=str(embedded_model_dir()),
        sizes=(DRAWN_SIZE if draw else SIZE,),
        out=folder,
        ratios="0.3",
        steps=1,
        batch=BATCH,
    )
    if draw:
        from harness.generate import Painter

        real = open_experiment(config, prompts, [])
        return real, lambda: Painter(real.loaded.pipe, real.sampling)
    family = FAMILIES["embedded"]
    presets: list[Preset] = [Preset("embedded", *SIZE, Ratios(0.3, 0.3, 0.3), "bench", "none")]
    sampling = Sampling("0" * 64, 1, 1.0, "", "none", "0" * 64, "fp32", "cpu", 0, BATCH)
    cells = make_cells(config, family, presets)
    loaded = LoadedPipeline(None, family, "noise instead of a model", folder, ())
    names = ("steps", "guidance", "scheduler", "batch", "k")
    origins = dict.fromkeys(names, "bench")
    plan = Plan(cells, (), sampling)
    return Experiment(config, loaded, sampling, origins, prompts, plan, Store(folder)), Noise


def _scores(experiment: Experiment) -> Scores:
    """A random score an image, read from its stored pixels; the paired interval over prompts."""
    scores = Scores((METRIC,))
    for cell in experiment.cells:
        images = (experiment.store.load(item.key) for item in experiment.plan.items(cell))
        values = np.array([np.asarray(image).mean() for image in images])
        scores.per_image[cell.id] = {METRIC.name: values}
    dense = scores.per_image[experiment.cells[0].id][METRIC.name]
    for cell in experiment.cells:
        values = scores.per_image[cell.id][METRIC.name]
        difference = paired_interval(values, dense).as_dict()
        entry: dict[str, Any] = {"value": float(values.mean()), "n": len(values)}
        scores.cells[cell.id] = {METRIC.name: {**entry, "vs_dense": difference}}
    return scores
