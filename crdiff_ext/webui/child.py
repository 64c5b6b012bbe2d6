"""A child process that answers one line of JSON with one line of JSON, and can never hold us up.

Its pipes are served by threads of their own, so that whoever waits for an answer can give up at any
time: because of a time limit, because the child has died, or because the user interrupts. It ends
when its input closes, so also when this process is killed.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import CRDiffError

logger = logging.getLogger("crdiff")

POLL = 0.05
"""Seconds between two looks at whether to go on waiting."""
LONGEST_LINE = 1 << 20
KEPT_LINES = 20
"""Of what the child last said on stderr."""
GRACE = 2.0
"""Seconds that one whose output has ended gets to end by itself, so that it has an exit code."""

HOSTS_OWN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""What a host may have set for its own Python, and another Python must not see."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Interrupted(CRDiffError):
    """The user stopped it; the child is well and goes on."""


def environment() -> dict[str, str]:
    """This process' variables for another Python: without the host's own, and never online."""
    kept = {name: value for name, value in os.environ.items() if name not in HOSTS_OWN}
    return {**kept, **OFFLINE, "PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8"}


class Child:
    """A running child process.

    Args:
        command: program and arguments.
        folder: where it runs.
        name: what sentences call it.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        name: str,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. Raises CRDiffError if the system can't."""
        self.name = name
        try:
            self._process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=dict(environment() if variables is None else variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # Ctrl+C in the host's terminal is the host's; on Windows, no window of its own
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise CRDiffError(
                f"{name} could not be started ({error.strerror}): {command[0]} must be the Python "
                "of the harness' environment"
            ) from error
        self.started = time.monotonic()
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._questions: queue.Queue[str | None] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=KEPT_LINES)
        self._threads = [self._thread(one) for one in (self._read, self._write, self._listen)]

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(self, question: Mapping[str, Any]) -> None:
        """Send one line; never blocks."""
        self._questions.put(json.dumps(question) + "\n")

    def answer(self, until: float, interrupted: Callable[[], bool]) -> dict[str, Any]:
        """The next answer, waited for ``until`` this time of the monotonic clock.

        Raises Interrupted, and CRDiffError after it has ended the child: when that died, said
        nothing in time, or anything but a JSON object.
        """
        line = self._line(until, interrupted)
        if line is None:
            code = self._code()
            self.end()
            self._log_last_words()
            raise CRDiffError(
                f"{self.name} has died (exit code {code}): the log has its last words; the next "
                "use starts it anew"
            )
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.nonsense(line)
        return found

    def nonsense(self, what: object) -> CRDiffError:
        """End it because of an answer that is none; returns the error to raise."""
        self.end()
        logger.warning("%s said: %.200s", self.name, what)
        self._log_last_words()
        return CRDiffError(
            f"{self.name} gave an answer that makes no sense and was stopped: the log has it; the "
            "next use starts it anew"
        )

    def end(self) -> None:
        """End it at once: it has nothing to put away. Harmless to repeat."""
        self._questions.put(None)  # the writer closes its input
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(1.0)  # not for ever: a process that it started may hold the pipes

    def _line(self, until: float, interrupted: Callable[[], bool]) -> str | None:
        """The next line of its output; None when it has ended."""
        while True:
            try:
                return self._answers.get(timeout=POLL)
            except queue.Empty:
                pass
            if interrupted():
                raise Interrupted(f"{self.name} was not waited for: interrupted")
            if not self.alive():
                self._threads[0].join(1.0)  # what it said before it died
                return None if self._answers.empty() else self._answers.get()
            if time.monotonic() > until:
                self.end()
                self._log_last_words()
                raise CRDiffError(
                    f"{self.name} did not answer in time and was stopped: see the time limit in "
                    "Settings, CR-Diff; the next use starts it anew"
                )

    def _code(self) -> int | None:
        """Its exit code; it has just ended, or closed its output and is about to."""
        try:
            return self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            return None

    def _log_last_words(self) -> None:
        if self._last_words:
            logger.warning("%s, last lines:\n%s", self.name, "".join(self._last_words).rstrip())

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        made = threading.Thread(target=target, name=f"crdiff-{target.__name__}", daemon=True)
        made.start()
        return made

    def _read(self) -> None:
        for line in _lines(self._process.stdout):
            self._answers.put(line)
        self._answers.put(None)

    def _listen(self) -> None:
        for line in _lines(self._process.stderr):
            self._last_words.append(line)

    def _write(self) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            with stream:
                while (line := self._questions.get()) is not None:
                    stream.write(line)
                    stream.flush()
        except OSError:
            logger.debug("%s reads no more", self.name)  # its end is told to who waits for it


def _lines(stream: IO[str] | None) -> Iterator[str]:
    """Lines as they come, cut where they are endless; ends with the pipe, and closes it."""
    assert stream is not None
    with stream:
        while line := stream.readline(LONGEST_LINE):
            yield line
