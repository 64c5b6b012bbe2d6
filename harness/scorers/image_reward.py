"""ImageReward: how well people would like an image for its caption."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from harness.scorers.base import ImageScorer, Needed, batches, joined, prepare
from harness.stats import Array

HUB = "huggingface.co/THUDM/ImageReward"
CHECKPOINT = Needed("image-reward", ("ImageReward.pt",), HUB)
MED_CONFIG = Needed("image-reward", ("med_config.json",), HUB)
VOCABULARY = Needed("bert-base-uncased", ("vocab.txt",), "huggingface.co/bert-base-uncased")

LONGEST = 35
"""Tokens that a caption is cut to."""


class ImageReward(ImageScorer):
    """The official checkpoint in transformers' BLIP."""

    name = "image-reward"
    label = "ImageReward"
    higher_is_better = True
    what = (
        "ImageReward v1.0: a network that learnt from people which of several images they prefer "
        "for a caption; standardised, so that 0 is an average image."
    )
    packages: ClassVar[tuple[str, ...]] = (*ImageScorer.packages, "transformers", "torchvision")

    def needed(self) -> Sequence[Needed]:
        """Checkpoint, configuration, BERT's vocabulary."""
        return (CHECKPOINT, MED_CONFIG, VOCABULARY)

    def details(self) -> dict[str, Any]:
        """Which network runs it."""
        return {"backbone": "ImageReward v1.0, BLIP ViT-L/16 and BERT-base, transformers' modules"}

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Rewards float64 [n]: float32 of the network, widened."""
        import torch

        parts, done = [], 0
        for batch in batches(images):
            texts = list(captions[done : done + len(batch)])
            done += len(batch)
            pixels = torch.stack([self._pixels(prepare(one, self.protocol)) for one in batch])
            tokens = self._tokenizer(
                texts,
                padding="max_length",
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            inputs = (pixels, tokens["input_ids"], tokens["attention_mask"])
            with torch.inference_mode():
                rewards = self._network(*(tensor.to(self.device) for tensor in inputs))
            parts.append(rewards.cpu().numpy())
        return joined(parts)

    @cached_property
    def _network(self) -> Any:
        from harness.scorers.blip import load_reward_network

        self.require()
        checkpoint, med_config = (file.find(self.weights) for file in (CHECKPOINT, MED_CONFIG))
        assert checkpoint is not None
        assert med_config is not None
        return load_reward_network(checkpoint, med_config).to(self.device)

    @cached_property
    def _tokenizer(self) -> Any:
        """bert-base-uncased with BLIP's two tokens, [DEC] and [ENC]."""
        self.require()
        vocabulary = VOCABULARY.find(self.weights)
        assert vocabulary is not None
        return bert_tokenizer(vocabulary)

    @cached_property
    def _pixels(self) -> Any:
        """PIL image -> float32 [3, s, s]: short side to s, the middle cut out, CLIP's scaling."""
        from harness.scorers.preprocessing import clip_pixels

        return clip_pixels(self._network.vision.config.image_size)

    def close(self) -> None:
        """Let go of the network."""
        for name in ("_network", "_tokenizer", "_pixels"):
            self.__dict__.pop(name, None)


def bert_tokenizer(vocabulary: Path) -> Any:
    """BERT's tokenizer with these words, lower case, with [DEC] and [ENC] after the others."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(vocabulary), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer
