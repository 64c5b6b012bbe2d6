"""One training loop for every stage: data-parallel on the CPU, seeded by step, resumable.

Small convolutions use one core better than two, so each worker process has one thread and the
gradients are averaged over workers. Random numbers depend on (seed, step, rank) alone: a run that
is killed and resumed draws the batches that an unbroken one would have drawn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

WORKERS = 2
SAVE_SECONDS = "CRDIFF_TRAINING_SAVE_SECONDS"
"""The environment variable that says how often a checkpoint is written; 120 s without it."""
_LOG_EVERY_STEPS = 50


class Trainee(Protocol):
    """What a stage trains."""

    @property
    def module(self) -> nn.Module:
        """The network whose weights are trained."""

    def loss(self, step: int, rank: int, generator: torch.Generator) -> Tensor:
        """Scalar loss of this worker's batch at ``step``."""


@dataclass(frozen=True)
class Stage:
    """How long and how fast a stage trains; ``decay`` is the share of steps with a falling rate."""

    name: str
    steps: int
    learning_rate: float
    seed: int
    warmup: int = 60
    decay: float = 0.5
    ema: float = 0.998
    weight_decay: float = 1e-2

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, linear decay to 2 %."""
        falling = (1 - step / self.steps) / self.decay
        return (
            self.learning_rate * min(1.0, (step + 1) / self.warmup) * max(0.02, min(1.0, falling))
        )


def finished(stage: Stage, folder: Path) -> bool:
    """Whether ``stage`` has run to its end in ``folder``."""
    return _result(stage, folder).exists()


def load_result(stage: Stage, folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a finished stage."""
    state: dict[str, Tensor] = torch.load(_result(stage, folder), weights_only=True)["ema"]
    return state


def core_seconds(stage: Stage, folder: Path) -> float:
    """CPU seconds that all workers of a finished stage spent."""
    return float(torch.load(_result(stage, folder), weights_only=True)["core_seconds"])


def train(stage: Stage, folder: Path, build: Callable[[], Trainee]) -> None:
    """Runs ``stage`` to its end, from its last checkpoint if there is one.

    ``build`` is called in every worker and must be importable (no lambda).
    """
    if finished(stage, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / f"{stage.name}.rendezvous"
    rendezvous.unlink(missing_ok=True)
    mp.spawn(_worker, args=(stage, folder, build, str(rendezvous)), nprocs=WORKERS)
    rendezvous.unlink(missing_ok=True)


def _result(stage: Stage, folder: Path) -> Path:
    return folder / f"{stage.name}.final.pt"


def _worker(
    rank: int, stage: Stage, folder: Path, build: Callable[[], Trainee], rendezvous: str
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(stage.seed)  # the same initial weights in every worker
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORKERS
    )
    run = _Run(stage, folder, build(), rank)
    run.resume()
    run.to_the_end()
    dist.destroy_process_group()


class _Run:
    def __init__(self, stage: Stage, folder: Path, trainee: Trainee, rank: int) -> None:
        self.stage, self.folder, self.trainee, self.rank = stage, folder, trainee, rank
        self.parameters = [p for p in trainee.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=stage.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=stage.weight_decay,
            fused=True,
        )
        self.ema = {k: v.detach().clone() for k, v in trainee.module.state_dict().items()}
        self.step, self.spent = 0, 0.0
        self.average: float | None = None
        self.saved_at = self.started_at = time.monotonic()
        self.cpu_start = time.process_time()
        self.save_every = float(os.environ.get(SAVE_SECONDS, 120))

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.stage.name}.checkpoint.pt"

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.trainee.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.step = state["ema"], state["step"]
        self.spent = state["core_seconds"]

    def save(self, path: Path) -> None:
        state = {
            "module": self.trainee.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "core_seconds": self.spent + WORKERS * (time.process_time() - self.cpu_start),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)
        self.saved_at = time.monotonic()

    def to_the_end(self) -> None:
        self.trainee.module.train()
        while self.step < self.stage.steps:
            loss = self._advance()
            self.average = loss if self.average is None else 0.98 * self.average + 0.02 * loss
            if self.rank == 0:
                self._log()
                if time.monotonic() - self.saved_at > self.save_every:
                    self.save(self.checkpoint)
        if self.rank == 0:
            self.save(_result(self.stage, self.folder))
            self.checkpoint.unlink(missing_ok=True)

    def _advance(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.rate(self.step)
        number = (self.stage.seed * 1_000_003 + self.step) * WORKERS + self.rank
        generator = torch.Generator().manual_seed(number)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.trainee.loss(self.step, self.rank, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_ema()
        return loss.item()

    def _average_gradients(self) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= WORKERS
        offset = 0
        for parameter in self.parameters:
            n = parameter.numel()
            parameter.grad = flat[offset : offset + n].view_as(parameter)
            offset += n

    @torch.no_grad()
    def _update_ema(self) -> None:
        keep = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.trainee.module.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - keep)
            else:
                self.ema[name].copy_(value)

    def _log(self) -> None:
        if self.step % _LOG_EVERY_STEPS == 0 or self.step == self.stage.steps:
            seconds = time.monotonic() - self.started_at
            print(
                f"{self.stage.name}: step {self.step}/{self.stage.steps}, loss {self.average:.4f}, "
                f"rate {self.stage.rate(self.step):.1e}, {seconds:.0f} s",
                flush=True,
            )
