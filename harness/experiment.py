"""A run, resolved: the user's settings, a loaded model, the cells, the plan and the store.

``crdiff run`` and ``crdiff demo`` are both one of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crdiff_ext.decide import Decision
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family
from crdiff_ext.presets import Preset
from harness.choice import choose
from harness.config import AUTHORS_GUIDANCE, AUTHORS_STEPS, NOT_IN_PAPER, RunConfig, Size
from harness.criteria.settings import read_calibration
from harness.denoisers import denoiser, kind_of
from harness.execute import Tally, execute
from harness.methods import Situation, get_methods
from harness.plan import Cell, Plan, Sampling
from harness.prompts import PromptSet
from harness.store import Store, canonical_json
from harness.user_presets import stored_presets

if TYPE_CHECKING:
    from harness.pipelines import LoadedPipeline

DEFAULT_STEP = 8
K_ORIGIN = "the paper's; where stored ratios come with another k, that one is used"

USUAL = {
    "sd3": (28, 7.0),
    "sd35-medium": (40, 4.5),
    "sd35-large": (28, 3.5),
    "flux-dev": (50, 3.5),
    "flux-schnell": (4, 0.0),
}
"""Steps and guidance that the released transformers' model cards give."""
CARDS = "not stated in the paper; the model card's"

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass
class Experiment:
    """Everything that is fixed before the first image is drawn."""

    config: RunConfig
    loaded: LoadedPipeline
    sampling: Sampling
    origins: dict[str, str]
    prompts: PromptSet
    plan: Plan
    store: Store
    notes: list[str] = field(default_factory=list)

    @property
    def family(self) -> Family:
        """The model's family."""
        return self.loaded.family

    @property
    def cells(self) -> list[Cell]:
        """The cells in the order of sizes, then methods."""
        return self.plan.cells

    def draw(self) -> Tally:
        """Draw what is missing."""
        from harness.generate import Painter

        folder = self.store.folder
        return execute(
            self.plan, self.store, lambda: Painter(self.loaded.pipe, self.sampling, folder)
        )


def resolve_sampling(
    config: RunConfig, loaded: LoadedPipeline, model_hash: str, dtype: str, device: str
) -> tuple[Sampling, dict[str, str]]:
    """Fill in what the user left open, and say where each value comes from."""
    origins: dict[str, str] = {}
    own, scheduler = loaded.defaults, loaded.pipe.scheduler

    def choose(name: str, given: Any, fallback: Any, fallback_origin: str) -> Any:
        if given is not None:
            origins[name] = "given"
            return given
        if name in own:
            origins[name] = "recommended by the model's crdiff.json"
            return own[name]
        origins[name] = fallback_origin
        return fallback

    usual = USUAL.get(loaded.family.name)
    steps, guidance = usual or (AUTHORS_STEPS, AUTHORS_GUIDANCE)
    origin = CARDS if usual else NOT_IN_PAPER
    sampling = Sampling(
        model_hash=model_hash,
        steps=int(choose("steps", config.steps, steps, origin)),
        guidance=float(choose("guidance", config.guidance, guidance, origin)),
        negative=config.negative,
        scheduler=type(scheduler).__name__,
        scheduler_sha256=_scheduler_hash(scheduler),
        dtype=dtype,
        device=device,
        seed=config.seed,
        batch=int(choose("batch", config.batch, 1, "default")),
        more_seeds=config.more_seeds,
    )
    given = config.scheduler != "default"
    origins["scheduler"] = "given" if given else f"the model's own ({NOT_IN_PAPER})"
    return sampling, origins


def set_scheduler(pipe: Any, name: str) -> None:
    """Replace the pipeline's scheduler, keeping its noise schedule. Raises CRDiffError."""
    if name == "default":
        return
    if denoiser(pipe) is getattr(pipe, "transformer", None):
        raise CRDiffError(
            "SD3 and FLUX sample by flow matching, for which only their own scheduler is here: "
            "leave out --scheduler"
        )
    if name not in SCHEDULERS:
        raise CRDiffError(
            f"scheduler {name!r} is not known: use default or one of {', '.join(SCHEDULERS)}"
        )
    import diffusers

    pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config)


