"""What `crdiff search` says while it works and at its end."""

from __future__ import annotations

import logging
import sys
import time

from optuna.trial import FrozenTrial
from tqdm import tqdm

from harness.searching.objective import Tally
from harness.searching.outcome import Outcome
from harness.searching.run import SearchConfig, Worker
from harness.searching.sampler import best_trial, counts, state_of, was_stopped

log = logging.getLogger(__name__)


class Progress:
    """A bar of states with the best score; a line each in a log."""

    def __init__(self, config: SearchConfig) -> None:
        self.total = config.schedule.iterations + config.schedule.baseline
        self.bar = tqdm(total=self.total, unit="state", disable=not sys.stderr.isatty())

    def __call__(self, worker: Worker) -> None:
        """After a trial."""
        best = best_trial(worker.study.get_trials(deepcopy=False))
        score = "" if best is None or best.value is None else f"{best.value:.3f}"
        mine = [trial for trial in worker.mine() if counts(trial)]
        if self.bar.disable:
            told = _described(worker, mine[-1])
            log.info("state %d of at most %d, %s; best %s", len(mine), self.total, told, score)
            return
        self.bar.n = len(mine)
        if score:
            self.bar.set_postfix(best=score, refresh=True)


def _described(worker: Worker, trial: FrozenTrial) -> str:
    state = state_of(worker.schedule, trial)
    if trial.value is None:
        return f"{state}: failed"
    return f"{state}: {trial.value:.3f}{' (given up early)' if was_stopped(trial) else ''}"


class Clock:
    """What a search costs beyond drawing and scoring, from its making on: model loading left out.

    By the clock and in CPU seconds of all threads; only the latter say the same on a busy machine.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def cost(self, *tallies: Tally) -> dict[str, float]:
        """For search.json: seconds so far, and how many of them the ``tallies`` account for."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        spent, spent_cpu = sum(t.seconds for t in tallies), sum(t.cpu for t in tallies)
        return {
            "seconds": round(wall, 2),
            "drawing_and_scoring": round(spent, 2),
            "share_beyond": round(_beyond(wall, spent), 4),
            "cpu_seconds": round(cpu, 2),
            "cpu_drawing_and_scoring": round(spent_cpu, 2),
            "cpu_share_beyond": round(_beyond(cpu, spent_cpu), 4),
        }


def _beyond(seconds: float, spent: float) -> float:
    return 1 - spent / seconds if seconds > 0 else 0.0


def tell(worker: Worker, outcome: Outcome, cost: dict[str, float], drawn: int) -> None:
    """Say what was found, how it held up, and what this process spent."""
    trials = [t for t in worker.study.get_trials(deepcopy=False) if counts(t)]
    stopped = sum(map(was_stopped, trials))
    size = f"{worker.config.height}x{worker.config.width}"
    dense = "not evaluated" if outcome.dense is None else f"{outcome.dense:.3f}"
    print(f"{size}: {len(trials)} states, {stopped} of them given up early")
    if not outcome.beats_dense:
        print(f"search score: dense's {dense} was not beaten, so there are no ratios to store")
    else:
        print(f"best ratios {outcome.best}")
        print(f"search score {outcome.score:.3f} (dense {dense})")
    if outcome.held_out is not None:
        held, difference = outcome.held_out, outcome.held_out["difference"]
        print(
            f"held out ({held['captions']} captions): {held['score']:.3f}, difference to dense "
            f"{difference['estimate']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        )
    if outcome.refuted:
        print("worse than dense on captions that took no part, so there are no ratios to store")
    elif outcome.held_out is not None and not outcome.confirmed:
        print("not confirmed: on captions that took no part, the gain is not told apart from none")
    print(f"reward: {worker.config.reward}")
    if drawn:
        print(
            f"this process drew {drawn} images in {cost['seconds']:.1f} s "
            f"({cost['cpu_seconds']:.1f} s of CPU); beyond drawing and scoring: "
            f"{cost['share_beyond']:.1%} ({cost['cpu_share_beyond']:.1%} of CPU)"
        )
