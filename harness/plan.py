"""From sizes, methods and prompts to the list of batches to draw: pure, before any image.

A *cell* is one method at one size over all prompts. Cells whose drawings are equal share images.
A *batch* is a fixed group of prompts of one drawing. The number of images drawn together and an
image's place among them can change the last bits of its pixels (matrix products treat rows in
groups), so both belong to the key, and an unfinished batch is drawn again as it was planned: a
resumed run ends with the same images as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from crdiff_ext.decide import Decision
from harness.config import DRAWING_VERSION, Size, image_seed
from harness.methods import DENSE, Drawing, Method
from harness.prompts import Prompt
from harness.store import key_of


@dataclass(frozen=True)
class Sampling:
    """What all images of a run share; with ``origins``: where each value comes from."""

    model_hash: str
    steps: int
    guidance: float
    negative: str
    scheduler: str
    scheduler_sha256: str
    dtype: str
    device: str
    seed: int
    batch: int
    more_seeds: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, the first one first."""
        return (self.seed, *self.more_seeds)

    def key_fields(self) -> dict[str, Any]:
        """The shared part of every image's key (seed and batch are each image's own)."""
        return {
            "model": self.model_hash,
            "steps": self.steps,
            "guidance": float(self.guidance),
            "negative_prompt": self.negative,
            "scheduler": {"name": self.scheduler, "sha256": self.scheduler_sha256},
            "dtype": self.dtype,
            "device": self.device.partition(":")[0],
            "code": {"drawing": DRAWING_VERSION},
        }


@dataclass(frozen=True)
class Cell:
    """One method at one size. ``forced``: acts although Auto would leave this size alone."""

    size: Size
    method: Method
    decision: Decision
    drawing: Drawing
    forced: bool = False

    @property
    def id(self) -> str:
        """Such as ``96x128/crdiff``: unique within a run."""
        return f"{self.size}/{self.method.name}"


@dataclass(frozen=True)
class Item:
    """One image to be: its prompt, and the specification whose hash is its key.

    ``index`` is its place in its cell: all prompts with the first seed, then with the next one.
    """

    index: int
    prompt: Prompt
    seed: int
    spec: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """The image's key in the store."""
        return key_of(self.spec)


@dataclass(frozen=True)
class Batch:
    """Images that are drawn together, or scaled from ``sources`` (keys, in the items' order)."""

    size: Size
    drawing: Drawing
    items: tuple[Item, ...]
    sources: tuple[str, ...] = ()


def _batch(size: int, place: int) -> dict[str, Any]:
    return {"batch": {"size": size, "place": place}}


class Plan:
    """All batches of a run. Iterating yields each distinct drawing once, sources first."""

    def __init__(
        self, cells: Sequence[Cell], prompts: Sequence[Prompt], sampling: Sampling
    ) -> None:
        self.cells = list(cells)
        self.prompts = list(prompts)
        self.sampling = sampling
        self._made: dict[tuple[Size, Drawing], list[Batch]] = {}
        for cell in self.cells:
            if cell.drawing.source_size is not None:
                self._batches(cell.drawing.source_size, DENSE)
            self._batches(cell.size, cell.drawing)

    def __iter__(self) -> Iterator[Batch]:
        for batches in self._made.values():
            yield from batches

    def items(self, cell: Cell) -> list[Item]:
        """The cell's images in the order of the prompts, seed by seed."""
        return [item for batch in self._batches(cell.size, cell.drawing) for item in batch.items]

    def same_as(self, cell: Cell) -> str | None:
        """The id of the first cell that has this cell's images, if it is another one."""
        for other in self.cells:
            if (other.size, other.drawing) == (cell.size, cell.drawing):
                return None if other is cell else other.id
        return None

    def _batches(self, size: Size, drawing: Drawing) -> list[Batch]:
        made = self._made.get((size, drawing))
        if made is None:
            made = list(self._make(size, drawing))
            self._made[size, drawing] = made
        return made

    def _make(self, size: Size, drawing: Drawing) -> Iterator[Batch]:
        if drawing.source_size is None:
            for number in range(len(self.sampling.seeds)):
                yield from self._seed_batches(size, drawing, number)
            return
        for batch in self._batches(drawing.source_size, DENSE):
            scaled = [
                self._item(size, drawing, source.index, source.prompt, {"source": source.key})
                for source in batch.items
            ]
            yield Batch(size, drawing, tuple(scaled), tuple(item.key for item in batch.items))

    def _seed_batches(self, size: Size, drawing: Drawing, number: int) -> Iterator[Batch]:
        """The batches of seed ``number`` (from 0): never of two seeds, so that seeds can be added.

        Keys of the first seed do not depend on how many there are.
        """
        first = number * len(self.prompts)
        for start in range(0, len(self.prompts), self.sampling.batch):
            group = self.prompts[start : start + self.sampling.batch]
            items = [
                self._item(size, drawing, first + start + place, prompt, _batch(len(group), place))
                for place, prompt in enumerate(group)
            ]
            yield Batch(size, drawing, tuple(items))

    def _item(
        self, size: Size, drawing: Drawing, index: int, prompt: Prompt, more: dict[str, Any]
    ) -> Item:
        number, place = divmod(index, len(self.prompts))
        seed = image_seed(self.sampling.seeds[number], place, number)
        spec = {
            **self.sampling.key_fields(),
            "method": drawing.key_fields(),
            "prompt": prompt.text,
            "seed": seed,
            "height": size.height,
            "width": size.width,
            **more,
        }
        return Item(index, prompt, seed, spec)
