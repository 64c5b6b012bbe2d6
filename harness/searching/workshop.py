"""A model and a reward, loaded once: what search, refinement and their measurements draw with."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family
from harness.config import RunConfig, Size
from harness.denoisers import kind_of
from harness.embedded.weights import embedded_model_dir
from harness.generate import Painter
from harness.plan import Sampling
from harness.searching.objective import Drawn, Reward, Shot
from harness.store import Store

EMBEDDED = "embedded"
EMBEDDED_REWARD = "embedded reward (not ImageReward)"


@dataclass(frozen=True)
class Workshop:
    """What draws, and what judges.

    Attributes:
        label: the model's name for people; ``family`` and ``checkpoint`` find its presets.
        reward_name: as it is to be printed beside every score.
    """

    painter: Painter
    sampling: Sampling
    size: Size
    family: Family
    label: str
    reward: Reward
    reward_name: str
    is_embedded: bool

    def objective(self, shots: Sequence[Shot], store: Store | None) -> Drawn:
        """Rewards of ``shots`` drawn here."""
        return Drawn(self.painter, self.reward, self.sampling, self.size, shots, store)


def open_workshop(config: RunConfig, reward: str = "auto", weights: Path | None = None) -> Workshop:
    """Load the model of ``config`` ("embedded" or any) and a reward for its first size.

    ``reward``: a name, "auto" for the embedded model's own or ImageReward; ``weights``: its folder
    or file. Raises CRDiffError before anything slow where it can.
    """
    is_embedded = config.model == EMBEDDED
    if reward == EMBEDDED and not is_embedded:
        raise CRDiffError(
            "the embedded reward judges the embedded model's captions only: give --reward another "
            "one, such as image-reward"
        )
    judge, name = _reward(reward, is_embedded, weights)

    from harness.environment import default_device
    from harness.experiment import resolve_sampling, set_scheduler
    from harness.modelhash import model_hash
    from harness.pipelines import load_pipeline, usual_dtype

    device = default_device() if config.device == "auto" else config.device
    if is_embedded:
        device = "cpu"
    path = embedded_model_dir() if is_embedded else config.model
    dtype = usual_dtype(path, device) if config.dtype == "auto" else config.dtype
    loaded = load_pipeline(path, dtype, device, config=config.config, prediction=config.prediction)
    if loaded.family.name == "unknown":
        raise CRDiffError(
            f"{loaded.model_id} is not a model that CR-Diff knows: use an SD1.5, SD2, SDXL, SD3 or "
            "FLUX model"
        )
    size = config.sizes[0]
    size.check_step(loaded.family.step or 8, loaded.family.label)
    kind_of(loaded.pipe).check(config.sizes, config.negative)
    set_scheduler(loaded.pipe, config.scheduler)
    digest = model_hash(loaded.path, config.out / "model-hashes.json", config.config)
    sampling, _ = resolve_sampling(config, loaded, digest, dtype, device)
    label = loaded.family.label if is_embedded else loaded.model_id
    painter = Painter(loaded.pipe, sampling)
    return Workshop(painter, sampling, size, loaded.family, label, judge, name, is_embedded)


def _reward(name: str, is_embedded: bool, weights: Path | None) -> tuple[Reward, str]:
    if is_embedded and name in ("auto", EMBEDDED):
        from harness.embedded.reward import EmbeddedReward

        return EmbeddedReward.load(weights), EMBEDDED_REWARD
    wanted = "image-reward" if name == "auto" else name
    return _scorer(wanted, weights), wanted


def _scorer(name: str, weights: Path | None) -> Any:
    """A scorer of images by name, with its weights. Raises CRDiffError."""
    try:
        scorers = importlib.import_module("harness.scorers")
    except ModuleNotFoundError as error:
        raise CRDiffError(
            f"the reward {name} is not part of this version: only the embedded model can be "
            "searched, with its own reward"
        ) from error
    if name.partition(":")[0] not in scorers.SCORERS:
        kinds = {one: scorers.scorer_class(one) for one in scorers.SCORERS}
        known = [one for one, kind in kinds.items() if issubclass(kind, scorers.ImageScorer)]
        raise CRDiffError(f"the reward {name!r} is not known: use one of {', '.join(known)}")
    if weights is None:
        raise CRDiffError(
            f"the reward {name} needs its weights: give their folder with --reward-weights"
        )
    scorer = scorers.get_scorers([name], weights)[0]
    if not isinstance(scorer, scorers.ImageScorer):
        raise CRDiffError(
            f"{name} compares sets of images: give --reward one that scores each image, such as "
            "image-reward"
        )
    scorer.require()
    return scorer
