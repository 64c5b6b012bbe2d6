"""A WebUI that has none of the hooks that CR-Diff knows: it says so, and changes nothing."""

from __future__ import annotations

import logging
from typing import Any

from ..families import UNKNOWN
from .job import ModelFacts

logger = logging.getLogger("crdiff")

SENTENCE = (
    "CR-Diff is not supported in this WebUI: it samples in a way that CR-Diff can't attach to, so "
    "all images are made without it"
)


class NoAdapter:
    """See ``hosts.Adapter``."""

    name = "none"
    transformers: frozenset[str] = frozenset()
    refused = SENTENCE

    def install(self) -> None:
        """Say it once, in the log."""
        logger.warning("%s", SENTENCE)

    def before_sampling(self, p: Any) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""

    def loaded_model(self) -> ModelFacts | None:
        """No model can be used, whichever is loaded: the panel's line says so."""
        return ModelFacts(UNKNOWN, "", SENTENCE)
