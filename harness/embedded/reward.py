"""The embedded reward and Frechet features: small networks trained on the same scenes.

Their roles are ImageReward's and Inception's; they are neither, and are never printed under those
names. The reward reads image and caption together (the caption's words attend to a grid of image
features, as in BLIP) and says how well they match; the features are those of a network that was
trained to name what a scene holds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.embedded.scenes import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SceneSpec,
    plural,
    render,
)
from harness.embedded.weights import embedded_model_dir

SHORT_SIDE = 64  # px: images are resized to this short side, keeping the aspect
FEATURES = 32
GRID = 8
_WIDTH = 96
_LONGEST = 18  # words
# what the feature network names: every coloured shape, every background, how many objects
ATTRIBUTES = len(COLOURS) * len(SHAPES) + len(BACKGROUNDS) + len(NUMBERS)
CELL_KINDS = len(COLOURS) * len(SHAPES) + len(BACKGROUNDS)


def _vocabulary() -> dict[str, int]:
    words = {"a", "on", "background", *COLOURS, *BACKGROUNDS, *SHAPES, *map(plural, SHAPES)}
    words |= {w for phrase in RELATIONS.values() for w in phrase.split()} | set(NUMBERS.values())
    return {word: i + 1 for i, word in enumerate(sorted(words))}


WORDS = _vocabulary()


def word_ids(captions: Sequence[str]) -> Tensor:
    """Word numbers int64 [n, 18], padded with 0; words outside the grammar count as padding."""
    ids = torch.zeros(len(captions), _LONGEST, dtype=torch.long)
    for i, text in enumerate(captions):
        for j, word in enumerate(text.split()[:_LONGEST]):
            ids[i, j] = WORDS.get(word, 0)
    return ids


def resized(image: Image.Image) -> Tensor:
    """float32 [3, h, w] in [-1, 1], short side 64, bicubic and antialiased."""
    scale = SHORT_SIDE / min(image.size)
    width, height = (max(SHORT_SIDE, round(side * scale)) for side in image.size)
    small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1


def _waves(side: int, width: int) -> Tensor:
    """Where each cell of a grid is, float32 [side * side, width]: sines of row and of column."""
    frequencies = torch.pi * 2.0 ** torch.linspace(-1, 2, width // 4)
    at = torch.linspace(0, 1, side)[:, None] * frequencies
    line = torch.cat([at.sin(), at.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return 0.5 * torch.cat([rows, columns], 2).flatten(0, 1)


def _block(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()


class RewardNet(nn.Module):
    """Match of image and caption (a logit), and features of the image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_block(3, 32, 2),
            *_block(32, 64, 2),
            *_block(64, 64, 1),
            *_block(64, _WIDTH, 2),
            *_block(_WIDTH, _WIDTH, 1),
            *_block(_WIDTH, _WIDTH, 1),
        )
        self.places = nn.Parameter(_waves(GRID, _WIDTH))
        self.words = nn.Embedding(len(WORDS) + 1, _WIDTH)
        self.positions = nn.Parameter(torch.randn(_LONGEST, _WIDTH) * 0.1)
        layer = nn.TransformerDecoderLayer(
            _WIDTH, 4, 2 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.joint = nn.TransformerDecoder(layer, 3, nn.LayerNorm(_WIDTH))
        self.match = nn.Linear(_WIDTH, 1)
        self.squeeze = nn.Linear(_WIDTH * 16, FEATURES)
        self.attributes = nn.Linear(FEATURES, ATTRIBUTES)
        self.cells = nn.Conv2d(_WIDTH, CELL_KINDS, 1)  # for training only: what is in each cell

    def grid(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w], short side 64 -> [n, 96, 8, 8], whatever the aspect."""
        return F.adaptive_avg_pool2d(self.stem(images), GRID)

    def logits(self, grid: Tensor, ids: Tensor) -> Tensor:
        """Grid [n, 96, 8, 8], word ids [n, m, 18] of m captions an image -> match logits [n, m]."""
        n, m, length = ids.shape
        seen = grid.flatten(2).transpose(1, 2) + self.places
        text = (self.words(ids) + self.positions).flatten(1, 2)
        # the captions of an image are read side by side, each blind to the others
        apart = torch.ones(m * length, m * length, dtype=torch.bool)
        for start in range(0, m * length, length):
            apart[start : start + length, start : start + length] = False
        read = self.joint(text, seen, tgt_mask=apart, tgt_key_padding_mask=ids.flatten(1) == 0)
        kept = (ids != 0).unsqueeze(-1)
        mean = (read.view(n, m, length, -1) * kept).sum(2) / kept.sum(2).clamp_min(1)
        return self.match(mean).squeeze(-1)

    def features(self, grid: Tensor) -> Tensor:
        """Grid [n, 96, 8, 8] -> features [n, 32]."""
        return self.squeeze(F.adaptive_avg_pool2d(grid, 4).flatten(1))


class EmbeddedReward:
    """The trained reward and features, on the CPU."""

    def __init__(self, net: RewardNet, mean: float, deviation: float) -> None:
        self.net = net.eval().requires_grad_(False)
        self.mean, self.deviation = mean, deviation

    @classmethod
    def load(cls, folder: Path | None = None) -> EmbeddedReward:
        """The reward that ships with the embedded model, or the one in ``folder``."""
        folder = folder or embedded_model_dir() / "reward"
        net = RewardNet()
        net.load_state_dict(load_file(folder / "reward.safetensors"))
        config = json.loads((folder / "config.json").read_text())
        return cls(net, config["mean"], config["deviation"])

    def _grids(self, images: Sequence[Image.Image]) -> Tensor:
        # one at a time: sizes may differ, and a score must not depend on its neighbours
        return torch.cat([self.net.grid(resized(image)[None]) for image in images])

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """Rewards float64 [n]: the match logit, standardised on real scenes (config.json)."""
        if not images:
            return np.empty(0)
        logits = self.net.logits(self._grids(images), word_ids(captions)[:, None])[:, 0]
        return (logits.double().numpy() - self.mean) / self.deviation

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Frechet features float64 [n, 32]."""
        return self.net.features(self._grids(images)).double().numpy()


REFERENCE_IMAGES = 512
"""Real renders that generated images are compared with."""


def reference_images(
    specs: Sequence[SceneSpec], height: int, width: int, n: int = 1024, seed: int = 0
) -> list[Image.Image]:
    """``n`` real renders of ``specs`` in turn, ``height`` x ``width``: a Frechet reference."""
    rng = random.Random(f"reference/{seed}")
    return [render(specs[i % len(specs)], height, width, rng) for i in range(n)]
