"""Stored block ratios: for each family and size, where they come from, and their JSON file.

The file's schema is ``presets.schema.json``; the entries that ship are in ``presets.json``. A
user's file is laid over them. Files are replaced atomically; a damaged one is never overwritten.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import CRDiffError
from .families import FAMILIES
from .settings import K_DEFAULT, Ratios, as_number, check_k

VERSION = 1
MAX_SIDE = 16384
BUILTIN_PATH = Path(__file__).with_name("presets.json")
SCHEMA_PATH = Path(__file__).with_name("presets.schema.json")


@dataclass(frozen=True)
class Preset:
    """Ratios that were found good for one family at one size. Raises CRDiffError if not valid.

    Attributes:
        family: a name of ``families.FAMILIES`` other than "unknown".
        height, width: pixels.
        ratios: down / mid / up.
        k: the amplification that belongs to them.
        source: where from, in a few words for people, such as "paper, Figure 7a".
        model: the checkpoint that they were found on.
        provenance: anything else worth keeping (plain JSON): method, prompts, score, date, notes.
        checkpoint: the start of a checkpoint file's SHA-256 (8 to 64 hex digits) when the ratios
            are for that checkpoint alone; empty: for every model of the family.
    """

    family: str
    height: int
    width: int
    ratios: Ratios
    source: str
    model: str
    k: float = K_DEFAULT
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    checkpoint: str = ""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES or self.family == "unknown":
            raise CRDiffError(f"preset family {self.family!r} is not known")
        for name in ("height", "width"):
            side = as_number(getattr(self, name), f"preset {name}")
            if side != int(side) or not 1 <= side <= MAX_SIDE:
                raise CRDiffError(f"preset {name} is {side:g}: a whole number of pixels is needed")
            object.__setattr__(self, name, int(side))
        for name in ("source", "model"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise CRDiffError(f"preset {name} is {value!r}: say where the ratios come from")
        if not isinstance(self.ratios, Ratios):
            raise CRDiffError(f"preset ratios are {self.ratios!r}: down, mid and up are needed")
        FAMILIES[self.family].check(self.ratios)
        if not isinstance(self.provenance, Mapping):
            raise CRDiffError(f"preset provenance is {self.provenance!r}: an object is needed")
        object.__setattr__(self, "checkpoint", _as_hash(self.checkpoint))
        object.__setattr__(self, "k", check_k(self.k))

    @property
    def key(self) -> tuple[str, int, int, str]:
        """(family, height, width, checkpoint): what a later entry replaces."""
        return self.family, self.height, self.width, self.checkpoint

    def is_for(self, family: str, checkpoint: str) -> bool:
        """Whether it holds for a model of ``family`` whose hash is, or starts, ``checkpoint``."""
        return self.family == family and _same_hash(self.checkpoint, checkpoint.lower())

    @classmethod
    def from_dict(cls, data: object) -> Preset:
        """From one entry of the file. Raises CRDiffError for missing or unknown fields."""
        if not isinstance(data, Mapping):
            raise CRDiffError(f"a preset is {data!r}: an object is needed")
        known = {entry.name for entry in fields(cls)}
        missing = known - {"k", "provenance", "checkpoint"} - set(data)
        if missing or set(data) - known:
            wrong = [f"{name} is missing" for name in sorted(missing)]
            wrong += [f"{name!r} is not known" for name in sorted(map(str, set(data) - known))]
            raise CRDiffError(f"a preset is not right: {', '.join(wrong)}")
        ratios = data["ratios"]
        if not isinstance(ratios, Mapping):
            raise CRDiffError(f"preset ratios are {ratios!r}: down, mid and up are needed")
        return cls(**{**data, "ratios": Ratios.from_dict(ratios)})

    def to_dict(self) -> dict[str, Any]:
        """One entry of the file; ``from_dict`` gives an equal Preset back."""
        own = {"checkpoint": self.checkpoint} if self.checkpoint else {}
        return {
            "family": self.family,
            **own,
            "height": self.height,
            "width": self.width,
            "ratios": self.ratios.as_dict(),
            "k": self.k,
            "source": self.source,
            "model": self.model,
            "provenance": dict(self.provenance),
        }


def builtin_presets() -> list[Preset]:
    """The entries that ship."""
    return load_presets(BUILTIN_PATH)


def load_presets(path: str | Path, missing_ok: bool = False) -> list[Preset]:
    """Read a presets file; with ``missing_ok`` no file is no entries. Raises CRDiffError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if missing_ok:
            return []
        raise CRDiffError(f"the presets file {path} does not exist: check its name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CRDiffError(f"the presets file {path} can't be read: {error}") from error
    try:
        return import_presets(text)
    except CRDiffError as error:
        raise CRDiffError(
            f"the presets file {path} is damaged ({error}): repair it, or move it away"
        ) from error


def import_presets(text: str) -> list[Preset]:
    """Entries from the text of a presets file. Raises CRDiffError; never a part of them."""
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CRDiffError(f"not JSON: {error}") from error
    if not isinstance(data, dict) or set(data) != {"version", "presets"}:
        raise CRDiffError('an object with "version" and "presets" is needed')
    if data["version"] != VERSION or isinstance(data["version"], bool):
        raise CRDiffError(f"version {data['version']!r} is not known, {VERSION} is")
    if not isinstance(data["presets"], list):
        raise CRDiffError('"presets" must be a list')
    presets = [Preset.from_dict(entry) for entry in data["presets"]]
    seen: set[tuple[str, int, int, str]] = set()
    for preset in presets:
        if preset.key in seen:
            whose = f" of {preset.checkpoint}" if preset.checkpoint else ""
            raise CRDiffError(
                f"{preset.family} {preset.height}x{preset.width}{whose} is there twice"
            )
        seen.add(preset.key)
    return presets


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not allowed")


def export_presets(presets: Iterable[Preset]) -> str:
    """The text of a presets file, which ``import_presets`` reads back."""
    data = {"version": VERSION, "presets": [preset.to_dict() for preset in presets]}
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def save_presets(path: str | Path, presets: Iterable[Preset]) -> None:
    """Replace a presets file atomically: after a crash or on a full disk the old one is whole.

    Raises CRDiffError, also instead of overwriting a file that is damaged.
    """
    path = Path(path)
    text = export_presets(presets)
    import_presets(text)  # what could not be read back is not written
    load_presets(path, missing_ok=True)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise CRDiffError(f"the presets file {path} can't be written: {error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def merge(user: Iterable[Preset], builtin: Iterable[Preset]) -> list[Preset]:
    """All entries, the user's over the built-in one of the same key; sorted by key."""
    merged = {preset.key: preset for preset in builtin}
    merged.update((preset.key, preset) for preset in user)
    return [merged[key] for key in sorted(merged)]


def _as_hash(value: object) -> str:
    """The start of a SHA-256 in lower case, or nothing. Raises CRDiffError."""
    text = value.strip().lower() if isinstance(value, str) else None
    if text is None or (text and not re.fullmatch("[0-9a-f]{8,64}", text)):
        raise CRDiffError(f"preset checkpoint is {value!r}: 8 to 64 hex digits are needed, or none")
    return text


def _same_hash(asked: str, found: str) -> bool:
    """Whether two starts of hashes can be the same checkpoint's; an entry without one fits all."""
    return not asked or (bool(found) and (found.startswith(asked) or asked.startswith(found)))
