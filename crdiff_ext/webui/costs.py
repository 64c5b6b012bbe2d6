"""What acting costs, in words: for the panel, the settings page and the API."""

from __future__ import annotations

from ..amplify import FOLDED, expected_cost, reuse_interval
from ..settings import AMPLIFICATIONS, K_DEFAULT

_ORDINALS = {2: "2nd", 3: "3rd"}


def of(amplification: str, k: float) -> str:
    """Such as "x2.0 UNet time while acting"; ``k`` counts, because at 1 one pass is enough."""
    cost = expected_cost(amplification, k)
    times = f"x{cost:.2f}".removesuffix("0")
    every = reuse_interval(amplification)
    if k == 1:  # the pruned model alone, whatever the way
        return f"{times} UNet time while acting"
    if amplification == FOLDED:
        return f"{times} folded, approximate"
    if every > 1:
        nth = _ORDINALS.get(every, f"{every}th")
        return f"{times} approximate, dense pass at every {nth} step"
    return f"{times} UNet time while acting"


def all_choices() -> str:
    """The cost of each choice at the usual k, in a line."""
    return "; ".join(f"{name}: {of(name, K_DEFAULT)}" for name in AMPLIFICATIONS)
