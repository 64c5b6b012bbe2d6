"""Scorers of images, each optional, behind one protocol.

``get_scorers`` makes them by name; :class:`ImageScorer` scores images one by one, given their
captions, :class:`SetScorer` a set of images against a reference.
"""

from __future__ import annotations

from harness.scorers.base import DEFAULT_PROTOCOL, PROTOCOLS, ImageScorer, Scorer, SetScorer
from harness.scorers.derived import best_share, improved
from harness.scorers.reference import Reference, ReferenceSource, open_reference
from harness.scorers.registry import SCORERS, get_scorers, scorer_class

__all__ = [
    "DEFAULT_PROTOCOL",
    "PROTOCOLS",
    "SCORERS",
    "ImageScorer",
    "Reference",
    "ReferenceSource",
    "Scorer",
    "SetScorer",
    "best_share",
    "get_scorers",
    "improved",
    "open_reference",
    "scorer_class",
]
