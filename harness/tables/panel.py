"""Which metrics and which rows a set of tables has: the paper's, or the embedded stand-ins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.config import Size
from harness.tables.curves import Curve
from harness.tables.layout import Head

EMBEDDED = "embedded"
STAND_IN = "stand-in, embedded model"

PAPER_HEADS = (
    Head("fid-pytorch", "fid", "FID", rises=False, per_image=False),
    Head("clip-score", "clip", "CLIP"),
    Head("image-reward", "image_reward", "ImageReward"),
    Head("pickscore", "pick_score", "PickScore"),
    Head("aesthetic", "aesthetic", "Aesthetic Score"),
)
"""The paper's columns, and the scorers that fill them."""
STAND_IN_HEADS = (
    Head("embedded_frechet", "", "embedded Fréchet distance", False, 1, per_image=False),
    Head("caption_check_all", "", "caption check: all facts"),
    Head("embedded_reward", "", "embedded reward"),
    Head("caption_check_facts", "", "caption check: facts"),
)


@dataclass(frozen=True)
class Panel:
    """Which metrics and which rows a set of tables has.

    ``reward`` is the metric of the tables that have one only. ``paper``: whether the paper's rows
    are in it. ``embedded``: the embedded model's sizes (unseen, native), or none.
    """

    heads: tuple[Head, ...]
    reward: Head
    paper: bool
    unseen: tuple[Size, ...] = ()
    native: Size | None = None
    block: str = ""
    curves: tuple[Curve, ...] = ()

    def places(self, rows: list[dict[str, Any]], sizes: tuple[Size, ...]) -> list[dict[str, Any]]:
        """The paper's rows if wanted, then the embedded model's ``sizes``."""
        own = [{"model": EMBEDDED, "size": str(size)} for size in sizes]
        return [*(rows if self.paper else ()), *own]

    def stage(self, paper: dict[str, Any]) -> list[tuple[str, Size, bool]]:
        """(model, size, paper's) of a table about one model at one size."""
        stages = [(paper["model"], Size.parse(paper["size"]), True)] if self.paper else []
        return stages + [(EMBEDDED, size, False) for size in self.unseen[:1]]
