"""Where a user's stored ratios are, and all stored ratios together."""

from __future__ import annotations

import os
from pathlib import Path

from crdiff_ext.presets import Preset, builtin_presets, load_presets, merge

VARIABLE = "CRDIFF_PRESETS"


def presets_path(given: Path | None = None) -> Path:
    """The user's presets file: as given, else $CRDIFF_PRESETS, else in the user's config folder.

    It need not exist.
    """
    if given is not None:
        return given.expanduser()
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return _config_home() / "crdiff" / "presets.json"


def stored_presets(given: Path | None = None) -> list[Preset]:
    """The user's entries over those that ship. Raises CRDiffError if the user's file is damaged."""
    return merge(load_presets(presets_path(given), missing_ok=True), builtin_presets())


def _config_home() -> Path:
    if os.name == "nt" and (roaming := os.environ.get("APPDATA")):
        return Path(roaming)
    named = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG standard: a relative path there is to be ignored.
    return Path(named) if Path(named).is_absolute() else Path.home() / ".config"
