"""The demo: what CR-Diff does to the embedded model, with intervals, and with a verdict from them.

Every score here is the embedded model's own (a small reward, a programmatic caption check, a small
feature network) and is labelled so: none is ImageReward, CLIP score or FID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crdiff_ext.errors import CRDiffError
from harness.config import RunConfig, Size
from harness.embedded.check import check
from harness.embedded.reward import FEATURES, REFERENCE_IMAGES, EmbeddedReward, reference_images
from harness.embedded.scenes import SceneSpec, caption, prompt_set
from harness.embedded.weights import embedded_model_dir
from harness.experiment import Experiment
from harness.frechet import IMAGES_PER_FEATURE, Frechet
from harness.locate import read_json
from harness.plan import Cell
from harness.prompts import PromptSet
from harness.results import Metric, Scores, build_results, utc_now
from harness.stats import Interval, by_prompt, paired_interval
from harness.verdict import judge

METHODS = ("dense", "pruned", "crdiff", "native-resize")
K = 1.5
BATCH = 16
FALLBACK_SIZES = ("128x128", "96x128", "64x64", "192x192")
FEWEST_CAPTIONS = 8

METRICS = (
    Metric(
        "embedded_reward",
        "embedded reward",
        "A small network, trained on the same kind of scenes, that reads image and caption "
        "together and says how well they match; standardised on real scenes.",
        True,
    ),
    Metric(
        "caption_check_all",
        "caption check: all facts",
        "Share of images that show every fact of their caption (objects, colours, count, position, "
        "background), found by a program that segments the image.",
        True,
    ),
    Metric(
        "caption_check_facts",
        "caption check: facts",
        "Mean share of a caption's facts that its image shows, by the same program.",
        True,
    ),
    Metric(
        "embedded_frechet",
        "embedded Fréchet distance",
        f"Distance of the images' features to those of {REFERENCE_IMAGES} real renders of the same "
        "captions at the same size, by a small feature network. At few images it is biased "
        "upwards, and not equally for all methods; its difference to dense is corrected for that, "
        "so it is not just the difference of the two values. The interval needs at least "
        f"{IMAGES_PER_FEATURE * FEATURES} images.",
        False,
        per_image=False,
        decimals=1,
    ),
)

NOTES = (
    "This model is small, trained by us on a CPU, and not Stable Diffusion. It shows that the "
    "harness works and what happens here; it says nothing about SD1.5, SD2.1 or SDXL, whose "
    "results in the paper could not be run here.",
    "Seconds an image are wall time in batches on this machine, whatever else it was doing.",
)


def demo_config(out: Path, captions: int, seed: int, sizes: Sequence[str] = ()) -> RunConfig:
    """The demo as a run. Sizes: those given, else the model's crdiff.json. Raises CRDiffError."""
    specs_at_hand = len(_all_captions())
    if not FEWEST_CAPTIONS <= captions <= specs_at_hand:
        raise CRDiffError(
            f"--captions is {captions}: it must be between {FEWEST_CAPTIONS} and {specs_at_hand}"
        )
    folder = embedded_model_dir()
    own = read_json(folder / "crdiff.json")
    return RunConfig(
        model=str(folder),
        sizes=tuple(Size.parse(text) for text in sizes or own.get("sizes") or FALLBACK_SIZES),
        out=out,
        methods=METHODS,
        ratios="stored",  # act at the native size too, as the paper's Table 2 does
        k=K,
        seed=seed,
        batch=own.get("batch", BATCH),
    )


def demo_prompts(captions: int, seed: int) -> tuple[list[SceneSpec], PromptSet]:
    """Held-out captions that neither training nor the ratio search has seen."""
    specs = prompt_set("eval", captions, seed)
    texts = [caption(spec) for spec in specs]
    return specs, PromptSet.of_texts(texts, f"embedded grammar, held-out captions, seed {seed}")


def _all_captions() -> list[SceneSpec]:
    from harness.embedded.scenes import all_specs, split_of

    return [spec for spec in all_specs() if split_of(spec) == "eval"]


def assessor(
    specs: Sequence[SceneSpec],
) -> Callable[[Experiment], tuple[Scores, dict[str, Any]]]:
    """Scores and verdict of the demo's images, as ``conduct`` wants them."""

    def assess(experiment: Experiment) -> tuple[Scores, dict[str, Any]]:
        scores = score_cells(experiment, specs)
        results = build_results(experiment, "demo", "running", utc_now(), scores)
        return scores, judge(results)

    return assess


def score_cells(experiment: Experiment, specs: Sequence[SceneSpec]) -> Scores:
    """Every metric of every cell, and its paired difference to dense at the same size.

    A method that draws nothing of its own at a size shares its scores with the cell that it copies.
    """
    seeds = len(experiment.sampling.seeds)
    specs = list(specs) * seeds
    reward = EmbeddedReward.load()
    scores = Scores(METRICS)
    features: dict[str, np.ndarray] = {}
    references: dict[Size, Frechet] = {}
    for cell in experiment.cells:
        twin = experiment.plan.same_as(cell)
        if twin is None:
            scores.per_image[cell.id], features[cell.id] = _score(experiment, cell, specs, reward)
        else:
            scores.per_image[cell.id], features[cell.id] = scores.per_image[twin], features[twin]
        if cell.size not in references:
            real = reference_images(specs, *cell.size, n=REFERENCE_IMAGES)
            references[cell.size] = Frechet(reward.features(real))
    for cell in experiment.cells:
        dense = f"{cell.size}/dense"
        compared = dense if dense != cell.id and dense in scores.per_image else None
        entry = {
            metric.name: _summary(metric, cell.id, compared, scores, seeds)
            for metric in METRICS
            if metric.per_image
        }
        other = features[compared] if compared else None
        entry["embedded_frechet"] = _frechet(references[cell.size], features[cell.id], other)
        scores.cells[cell.id] = entry
    return scores


def _score(
    experiment: Experiment, cell: Cell, specs: Sequence[SceneSpec], reward: EmbeddedReward
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({metric: [n]}, features [n, d]) of a cell's stored images."""
    images = [experiment.store.load(item.key) for item in experiment.plan.items(cell)]
    checks = [check(image, spec) for image, spec in zip(images, specs, strict=True)]
    values = {
        "embedded_reward": np.asarray(reward.score(images, [caption(spec) for spec in specs])),
        "caption_check_all": np.array([float(result.all_right) for result in checks]),
        "caption_check_facts": np.array([result.facts for result in checks]),
    }
    return values, reward.features(images)


def _summary(
    metric: Metric, cell: str, dense: str | None, scores: Scores, seeds: int
) -> dict[str, Any]:
    values = scores.per_image[cell][metric.name]
    difference = None
    if dense is not None:
        theirs = scores.per_image[dense][metric.name]
        difference = paired_interval(by_prompt(values, seeds), by_prompt(theirs, seeds))
    return _entry(float(values.mean()), len(values), difference)


def _frechet(reference: Frechet, features: np.ndarray, dense: np.ndarray | None) -> dict[str, Any]:
    """The distance; its difference to dense where there are enough images for an interval."""
    enough = len(features) >= reference.fewest
    difference = reference.difference(features, dense) if dense is not None and enough else None
    return _entry(reference.distance(features), len(features), difference)


def _entry(value: float, n: int, difference: Interval | None) -> dict[str, Any]:
    return {"value": value, "n": n, "vs_dense": difference.as_dict() if difference else None}
