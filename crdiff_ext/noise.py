"""torch's global random numbers, so that two passes of one UNet call can draw the same ones."""

from __future__ import annotations

import torch


class Noise:
    """The state of torch's global generators now: the CPU's and the current CUDA device's.

    What draws inside a UNet (reference-only ControlNet, dropout of an extension's) would otherwise
    give the dense and the pruned pass different noise, and amplification would take the difference
    for the effect of pruning.
    """

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state() if cuda else None

    def again(self) -> None:
        """Set the generators back to this state."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