def _scheduler_hash(scheduler: Any) -> str:
    """SHA-256 of the scheduler's configuration without diffusers' own notes (``_...``)."""
    config = {name: value for name, value in scheduler.config.items() if name[:1] != "_"}
    plain = json.loads(json.dumps(config, default=str))
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def decide_for(
    config: RunConfig, family: Family, size: Size, presets: Sequence[Preset]
) -> tuple[Decision, bool]:
    """The core's decision for a size, and whether it acts only because it was told to.

    With "stored" it is told not to act where nothing is stored. Raises CRDiffError for ratios that
    the family can't have.
    """
    given = config.given_ratios()
    auto = choose(family, size, presets, ratios=given, k=config.k)
    if config.ratios == "auto":
        return auto, False
    always = choose(family, size, presets, ratios=given, k=config.k, mode="always")
    return always, not auto.act


def make_cells(
    config: RunConfig, family: Family, presets: Sequence[Preset], step: int = DEFAULT_STEP
) -> list[Cell]:
    """Every method at every size. Raises CRDiffError for a size that the model cannot draw."""
    methods = get_methods(config.methods)
    calibration = read_calibration(config.calibration) if config.calibration else None
    cells = []
    for size in dict.fromkeys(config.sizes):
        size.check_step(step, family.label)
        decision, forced = decide_for(config, family, size, presets)
        for method in methods:
            drawing = method.choose(Situation(size, family, decision, calibration))
            acts = drawing.kind == "amplified"
            cells.append(
                Cell(size, method, decision, drawing, acts and (forced or not decision.act))
            )
    return cells


def open_experiment(
    config: RunConfig, prompts: PromptSet, presets: Sequence[Preset] | None = None
) -> Experiment:
    """Load the model, decide, plan, open the store. Nothing is written if anything is wrong.

    ``presets``: stored ratios to choose from; None means the user's over those that ship.
    """
    from harness.environment import default_device
    from harness.modelhash import model_hash
    from harness.pipelines import load_pipeline, usual_dtype

    get_methods(config.methods)
    store = Store(config.out)  # a folder that can't be written is told before a model is loaded
    device = default_device() if config.device == "auto" else config.device
    dtype = usual_dtype(config.model, device) if config.dtype == "auto" else config.dtype
    _no_bars()
    loaded = load_pipeline(
        config.model, dtype, device, config=config.config, prediction=config.prediction
    )
    if loaded.family.name == "unknown":
        raise CRDiffError(
            f"{loaded.model_id} is not a model that CR-Diff knows: use an SD1.5, SD2, SDXL, SD3 or "
            "FLUX model"
        )
    set_scheduler(loaded.pipe, config.scheduler)
    kind_of(loaded.pipe).check(config.sizes, config.negative)
    stored = stored_presets() if presets is None else presets
    cells = make_cells(config, loaded.family, stored, loaded.family.step or DEFAULT_STEP)
    digest = model_hash(loaded.path, config.out / "model-hashes.json", config.config)
    sampling, origins = resolve_sampling(config, loaded, digest, dtype, device)
    origins["k"] = K_ORIGIN if config.k is None else "given"
    plan = Plan(cells, prompts.prompts, sampling)
    experiment = Experiment(config, loaded, sampling, origins, prompts, plan, store)
    experiment.notes += loaded.notes()
    experiment.notes += _calibrated_on_scored(experiment)
    return experiment


def _calibrated_on_scored(experiment: Experiment) -> list[str]:
    """A sentence if criteria are calibrated on prompts whose images are to be compared."""
    criteria = [cell.drawing.criterion for cell in experiment.cells]
    used = {text for criterion in criteria if criterion for text in criterion.prompts}
    both = used & {prompt.text for prompt in experiment.prompts.prompts}
    if not both:
        return []
    return [
        f"{len(both)} of the {len(used)} calibration prompts are among the prompts that are drawn: "
        "the calibrated criteria have seen them"
    ]


def _no_bars() -> None:
    """Loading takes a moment; the libraries' own progress bars only get in the way of ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
