"""Search block ratios for the embedded model with the paper's annealing, and confirm them.

Every state is judged by the mean embedded reward over the captions of the "search" split, drawn
with amplification, each caption with its own fixed seed. The best state is then drawn once more on
other captions of the same split that took no part: their paired difference to dense is what a
preset's provenance states. The demo's captions are in neither.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crdiff_ext.anneal import Annealer, Schedule
from crdiff_ext.errors import CRDiffError
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness.config import Size, image_seed
from harness.embedded.reward import EmbeddedReward
from harness.embedded.scenes import caption, prompt_set
from harness.generate import Painter
from harness.methods import DENSE, Drawing
from harness.plan import Batch, Item
from harness.prompts import Prompt
from harness.stats import paired_interval
from harness.store import write_atomically

STATE = "search.json"
VERSION = 1


@dataclass(frozen=True)
class SearchConfig:
    """What is searched; everything that the scores depend on.

    ``captions`` judge every state, ``held_out`` further ones confirm the best; ``steps`` are the
    sampling steps of both.
    """

    model_hash: str
    height: int
    width: int
    k: float = 1.5
    captions: int = 32
    held_out: int = 128
    steps: int = 10
    guidance: float = 3.0
    seed: int = 0
    iterations: int = 120
    batch: int = 16

    def __post_init__(self) -> None:
        for name, least in (("captions", 2), ("held_out", 2), ("steps", 1), ("iterations", 1)):
            value = getattr(self, name)
            if value < least:
                flag = name.replace("_", "-")
                raise CRDiffError(f"--{flag} is {value}: it must be at least {least}")


class Objective:
    """Embedded rewards of drawings at one size, one value a caption."""

    def __init__(self, painter: Painter, reward: EmbeddedReward, config: SearchConfig) -> None:
        self.painter, self.reward, self.config = painter, reward, config
        specs = prompt_set("search", config.captions + config.held_out)
        self.texts = [caption(spec) for spec in specs]

    def scores(self, ratios: Ratios | None, held_out: bool = False) -> np.ndarray:
        """Rewards [captions] (or [held_out]) with ``ratios`` at the config's k; None is dense."""
        first = self.config.captions if held_out else 0
        last = len(self.texts) if held_out else self.config.captions
        dense = ratios is None or ratios.is_zero
        drawing = DENSE if dense else Drawing("amplified", ratios, self.config.k)
        parts = []
        for start in range(first, last, self.config.batch):
            members = range(start, min(start + self.config.batch, last))
            parts.append(self._batch(drawing, members))
        return np.concatenate(parts)

    def _batch(self, drawing: Drawing, members: Sequence[int]) -> np.ndarray:
        items = tuple(
            Item(i, Prompt(str(i), self.texts[i]), image_seed(self.config.seed, i), {})
            for i in members
        )
        size = Size(self.config.height, self.config.width)
        images, _ = self.painter.draw(Batch(size, drawing, items))
        return self.reward.score(images, [self.texts[i] for i in members])


class Search:
    """An annealer, an objective, and a file from which a killed search goes on."""

    def __init__(self, config: SearchConfig, objective: Objective, folder: Path) -> None:
        self.config, self.objective, self.path = config, objective, folder / STATE
        folder.mkdir(parents=True, exist_ok=True)
        self.annealer = Annealer(Schedule(iterations=config.iterations), config.seed)
        self.dense: list[float] | None = None
        self.confirmed: dict[str, Any] | None = None
        if self.path.exists():
            self._load()

    def run(self) -> dict[str, Any]:
        """Search to the end, confirm, and return the state that was written."""
        if self.dense is None:
            self.dense = self.objective.scores(None).tolist()
            self.save()
        total = self.config.iterations
        quiet = not sys.stderr.isatty()
        with tqdm(
            total=total, initial=len(self.annealer.trials), unit="state", disable=quiet
        ) as bar:
            while not self.annealer.done:
                self.annealer.tell(float(self.objective.scores(self.annealer.ask()).mean()))
                self.save()
                bar.update()
                bar.set_postfix(best=f"{_score(self.annealer):.3f}", refresh=False)
        if self.confirmed is None:
            self.confirmed = self._confirm()
            self.save()
        return self.state()

    def preset(self, model: str) -> Preset:
        """The best ratios as a stored entry, with the provenance that a reader needs."""
        best = self.annealer.best
        assert best is not None
        provenance = {
            "kind": "searched",
            "method": "simulated annealing, the authors' schedule, amplification in the loop",
            "reward": "embedded reward (not ImageReward)",
            **asdict(self.config),
            "states": len(self.annealer.trials),
            "search_score": best.score,
            "search_score_dense": float(np.mean(self.dense or [])),
            "held_out": self.confirmed,
        }
        return Preset(
            family="embedded",
            height=self.config.height,
            width=self.config.width,
            ratios=self.best_ratios(),
            source=f"crdiff search, {self.config.captions} captions",
            model=model,
            k=self.config.k,
            provenance=provenance,
        )

    def best_ratios(self) -> Ratios:
        """The best state to three decimals: what is confirmed and what is stored."""
        best = self.annealer.best
        if best is None:
            raise CRDiffError("no state could be evaluated: there is nothing to store")
        return Ratios(**{group: round(r, 3) for group, r in best.ratios.as_dict().items()})

    def _confirm(self) -> dict[str, Any]:
        dense = self.objective.scores(None, held_out=True)
        chosen = self.objective.scores(self.best_ratios(), held_out=True)
        return {
            "captions": len(dense),
            "dense": float(dense.mean()),
            "score": float(chosen.mean()),
            "difference": paired_interval(chosen, dense).as_dict(),
        }

    def state(self) -> dict[str, Any]:
        """Everything, as it is written to search.json."""
        trials = [
            {"ratios": trial.ratios.as_dict(), "score": trial.score, "accepted": trial.accepted}
            for trial in self.annealer.trials
        ]
        return {
            "version": VERSION,
            "config": asdict(self.config),
            "dense": self.dense,
            "annealer": self.annealer.to_dict(),
            "trials": trials,
            "held_out": self.confirmed,
        }

    def save(self) -> None:
        """Replace search.json, whole or not at all."""
        write_atomically(self.path, (json.dumps(self.state(), indent=1) + "\n").encode())

    def _load(self) -> None:
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            config = SearchConfig(**state["config"])
            annealer = Annealer.from_dict(state["annealer"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CRDiffError(
                f"{self.path} is damaged ({error}): move it away to search anew"
            ) from error
        if config != self.config:
            raise CRDiffError(
                f"{self.path} belongs to a search with other settings: give another --out, or "
                "repeat its settings to go on with it"
            )
        self.annealer, self.dense = annealer, state["dense"]
        self.confirmed = state["held_out"]


def _score(annealer: Annealer) -> float:
    best = annealer.best
    return float("nan") if best is None or best.score is None else best.score
