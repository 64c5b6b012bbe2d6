"""What judges the candidates of "Refine for this prompt": a reward in a process of its own, or you.

The reward needs packages that hosts don't ship, so it runs with the Python of the harness'
environment (``crdiff judge``), started when it is first used, kept while the settings stay the
same, and ended with the host.
"""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from modules import script_callbacks

from ..errors import CRDiffError
from . import options
from .child import Interrupted
from .judge import Judge
from .reward_files import missing_clip, missing_image_reward

__all__ = ["Choice", "Interrupted", "Judge", "choose", "describe", "judge", "register", "stop"]

FOLDER = Path(__file__).resolve().parents[2]
"""The extension's folder."""
INSTALL = (
    "py -3.12 -m venv .venv && .venv\\Scripts\\pip install -e .[harness]"
    if os.name == "nt"
    else "make env"
)
"""The one command that makes the harness' environment, run in that folder."""


@dataclass(frozen=True)
class Choice:
    """What the settings come to.

    Attributes:
        name: for people; also beside every score.
        arguments: of ``crdiff judge``.
        python: the interpreter of the harness' environment.
        seconds: limit for one image.
    """

    name: str
    arguments: tuple[str, ...]
    python: Path
    seconds: float

    @property
    def command(self) -> list[str]:
        """Program and arguments of the child, to be run in the extension's folder."""
        return [str(self.python), "-m", "harness.cli", "judge", *self.arguments]


def choose() -> tuple[Choice | None, str]:
    """What the settings come to, None for by hand; and one sentence that says it and why.

    Raises CRDiffError when the reward that the user chose can't be used. "auto" never raises.
    """
    asked = options.reward()
    if asked == "hand":
        return None, "you pick between candidates, as set in Settings"
    found = _found(asked)
    if found is None:
        return None, (
            "you pick between candidates: Settings name no folder with ImageReward's weights and "
            "no open_clip model"
        )
    name, arguments, problem = found
    python, no_python = _python()
    problem = problem or no_python
    if problem is None:
        device = ("--device", options.reward_device())
        choice = Choice(name, (*arguments, *device), python, options.reward_timeout())
        return choice, f"{name} judges, in a process of its own"
    if asked != "auto":
        raise CRDiffError(problem)
    return None, f"you pick between candidates: {problem}"


def _found(asked: str) -> tuple[str, tuple[str, ...], str | None] | None:
    """Name, arguments, and a problem or None; None when "auto" finds nothing to judge with."""
    if asked == "embedded":
        return "embedded reward (not ImageReward)", ("--reward", "embedded"), None
    folder, model = options.reward_weights(), options.reward_clip()
    weights = Path(folder).expanduser() if folder else None
    missing = missing_image_reward(weights)
    if asked == "image-reward" or (asked == "auto" and missing is None):
        return "ImageReward", ("--reward", "image-reward", "--weights", str(weights)), missing
    if asked == "auto" and not model:
        return None
    arguments = ("--reward", "clip", "--weights", str(weights), "--model", model)
    return f"CLIP score ({model})", arguments, missing_clip(weights, model)


def _python() -> tuple[Path, str | None]:
    """The harness' interpreter, and what to do if there is none."""
    named = options.harness_python()
    place = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    path = Path(named).expanduser() if named else FOLDER.joinpath(".venv", *place)
    if path.is_file():
        return path, None
    if named:
        return path, f"there is no Python at {path}: correct it in Settings, CR-Diff"
    return path, f"the harness is not installed: run `{INSTALL}` in {FOLDER}"


_lock = threading.Lock()
_current: tuple[Choice, Judge] | None = None
"""The one judge that may have a child: kept as long as the settings stay the same."""


def judge() -> Judge | None:
    """What judges by the settings page; None: the user picks by hand.

    The same object as before while the settings are the same. Raises CRDiffError when the reward
    that was chosen there can't be used; its sentence says what to do.
    """
    global _current
    choice, _ = choose()
    with _lock:
        if _current is not None and _current[0] != choice:
            _current[1].close()
            _current = None
        if choice is not None and _current is None:
            _current = (choice, Judge(choice.name, choice.command, choice.seconds, FOLDER))
        return None if _current is None else _current[1]


def describe() -> str:
    """One sentence for the panel: what will judge, and why, or what to do about it."""
    try:
        return choose()[1]
    except CRDiffError as error:
        return str(error)


def stop() -> None:
    """End the child, if one runs; harmless to repeat."""
    global _current
    with _lock:
        kept, _current = _current, None
    if kept is not None:
        kept[1].close()


def register() -> None:
    """Have the host end the child when it reloads its page; call it each time scripts load."""
    script_callbacks.on_script_unloaded(stop)


atexit.register(stop)
