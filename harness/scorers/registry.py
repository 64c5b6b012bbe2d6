"""The scorers by name.

A name may carry a setting after a colon: ``clip-score:ViT-L-14-quickgelu`` is the CLIP score with
that backbone.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import DEFAULT_PROTOCOL, Scorer, check_protocol

SCORERS = {
    "fid": "fid:Fid",
    "fid-pytorch": "fid:FidPytorch",
    "kid": "fid:Kid",
    "clip-score": "clip:ClipScore",
    "image-reward": "image_reward:ImageReward",
    "image-reward-package": "image_reward_package:ImageRewardPackage",
    "pickscore": "pickscore:PickScore",
    "aesthetic": "aesthetic:Aesthetic",
    "aesthetic-v2-5": "aesthetic:AestheticV25",
    "embedded_reward": "embedded:EmbeddedRewardScorer",
    "embedded_frechet": "embedded:EmbeddedFrechet",
}
"""Name -> module:class below ``harness.scorers``, imported when the scorer is asked for."""


def get_scorers(
    names: Sequence[str],
    weights_dir: Path,
    device: str = "cpu",
    protocol: str = DEFAULT_PROTOCOL,
) -> list[Scorer]:
    """Scorers by name, each once, in the given order; nothing is loaded yet. Raises CRDiffError.

    A scorer whose files are missing is in the list: ask its ``missing()``.
    """
    check_protocol(protocol)
    return [_make(name, weights_dir, device, protocol) for name in dict.fromkeys(names)]


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name, for its labels. Raises CRDiffError."""
    plain = name.partition(":")[0]
    if plain not in SCORERS:
        raise CRDiffError(f"metric {name!r} is not known: use one or more of {', '.join(SCORERS)}")
    module, _, kind = SCORERS[plain].partition(":")
    found: Any = getattr(importlib.import_module(f"harness.scorers.{module}"), kind)
    assert issubclass(found, Scorer)
    return found


def _make(name: str, weights_dir: Path, device: str, protocol: str) -> Scorer:
    kind = scorer_class(name)
    _, colon, setting = name.partition(":")
    if not colon:
        return kind(weights_dir, device, protocol)
    return kind.with_setting(setting, weights_dir, device, protocol)
