"""One worker in a process of its own: `child.py FOLDER NUMBER SAMPLER SECONDS [PROFILE]`.

Each batch takes SECONDS, so that a test can kill it in the middle. "tiny" is a space of 21 states.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

# By file: an installed package may be called `tests`.
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from synthetic import Synthetic, config, work  # noqa: E402

from crdiff_ext.schedule import Schedule, State  # noqa: E402

TINY = Schedule(
    start=(0.001,) * 3, high=0.002, uniform=True, step=0.002, step_floor=0.002, iterations=8
)


class Slow(Synthetic):
    def values(self, state: State, batch: int) -> np.ndarray:
        time.sleep(float(sys.argv[4]))
        print(len(self.asked), flush=True)
        return super().values(state, batch)


if __name__ == "__main__":
    folder, number, sampler = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    more = {"schedule": TINY} if "tiny" in sys.argv else {}
    work(folder, config(sampler, 12, **more), number, Slow())
