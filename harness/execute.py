"""Carry out a plan: draw what is missing, batch by batch, into the store."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from harness.generate import resized
from harness.plan import Batch, Plan
from harness.store import Store, pixels_sha256

log = logging.getLogger(__name__)


class Draws(Protocol):
    """What :class:`harness.generate.Painter` does."""

    def draw(self, batch: Batch) -> tuple[list[Image.Image], float]:
        """The batch's images and the seconds an image took."""
        ...


@dataclass
class Tally:
    """What one execution did: images drawn, scaled, found stored."""

    drawn: int = 0
    scaled: int = 0
    stored: int = 0


def missing_batches(plan: Plan, store: Store) -> list[Batch]:
    """Batches with at least one image that is not stored."""
    return [batch for batch in plan if any(item.key not in store for item in batch.items)]


def execute(plan: Plan, store: Store, make_painter: Callable[[], Draws]) -> Tally:
    """Draw every missing batch; ``make_painter`` is called only if there is one.

    Interrupted at any moment, at most the batch at hand is drawn again the next time.
    """
    todo = missing_batches(plan, store)
    total = sum(len(batch.items) for batch in plan)
    tally = Tally(stored=total - sum(len(batch.items) for batch in todo))
    if not todo:
        return tally
    painter: Draws | None = None
    show = sys.stderr.isatty()
    count = sum(len(batch.items) for batch in todo)
    with tqdm(total=count, unit="image", disable=not show, smoothing=0.1) as bar:
        for position, batch in enumerate(todo):
            bar.set_description(describe(batch), refresh=False)
            if batch.sources:
                _scale(batch, store)
                tally.scaled += len(batch.items)
            else:
                painter = painter or make_painter()
                _draw(batch, store, painter)
                tally.drawn += len(batch.items)
            bar.update(len(batch.items))
            if not show:
                _log_finished(batch, todo[position + 1 : position + 2], tally, count)
    return tally


def describe(batch: Batch) -> str:
    """Such as ``96x128 k=1.5 at 0.3 / 0.2 / 0.1``: for the progress bar."""
    drawing = batch.drawing
    told = f" (told {drawing.told_size})" if drawing.told_size else ""
    if drawing.kind == "amplified":
        by = f"{drawing.criterion.name} " if drawing.criterion else ""
        return f"{batch.size} {by}k={drawing.k:g} at {drawing.ratios}{told}"
    return f"{batch.size} {drawing.kind}{told}"


def _log_finished(batch: Batch, following: Sequence[Batch], tally: Tally, count: int) -> None:
    """In a log: one line when a drawing's last batch is done, instead of a bar."""
    if not following or (following[0].size, following[0].drawing) != (batch.size, batch.drawing):
        log.info("%s: done (%d of %d images)", describe(batch), tally.drawn + tally.scaled, count)


def _draw(batch: Batch, store: Store, painter: Draws) -> None:
    images, seconds = painter.draw(batch)
    for item, image in zip(batch.items, images, strict=True):
        row = store.row(item.key)
        if row is None:
            store.add(item.spec, image, seconds)
        elif row["pixels_sha256"] != pixels_sha256(image):
            log.warning(
                "%s, %s: drawn again, the image differs from the stored one, which is kept; "
                "this machine does not repeat itself exactly",
                describe(batch),
                item.prompt.name,
            )


def _scale(batch: Batch, store: Store) -> None:
    """Scale stored images. The time is the source's and the scaling's, as an artist would wait."""
    for item, source in zip(batch.items, batch.sources, strict=True):
        if item.key in store:
            continue
        row = store.row(source)
        assert row is not None, "sources are drawn first"
        started = time.perf_counter()
        image = resized(store.load(source), batch.size.height, batch.size.width)
        store.add(item.spec, image, row["seconds"] + time.perf_counter() - started)
