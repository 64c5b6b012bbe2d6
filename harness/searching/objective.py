"""What a state is worth: images of captions, drawn and scored batch by batch, kept in a store.

An image's batch belongs to its key (see :mod:`harness.plan`), so batches are fixed: captions are
shuffled once, by the seed, and cut into them. What changes from trial to trial is the order in
which the batches are visited.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from crdiff_ext.schedule import State
from harness.config import Size, image_seed
from harness.methods import DENSE, Drawing
from harness.plan import Batch, Item, Sampling
from harness.prompts import Prompt
from harness.store import Store

if TYPE_CHECKING:
    from harness.execute import Draws


class Reward(Protocol):
    """Says how well images match their captions; higher is better."""

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """Float [n]."""
        ...


class Objective(Protocol):
    """Values of a state, one an item; items come in fixed batches."""

    batches: tuple[tuple[int, ...], ...]

    def values(self, state: State, batch: int) -> np.ndarray:
        """Rewards of the batch's items, in their order. Raises CRDiffError if drawing fails."""
        ...


@dataclass
class Tally:
    """What evaluating took: images drawn and found stored; seconds of drawing and scoring.

    ``cpu``: the same in seconds of the CPU, all threads: unlike ``seconds``, other processes on the
    machine do not change them. ``writing``: CPU seconds of keeping images, beside the drawing.
    """

    drawn: int = 0
    stored: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    writing: float = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count what is inside as drawing and scoring."""
        started, cpu, written = time.perf_counter(), time.process_time(), self.writing
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.cpu += time.process_time() - cpu - (self.writing - written)


@dataclass(frozen=True)
class Shot:
    """One image to be judged: its caption and its seed."""

    text: str
    seed: int


def items_of(texts: Sequence[str], seed: int, seeds: int = 1, first: int = 0) -> list[Shot]:
    """``seeds`` images of each caption, every one with noise of its own.

    ``first``: number of the first image, so that two sets (search, held out) share no noise.
    """
    pairs = [text for text in texts for _ in range(seeds)]
    return [Shot(text, image_seed(seed, first + i)) for i, text in enumerate(pairs)]


@dataclass
class Drawn:
    """Rewards of images that a painter draws; what the store has is not drawn again.

    Args:
        painter: draws batches; see :class:`harness.generate.Painter`.
        store: where images are kept, or None.
        items: what is drawn; ``sampling.batch`` of them together.
    """

    painter: Draws
    reward: Reward
    sampling: Sampling
    size: Size
    items: Sequence[Shot]
    store: Store | None = None
    tally: Tally = field(default_factory=Tally)
    batches: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        order = list(range(len(self.items)))
        random.Random(f"batches/{self.sampling.seed}").shuffle(order)
        step = self.sampling.batch
        self.batches = tuple(tuple(order[i : i + step]) for i in range(0, len(order), step))
        # Images are written while the next ones are drawn: waiting for a disk costs no time then.
        self._writer = ThreadPoolExecutor(1, "crdiff-store")
        self._writing: list[Future[None]] = []

    def values(self, state: State, batch: int) -> np.ndarray:
        """Rewards [len(batches[batch])], in the batch's order."""
        images = self.images(state, batch)
        texts = [self.items[i].text for i in self.batches[batch]]
        with self.tally.working():
            return np.asarray(self.reward.score(images, texts), dtype=float)

    def images(self, state: State, batch: int) -> list[Image.Image]:
        """The batch's images, from the store if it has all of them."""
        planned = self._planned(state, batch)
        if self.store is not None and all(item.key in self.store for item in planned.items):
            self.tally.stored += len(planned.items)
            return [self.store.load(item.key) for item in planned.items]
        with self.tally.working():
            images, seconds = self.painter.draw(planned)
        self.tally.drawn += len(images)
        if self.store is not None:
            self._raise_failed(wait=len(self._writing) > 4)
            self._writing.append(self._writer.submit(self._keep, planned, images, seconds))
        return images

    def finish(self) -> None:
        """Wait until every image is written. Raises what writing raised."""
        self._raise_failed(wait=True)

    def _raise_failed(self, wait: bool) -> None:
        for writing in [one for one in self._writing if wait or one.done()]:
            self._writing.remove(writing)
            writing.result()

    def _keep(self, planned: Batch, images: Sequence[Image.Image], seconds: float) -> None:
        assert self.store is not None
        started = time.thread_time()
        for item, image in zip(planned.items, images, strict=True):
            if item.key not in self.store:
                self.store.add(item.spec, image, seconds)
        self.tally.writing += time.thread_time() - started

    def _planned(self, state: State, batch: int) -> Batch:
        dense = state.is_dense
        drawing = DENSE if dense else Drawing("amplified", state.ratios, state.k)
        members = self.batches[batch]
        made = []
        for place, i in enumerate(members):
            one = self.items[i]
            spec = {
                **self.sampling.key_fields(),
                "method": drawing.key_fields(),
                "prompt": one.text,
                "seed": one.seed,
                "height": self.size.height,
                "width": self.size.width,
                "batch": {"size": len(members), "place": place},
            }
            made.append(Item(i, Prompt(str(i), one.text), one.seed, spec))
        return Batch(self.size, drawing, tuple(made))


def all_values(objective: Objective, state: State) -> np.ndarray:
    """Rewards of every item [n], in the items' order."""
    n = sum(map(len, objective.batches))
    values = np.full(n, np.nan)
    for number, members in enumerate(objective.batches):
        values[list(members)] = objective.values(state, number)
    return values
