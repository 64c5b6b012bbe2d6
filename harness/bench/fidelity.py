"""How close each cheaper amplification comes to the exact one, on the embedded model.

Images of every mode and ratio over the same held-out captions, from the same noise, are compared
with the exact mode's. They are kept in a store, so a killed measurement goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.decide import Decision
from crdiff_ext.errors import CRDiffError
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from harness.bench.variants import (
    MODES,
    StepErrors,
    VariantPainter,
    cost_of,
    drawing_of,
    native_resize,
)
from harness.config import Size
from harness.demo import demo_config, demo_prompts
from harness.embedded.reward import REFERENCE_IMAGES, EmbeddedReward, reference_images
from harness.environment import describe
from harness.execute import execute
from harness.experiment import Experiment, open_experiment
from harness.frechet import Frechet
from harness.methods import DENSE, Drawing, Method
from harness.plan import Batch, Cell, Plan
from harness.stats import paired_interval

SCHEMA = "crdiff-fidelity"
VERSION = 1
STEP_CAPTIONS = 16
TRIAL_RATIOS = (0.3, 0.5)
"""Ratios at which the modes on trial are drawn; the others are drawn at all."""


@dataclass(frozen=True)
class FidelityConfig:
    """What is measured. Raises CRDiffError for values that can't be."""

    size: Size
    captions: int = 256
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    modes: tuple[str, ...] = MODES
    k: float = 1.5
    seed: int = 0
    steps: int | None = None
    """Sampling steps; None: those that the model recommends."""

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown:
            raise CRDiffError(f"mode {unknown[0]!r} is not known: use {', '.join(MODES)}")
        if "exact" not in self.modes:
            raise CRDiffError("the modes must include exact, which the others are compared with")
        for ratio in self.ratios:
            if not Ratios(ratio, ratio, ratio).down > 0:
                raise CRDiffError("a ratio of 0 prunes nothing: give ratios above 0")


