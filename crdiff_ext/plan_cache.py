"""One bounded cache of thresholds: a float a pool, no tensors and no references to modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from .pruning import PrunePlan


class PlanCache:
    """Plans by key, the least recently used dropped first.

    A key must name everything that thresholds depend on: the weights' identity and state, the
    LoRAs merged into them, their dtype, and the ratios. It must not name where they are: moving a
    model between devices changes no threshold.

    Args:
        size: plans kept, at least 1.
    """

    def __init__(self, size: int = 32) -> None:
        self._size = max(1, size)
        self._plans: OrderedDict[Hashable, PrunePlan] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, compute: Callable[[], PrunePlan]) -> PrunePlan:
        """The plan under ``key``; ``compute`` makes it when it is not there. Its errors pass."""
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = compute()
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > self._size:
                self._plans.popitem(last=False)
        return plan

    def __contains__(self, key: Hashable) -> bool:
        return key in self._plans

    def __len__(self) -> int:
        return len(self._plans)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._plans.clear()
