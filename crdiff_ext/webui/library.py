"""All stored ratios that the WebUI knows: those that ship, and a file of the user's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Iterable
from itertools import count
from pathlib import Path

from ..errors import CRDiffError
from ..presets import (
    Preset,
    builtin_presets,
    export_presets,
    import_presets,
    merge,
    save_presets,
)

logger = logging.getLogger("crdiff")

Key = tuple[str, int, int, str]


class Library:
    """The stored ratios, the user's over those that ship.

    The file is read when it has changed on the disk (another WebUI, or its owner with an editor),
    and made when there is a first entry to write. A damaged file is renamed, and never overwritten.

    Args:
        path: the user's own presets file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complaint = ""
        """A sentence about a file that could not be used; empty while all is well."""
        self._builtin = builtin_presets()
        self._lock = threading.RLock()  # the page's events and the API run in threads
        self._seen: Hashable = None
        self._own: list[Preset] = []

    @property
    def public_complaint(self) -> str:
        """The same without the folder, for whoever can reach the API."""
        return self.complaint.replace(str(self.path.parent), "...")

    def presets(self) -> list[Preset]:
        """All entries. Never raises: with a file that can't be used, those that ship."""
        return merge(self.own(), self._builtin)

    def own(self) -> list[Preset]:
        """The user's entries. Never raises: see ``complaint``."""
        with self._lock:
            seen = _state(self.path)
            if seen != self._seen:
                self._seen = seen
                self._own = self._read()
            return list(self._own)

    def save(self, preset: Preset) -> bool:
        """Add an entry; True if it replaced one of the user's. Raises CRDiffError."""
        return self._add([preset])[1] == 1

    def delete(self, key: Key) -> None:
        """Take an entry of the user's away. Raises CRDiffError when there is none."""
        with self._lock:
            own = self.own()
            kept = [preset for preset in own if preset.key != key]
            if len(kept) == len(own):
                family, height, width, _ = key
                raise CRDiffError(f"there is no entry of yours for {family} {height}x{width}")
            self._write(kept)

    def import_text(self, text: str) -> tuple[int, int]:
        """Add the entries of a presets file's text; how many were new, and how many replaced one.

        Raises CRDiffError, and then adds none.
        """
        return self._add(import_presets(text))

    def export_text(self) -> str:
        """The user's entries as the text of a presets file."""
        return export_presets(self.own())

    def _add(self, presets: Iterable[Preset]) -> tuple[int, int]:
        with self._lock:
            own = self.own()
            known = {preset.key for preset in own}
            added = list(presets)
            self._write(merge(added, own))
            replaced = sum(preset.key in known for preset in added)
            return len(added) - replaced, replaced

    def _write(self, presets: list[Preset]) -> None:
        save_presets(self.path, presets)  # refuses to replace a file that can't be read
        self._own, self._seen, self.complaint = presets, _state(self.path), ""

    def _read(self) -> list[Preset]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []  # an earlier complaint stays: that is where a damaged file went
        except OSError as error:
            self._complain(f"the presets file {self.path} can't be read: {error}")
            return []
        try:
            own = import_presets(data.decode("utf-8"))
        except (UnicodeDecodeError, CRDiffError) as error:
            self._set_aside(str(error))
            return []
        self.complaint = ""
        return own

    def _set_aside(self, why: str) -> None:
        """Rename the damaged file, so that it is neither used nor overwritten."""
        damaged = f"the presets file {self.path} is damaged ({why})"
        names = (self.path.with_name(f"{self.path.name}.damaged-{n}") for n in count(1))
        aside = next(name for name in names if not name.exists())
        try:
            self.path.rename(aside)
        except OSError as error:
            self._complain(f"{damaged} and is not used; it can't be renamed: {error}")
            return
        self._seen = _state(self.path)
        self._complain(f"{damaged}: it is kept as {aside.name}; repair it and import it")

    def _complain(self, sentence: str) -> None:
        if sentence != self.complaint:
            logger.warning("%s", sentence)
        self.complaint = sentence


def _state(path: Path) -> Hashable:
    """What tells one version of a file from another; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
