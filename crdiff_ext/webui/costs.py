"""What acting costs, in words: for the panel, the settings page and the API."""

from __future__ import annotations

from ..amplify import FOLDED, expected_cost, reuse_interval
from ..settings import AMPLIFICATIONS, K_DEFAULT

_ORDINALS = {2: "2nd", 3: "3rd"}


def of(amplification: str, k: float) -> str:
    """Such as "x2.0 UNet time while acting"; ``k`` counts, because at 1 one pass is enough."""
    times = factor(amplification, k)
    every = reuse_interval(amplification)
    if k == 1:  # the pruned model alone, whatever the way
        return f"{times} UNet time while acting"
    if amplification == FOLDED:
        return f"{times} folded, approximate"
    if every > 1:
        nth = _ORDINALS.get(every, f"{every}th")
        return f"{times} approximate, dense pass at every {nth} step"
    return f"{times} UNet time while acting"


def factor(amplification: str, k: float) -> str:
    """Such as "x1.5": what the UNet's time is multiplied by."""
    return f"x{expected_cost(amplification, k):.2f}".removesuffix("0")


def all_choices() -> str:
    """The cost of each choice at the usual k, in a line."""
    each = ", ".join(f"{name} {factor(name, K_DEFAULT)}" for name in AMPLIFICATIONS)
    return f"UNet time while acting: {each}; all but exact are approximate"
