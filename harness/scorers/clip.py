"""CLIP score, and the CLIP image embeddings that others build on, by open_clip from local files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import ImageScorer, Needed, Scorer, batches, joined, prepare
from harness.stats import Array

DEFAULT_BACKBONE = "ViT-B-32-quickgelu"
OPENAI = {
    "ViT-B-32-quickgelu": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16-quickgelu": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14-quickgelu": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336-quickgelu": "timm/vit_large_patch14_clip_336.openai",
}
"""open_clip's name -> where OpenAI's weights are in its format. They need the quickgelu names."""
FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def clip_weights(backbone: str) -> Needed:
    """The one file of a backbone: clip/<backbone>/ below the weights folder."""
    hub = OPENAI.get(backbone)
    source = f"huggingface.co/{hub}" if hub else "the hub page that open_clip names for it"
    return Needed(f"clip/{backbone}", FILES, source)


class Backbone:
    """An open_clip model in evaluation mode, float32, with its own preprocessing and tokenizer."""

    def __init__(self, backbone: str, weights: Path, device: str) -> None:
        """Load it. Raises CRDiffError when the file is missing or is another model's."""
        import open_clip

        file = clip_weights(backbone).find(weights)
        assert file is not None, "scorers ask for their files first"
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(
                backbone, pretrained=str(file), device=device
            )
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CRDiffError(
                f"{file} is not {backbone} as open_clip stores it: get it again, or put it into "
                "the folder of its own backbone"
            ) from error
        self.model.eval().requires_grad_(False)
        self.tokenize = open_clip.get_tokenizer(backbone)
        self.device = device

    def images(self, images: Sequence[Image.Image]) -> Any:
        """PIL images -> L2-normalised embeddings, float32 [n, d]."""
        import torch

        pixels = torch.stack([self.preprocess(image) for image in images])
        with torch.inference_mode():
            return self.model.encode_image(pixels.to(self.device), normalize=True)

    def texts(self, texts: Sequence[str]) -> Any:
        """Captions, cut to 77 tokens -> L2-normalised embeddings, float32 [n, d]."""
        import torch

        tokens = self.tokenize(list(texts)).to(self.device)
        with torch.inference_mode():
            return self.model.encode_text(tokens, normalize=True)


class ClipScore(ImageScorer):
    """Cosine of the image's and the caption's embeddings."""

    name = "clip-score"
    label = "CLIP score"
    higher_is_better = True
    what = (
        "Cosine of CLIP's embeddings of image and caption, as it is (not times 100, not cut off "
        "at 0). It depends on the backbone, which is recorded; the paper does not state its own."
    )
    packages: ClassVar[tuple[str, ...]] = (*ImageScorer.packages, "open-clip-torch", "torchvision")

    def __init__(
        self, weights: Path, device: str, protocol: str, backbone: str = DEFAULT_BACKBONE
    ) -> None:
        super().__init__(weights, device, protocol)
        self.backbone = backbone
        if backbone != DEFAULT_BACKBONE:
            self.name = f"{type(self).name}:{backbone}"

    @classmethod
    def with_setting(cls, setting: str, weights: Path, device: str, protocol: str) -> Scorer:
        """``clip-score:ViT-L-14-quickgelu``. Raises CRDiffError for a name open_clip lacks."""
        import open_clip

        known = open_clip.list_models()
        if setting not in known:
            near = [name for name in known if setting.lower() in name.lower()][:5]
            near = near or list(OPENAI)
            raise CRDiffError(
                f"{setting!r} is no backbone of open_clip: use one such as {', '.join(near)}"
            )
        return cls(weights, device, protocol, setting)

    def needed(self) -> Sequence[Needed]:
        """The backbone's weights."""
        return (clip_weights(self.backbone),)

    def details(self) -> dict[str, Any]:
        """The backbone, and what the number is."""
        return {"backbone": f"CLIP {self.backbone}, open_clip", "scale": "cosine"}

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Cosines float64 [n]."""
        parts, done = [], 0
        for batch in batches(images):
            texts = captions[done : done + len(batch)]
            done += len(batch)
            seen = self._clip.images([prepare(image, self.protocol) for image in batch])
            parts.append((seen.double() * self._clip.texts(texts).double()).sum(-1).cpu().numpy())
        return joined(parts)

    @cached_property
    def _clip(self) -> Backbone:
        self.require()
        return Backbone(self.backbone, self.weights, self.device)

    def close(self) -> None:
        """Let go of the network."""
        self.__dict__.pop("_clip", None)
