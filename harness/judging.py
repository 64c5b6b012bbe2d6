"""A reward behind two pipes: ``crdiff judge``. Its protocol is in ``harness/commands/judge.py``."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from crdiff_ext import __version__
from crdiff_ext.errors import CRDiffError

if TYPE_CHECKING:
    from PIL import Image

    from harness.searching.objective import Reward

REWARDS = {"image-reward": "image-reward", "clip": "clip-score", "embedded": "embedded"}
"""As ``--reward`` has it -> the scorer's name."""
READERS_GONE = 1


def serve(reward: str, weights: Path | None, model: str | None, device: str) -> int:
    """Load a reward and answer until stdin ends. Returns the exit code.

    Raises what keeps the reward from loading, after it has been told on stdout.
    """
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    answers = take_stdout()
    threading.Thread(target=leave_with_reader, args=(answers.fileno(),), daemon=True).start()
    try:
        judge, name = open_reward(reward, weights, model, device)
        warm_up(judge)
    except (CRDiffError, ImportError, OSError, RuntimeError, MemoryError) as error:
        _say(answers, {"error": sentence_of(error)})
        raise
    _say(answers, {"ready": True, "reward": name, "version": __version__})
    for line in sys.stdin.buffer:
        _say(answers, answer(judge, line))
    return 0


def take_stdout() -> IO[str]:
    """Standard output for answers alone: what anything prints from now on goes to stderr."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def leave_with_reader(descriptor: int) -> None:
    """End this process, whatever it is doing, when nobody can read its answers any more.

    Stdin tells that too, but only between two answers. Where there is no poll (Windows), that has
    to do.
    """
    if not hasattr(select, "poll"):
        return
    watch = select.poll()
    watch.register(descriptor, 0)  # errors are always told
    gone = select.POLLERR | select.POLLHUP
    if any(found & gone for _, found in watch.poll()):
        os._exit(READERS_GONE)


def open_reward(
    reward: str, weights: Path | None, model: str | None = None, device: str = "auto"
) -> tuple[Reward, str]:
    """A reward and its name with its setting; it loads when it is first used. Raises CRDiffError.

    ``model``: open_clip's name, for "clip" only.
    """
    if reward not in REWARDS:
        raise CRDiffError(f"the reward {reward!r} is not known: use one of {', '.join(REWARDS)}")
    if model is not None and reward != "clip":
        raise CRDiffError(f"--model is for the reward clip: leave it out with {reward}")
    if reward == "embedded":
        from harness.embedded.reward import EmbeddedReward
        from harness.searching.workshop import EMBEDDED_REWARD

        return EmbeddedReward.load(weights), EMBEDDED_REWARD
    if weights is None:
        raise CRDiffError(f"the reward {reward} needs its weights: give their folder (--weights)")
    from harness.environment import default_device
    from harness.scorers import ImageScorer, get_scorers

    name = REWARDS[reward] if model is None else f"{REWARDS[reward]}:{model}"
    device = default_device() if device == "auto" else device
    (scorer,) = get_scorers([name], weights, device)
    assert isinstance(scorer, ImageScorer)
    scorer.require()
    return scorer, name


def warm_up(reward: Reward) -> None:
    """Have it load everything, by judging something. Raises CRDiffError where its files are bad."""
    from PIL import Image

    reward.score([Image.new("RGB", (64, 64))], ["a red circle"])


def answer(reward: Reward, line: bytes) -> dict[str, Any]:
    """What to say to one line; never raises for what the line holds or the reward can't do."""
    number = None
    try:
        asked = json.loads(line)
        if not isinstance(asked, dict):
            raise CRDiffError("a question is an object with id, prompt and images")
        number = asked.get("id")
        prompt, images = _question(asked)
        return {"id": number, "scores": scores(reward, prompt, images)}
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return {"id": number, "error": sentence_of(error)}


def scores(reward: Reward, prompt: str, images: list[Image.Image]) -> list[float]:
    """One finite number an image. Raises CRDiffError if the reward has none for one."""
    import numpy as np

    found = np.asarray(reward.score(images, [prompt] * len(images)), dtype=float)
    if not np.isfinite(found).all():
        raise CRDiffError("the reward has no number for this prompt: use another prompt or reward")
    return [float(value) for value in found]


def sentence_of(error: BaseException) -> str:
    """One sentence for the one who asked."""
    if isinstance(error, CRDiffError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing: run `make env` where CR-Diff is installed"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _question(asked: dict[str, Any]) -> tuple[str, list[Image.Image]]:
    """Prompt and images of a question. Raises CRDiffError."""
    from PIL import Image

    prompt, coded = asked.get("prompt"), asked.get("images")
    if not isinstance(prompt, str) or not _are_texts(coded):
        raise CRDiffError("a question has a prompt (text) and images (a list of base64 PNG)")
    images = []
    for place, text in enumerate(coded or []):
        try:
            image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
            images.append(image.convert("RGB"))
        except (ValueError, OSError, SyntaxError) as error:
            raise CRDiffError(f"image {place} of the question is no PNG in base64") from error
    return prompt, images


def _are_texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(one, str) for one in found)


def _say(answers: IO[str], value: dict[str, Any]) -> None:
    """One line. Raises BrokenPipeError when nobody reads."""
    answers.write(json.dumps(value, allow_nan=False) + "\n")
    answers.flush()
