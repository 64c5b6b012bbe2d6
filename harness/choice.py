"""The core's decision as the harness asks for it: a k that was not given is the stored entry's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crdiff_ext.decide import Decision, decide
from crdiff_ext.families import Family
from crdiff_ext.presets import Preset
from crdiff_ext.settings import K_DEFAULT, Ratios, Settings
from harness.config import Size


def choose(
    family: Family,
    size: Size,
    presets: Sequence[Preset],
    *,
    ratios: Ratios | None = None,
    k: float | None = None,
    mode: str = "auto",
) -> Decision:
    """Decide for ``size`` with ``k``, or (None) with the k that the stored ratios were found with.

    Without stored ratios and without a given k it is the paper's 1.5. Raises CRDiffError.
    """
    if ratios is not None:
        family.check(ratios)
    settings = Settings(mode=mode, ratios=ratios, k=K_DEFAULT if k is None else k)
    decision = decide(family, *size, settings, presets)
    if k is not None or decision.preset is None or decision.preset.k == settings.k:
        return decision
    own = decision.preset.k
    decision = decide(family, *size, replace(settings, k=own), presets)
    return replace(decision, sentence=f"{decision.sentence}; k = {own:g} is stored with them")
