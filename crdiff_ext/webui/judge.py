"""A reward in a child process that scores images; whatever becomes of it is one sentence."""

from __future__ import annotations

import base64
import io
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import CRDiffError
from .child import POLL, Child, Interrupted

START_FACTOR = 5
"""Loading may take this many times the limit for one image."""


def _never() -> bool:
    return False


class Judge:
    """Scores images with a child process; one at a time may use it, any thread.

    Args:
        name: the reward's, for people.
        command: what to start, in ``folder``.
        seconds: limit for one image; starting may take ``START_FACTOR`` times as long.
    """

    def __init__(self, name: str, command: Sequence[str], seconds: float, folder: Path) -> None:
        self.name, self._command, self._seconds, self._folder = name, command, seconds, folder
        self._lock = threading.Lock()
        self._closed = False
        self._child: Child | None = None
        self._ready = False
        self._left: list[int] = []  # questions that nobody waits for any more
        self._numbers = itertools.count(1)

    def scores(
        self,
        prompt: str,
        images: Sequence[Image.Image],
        interrupted: Callable[[], bool] = _never,
    ) -> list[float]:
        """One score an image, higher is better.

        ``interrupted`` is asked many times a second. Raises Interrupted (a CRDiffError) when it
        says so, CRDiffError with one sentence when the reward can't judge; in both cases it can be
        used again.
        """
        if not images:
            return []
        while not self._lock.acquire(timeout=POLL):
            if interrupted():
                raise Interrupted(f"{self.name} was not waited for: interrupted")
        try:
            child = self._running(interrupted)
            number = next(self._numbers)
            child.ask({"id": number, "prompt": prompt, "images": [_png(one) for one in images]})
            return self._answer(child, number, len(images), interrupted)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the child for good: whoever still uses this judge is told."""
        self._closed = True
        self.stop()

    def stop(self) -> None:
        """End the child, if there is one; the next use starts another. Never waits for a score."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    @property
    def pid(self) -> int | None:
        """The child's number in the system while it runs."""
        child = self._child
        return child.pid if child is not None and child.alive() else None

    def _running(self, interrupted: Callable[[], bool]) -> Child:
        """The child, loaded; started if there is none."""
        self._check_open()
        child = self._child
        if child is None or not child.alive():
            if child is not None:
                child.end()
            child = Child(self._command, self._folder, f"the reward ({self.name})")
            self._child, self._ready, self._left = child, False, []
            if self._closed:  # just now, by another thread, which may not have seen this child
                self.stop()
            self._check_open()
        if not self._ready:
            said = child.answer(child.started + START_FACTOR * self._seconds, interrupted)
            if "error" in said:
                child.end()
                raise CRDiffError(f"{self.name} can't judge: {_sentence(said)}")
            if said.get("ready") is not True:
                raise child.nonsense(said)
            self._ready = True
        return child

    def _check_open(self) -> None:
        if self._closed:
            raise CRDiffError(f"{self.name} judges no more: the settings have changed, start again")

    def _answer(
        self, child: Child, number: int, count: int, interrupted: Callable[[], bool]
    ) -> list[float]:
        while True:
            limit = time.monotonic() + count * self._seconds
            try:
                said = child.answer(limit, interrupted)
            except Interrupted:
                self._left.append(number)
                raise
            if said.get("id") in self._left:
                self._left.remove(said["id"])
                continue
            if said.get("id") != number:
                raise child.nonsense(said)
            if "error" in said:
                raise CRDiffError(f"{self.name} can't judge this image: {_sentence(said)}")
            scores = _scores(said.get("scores"), count)
            if scores is None:
                raise child.nonsense(said)
            return scores


def _scores(found: Any, count: int) -> list[float] | None:
    """What was answered as scores, if it is: ``count`` finite numbers."""
    if not isinstance(found, list) or len(found) != count:
        return None
    if not all(type(one) in (int, float) and math.isfinite(one) for one in found):
        return None
    return [float(one) for one in found]


def _sentence(said: dict[str, Any]) -> str:
    return " ".join(str(said["error"]).split())


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
