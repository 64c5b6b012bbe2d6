"""An objective for searches of ratios, and a search of it to its end."""

from __future__ import annotations

from crdiff_ext.anneal import Annealer
from crdiff_ext.settings import GROUPS, Ratios


def hill(ratios: Ratios) -> float:
    """A smooth objective with its top of 1 at (0.6, 0.2, 0.4)."""
    top = {"down": 0.6, "mid": 0.2, "up": 0.4}
    return 1 - sum((ratios.as_dict()[g] - top[g]) ** 2 for g in GROUPS)


def run(search: Annealer, steps: int = 10_000) -> Annealer:
    """Ask and tell until the search is done, or for ``steps``."""
    for _ in range(steps):
        if search.done:
            break
        search.tell(hill(search.ask().ratios))
    return search