class Fidelity:
    """The measurement: draws what is missing, then compares."""

    def __init__(self, config: FidelityConfig, out: Path) -> None:
        self.config = config
        self.specs, prompts = demo_prompts(config.captions, config.seed)
        run = demo_config(out, config.captions, config.seed, [str(config.size)])
        run = dataclasses.replace(run, methods=("dense",), ratios="auto", steps=config.steps)
        self.experiment: Experiment = open_experiment(run, prompts)
        native = self.experiment.family.native
        self.cells: dict[tuple[str, float], Cell] = {}
        for mode, ratio, drawing in self._drawings(Size(*native) if native else None):
            name = f"{mode}@{ratio:g}" if ratio else mode
            method = Method(name, name, "", lambda _, d=drawing: d)  # type: ignore[misc]
            decision = Decision(True, drawing.ratios, config.k, None, False, "measured", "given")
            self.cells[mode, ratio] = Cell(config.size, method, decision, drawing)
        self.experiment.plan = Plan(
            list(self.cells.values()), prompts.prompts, self.experiment.sampling
        )

    def _drawings(self, native: Size | None) -> list[tuple[str, float, Drawing]]:
        made = [("dense", 0.0, DENSE)]
        for ratio in self.config.ratios:
            ratios = Ratios(ratio, ratio, ratio)
            for mode in self.config.modes:
                if mode in ("first-half", "last-half", "cond-only") and ratio not in TRIAL_RATIOS:
                    continue
                made.append((mode, ratio, drawing_of(mode, ratios, self.config.k)))
        if native not in (None, self.config.size):
            assert native is not None
            made.append(("native-resize", 0.0, native_resize(native)))
        return made

    def draw(self) -> None:
        """Draw what the store lacks."""
        experiment = self.experiment
        execute(
            experiment.plan,
            experiment.store,
            lambda: VariantPainter(experiment.loaded.pipe, experiment.sampling),
        )

    def measure(self) -> dict[str, Any]:
        """All numbers, as fidelity.json has them. Draws what is missing first."""
        self.draw()
        reward = EmbeddedReward.load()
        reference = Frechet(
            reward.features(reference_images(self.specs, *self.config.size, n=REFERENCE_IMAGES))
        )
        sets = {place: self._set(cell, reward) for place, cell in self.cells.items()}
        rows = []
        for (mode, ratio), images in sets.items():
            exact = sets.get(("exact", ratio))
            rows.append(self._row(mode, ratio, images, exact, sets["dense", 0.0], reference))
        return {
            "schema": SCHEMA,
            "schema_version": VERSION,
            "size": list(self.config.size),
            "captions": self.config.captions,
            "seed": self.config.seed,
            "k": self.config.k,
            "steps": self.experiment.sampling.steps,
            "model_sha256": self.experiment.sampling.model_hash,
            "prompts_sha256": self.experiment.prompts.sha256,
            "environment": describe("cpu"),
            "rows": rows,
            "steps_relative_error": self._step_errors(),
        }

    def _set(self, cell: Cell, reward: EmbeddedReward) -> _Set:
        images = [self.experiment.store.load(item.key) for item in self.experiment.plan.items(cell)]
        texts = [prompt.text for prompt in self.experiment.prompts.prompts]
        pixels = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
        rows = [self.experiment.store.row(item.key) for item in self.experiment.plan.items(cell)]
        seconds = float(np.median([row["seconds"] for row in rows if row]))
        scores = np.asarray(reward.score(images, texts))
        return _Set(pixels, reward.features(images), scores, seconds)

    def _row(
        self,
        mode: str,
        ratio: float,
        images: _Set,
        exact: _Set | None,
        dense: _Set,
        reference: Frechet,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "mode": mode,
            "ratio": ratio or None,
            "passes": None if mode == "native-resize" else cost_of(mode, self.config.k),
            "time_ratio": images.seconds / dense.seconds,
            "n": len(images.reward),
            "reward": float(images.reward.mean()),
            "frechet": reference.distance(images.features),
            "vs_dense": _differences(images, dense, reference) if images is not dense else None,
        }
        if exact is not None and images is not exact:
            psnr = psnrs(images.pixels, exact.pixels)
            row["vs_exact"] = {
                "psnr_median": _finite(np.median(psnr)),
                "psnr_low": _finite(np.quantile(psnr, 0.05)),
                "identical_images": int(np.isinf(psnr).sum()),
                "feature_distance": _distance(images, exact),
                "feature_distance_of_dense": _distance(dense, exact),
                **_differences(images, exact, reference),
            }
            row["vs_exact"]["psnr_median_of_dense"] = _finite(
                np.median(psnrs(dense.pixels, exact.pixels))
            )
        return row

    def _step_errors(self) -> list[dict[str, Any]]:
        """Relative errors along the exact trajectory of the first captions, for each ratio."""
        pipe = self.experiment.loaded.pipe
        painter = VariantPainter(pipe, self.experiment.sampling)
        items = self.experiment.plan.items(self.cells["dense", 0.0])[:STEP_CAPTIONS]
        batch = Batch(self.config.size, DENSE, tuple(items))
        found = []
        for ratio in self.config.ratios:
            plan = make_plan(prunable_parameters(pipe.unet), Ratios(ratio, ratio, ratio))
            errors = StepErrors(pipe.unet, plan, self.config.k)
            with errors.attached():
                painter.draw(batch)
            found.append({"ratio": ratio, "correction": errors.corrections, "modes": errors.errors})
        return found


@dataclass(frozen=True)
class _Set:
    """Images of one cell: pixels uint8 [n, h, w, 3], features [n, d], rewards [n].

    ``seconds`` an image, the median over the batches.
    """

    pixels: np.ndarray
    features: np.ndarray
    reward: np.ndarray
    seconds: float


def psnrs(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PSNR in dB of each pair of 8-bit images [n, h, w, 3] -> [n]; infinite where equal."""
    squares = np.square(images.astype(np.float64) - others.astype(np.float64)).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / squares)


def _differences(images: _Set, other: _Set, reference: Frechet) -> dict[str, Any]:
    """Paired differences (first less second) with 95 % intervals."""
    reward = paired_interval(images.reward, other.reward)
    enough = len(images.features) >= reference.fewest
    same = np.array_equal(images.features, other.features)
    frechet = reference.difference(images.features, other.features) if enough and not same else None
    return {
        "reward": reward.as_dict(),
        "frechet": frechet.as_dict() if frechet else None,
    }


def _distance(images: _Set, other: _Set) -> float:
    """Mean Euclidean distance of paired features."""
    return float(np.linalg.norm(images.features - other.features, axis=1).mean())


def _finite(value: Any) -> float | None:
    """The number, or None for infinity (JSON has none): more than half of the images are equal."""
    return float(value) if np.isfinite(value) else None
