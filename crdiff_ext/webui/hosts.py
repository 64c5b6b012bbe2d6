"""What a host adapter does, and which one this WebUI needs: told by capability, once."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import Any, Protocol

from .job import ModelFacts


class Adapter(Protocol):
    """Puts CR-Diff into one family of hosts. State lives on ``p.crdiff_job``, never here."""

    name: str
    """For reports; no logic may depend on it."""

    transformers: frozenset[str]
    """Families of diffusion transformers that are supported here."""

    refused: str
    """Why nothing can be done in this WebUI, as a sentence; empty where it can."""

    def install(self) -> None:
        """Register callbacks and patches; harmless to repeat."""

    def before_sampling(self, p: Any) -> None:
        """The host's hook before each sampling, where it has one."""

    def settle(self) -> None:
        """Have the chosen checkpoint loaded, where the last generation left another one behind."""

    def loaded_model(self) -> ModelFacts | None:
        """The model that is loaded now, for the panel's line; None when there is none. Fast."""


def has_unet_patcher() -> bool:
    """Whether models carry a patchable UNet (the Forge family)."""
    return any(
        there(name) for name in ("backend.patcher.unet", "ldm_patched.modules.model_patcher")
    )


def there(module: str) -> bool:
    """Whether the host has a module, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing, or is no package
        return False


def show_notices() -> None:
    """Have our warnings printed, in hosts that print errors alone or nothing of others.

    Forge Neo: modules/logging_config.py; SD.Next, whose root logger leads nowhere, and which lends
    its handlers to some extensions: modules/logger.py.
    """
    logger, root = logging.getLogger("crdiff"), logging.getLogger()
    if logger.getEffectiveLevel() > logging.WARNING:
        logger.setLevel(logging.WARNING)
    lost = root.handlers and all(isinstance(one, logging.NullHandler) for one in root.handlers)
    if lost and not logger.handlers:
        theirs = getattr(sys.modules.get("modules.logger"), "log", None)
        for handler in getattr(theirs, "handlers", None) or [logging.StreamHandler()]:
            logger.addHandler(handler)


def make_adapter() -> Adapter:
    """The adapter for this process; imports only what it needs of the host."""
    show_notices()
    if has_unet_patcher():
        from .forge import ForgeAdapter

        return ForgeAdapter()
    if there("modules.sd_samplers_cfg_denoiser"):
        from .a1111 import A1111Adapter

        return A1111Adapter()
    if there("modules.processing_diffusers") and there("modules.modeldata"):
        from .diffusers_host import DiffusersAdapter

        return DiffusersAdapter()
    from .no_host import NoAdapter

    return NoAdapter()
