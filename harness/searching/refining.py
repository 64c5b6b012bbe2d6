"""Refine the ratios for one prompt: the core's :class:`Refinement`, driven by a model and a reward.

The moves depend on the seed and on the scores, the scores on images that are stored: the same
command draws only what is missing, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crdiff_ext.errors import CRDiffError
from crdiff_ext.refine import Refinement
from crdiff_ext.schedule import State
from harness.searching.objective import Drawn, all_values
from harness.store import write_atomically

log = logging.getLogger(__name__)

RESULT = "refine.json"


def refine(search: Refinement, objective: Drawn) -> None:
    """Judge rounds until the budget is spent; one that fails is told as such."""
    while not search.done:
        asked = search.ask()
        try:
            scores = all_values(objective, asked.state).tolist()
        except CRDiffError as error:
            log.warning("%s failed: %s", asked.state, error)
            scores = None
        search.tell(scores)


def images_of(objective: Drawn, state: State) -> list[Image.Image]:
    """A state's images in the order of the seeds; from the store, where they are."""
    images: dict[int, Image.Image] = {}
    for number, members in enumerate(objective.batches):
        images.update(zip(members, objective.images(state, number), strict=True))
    return [images[i] for i in range(len(images))]


def compare(objective: Drawn, states: Sequence[State]) -> dict[State, np.ndarray]:
    """Rewards [seeds] of each state on other seeds than those that it was chosen by."""
    return {state: all_values(objective, state) for state in dict.fromkeys(states)}


def result_of(
    search: Refinement,
    prompt: str,
    about: dict[str, Any],
    fresh: dict[State, np.ndarray],
) -> dict[str, Any]:
    """Everything for refine.json: states and scores; ``fresh`` are scores on other seeds."""
    best = search.best
    rounds = [
        {
            "kind": judged.round.kind,
            **judged.round.state.as_dict(),
            "scores": None if judged.scores is None else list(judged.scores),
            "score": judged.score,
        }
        for judged in search.judged
    ]
    return {
        "version": 1,
        "prompt": prompt,
        **about,
        "start": search.start.as_dict(),
        "seeds": list(search.seeds),
        "budget": search.budget,
        "best": {**best.state.as_dict(), "score": best.score},
        "rounds": rounds,
        "fresh_seeds": [
            {**state.as_dict(), "scores": values.tolist(), "score": float(values.mean())}
            for state, values in fresh.items()
        ],
    }


def write(
    folder: Path, result: dict[str, Any], pictures: dict[str, list[Image.Image]]
) -> list[Path]:
    """refine.json, and NAME-SEED.png for each of ``pictures``. Returns what was written."""
    import io

    files = []
    for name, images in pictures.items():
        for seed, image in zip(result["seeds"], images, strict=True):
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            files.append(folder / f"{name}-{seed}.png")
            write_atomically(files[-1], buffer.getvalue())
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    files.append(folder / RESULT)
    write_atomically(files[-1], text.encode())
    return files
