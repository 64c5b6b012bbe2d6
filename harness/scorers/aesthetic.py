"""How an image looks, whatever its caption: LAION's aesthetic predictor, and v2.5 as an extra.

The paper's lowest mean (3.49) fits v2.5 better than LAION's predictor; it states neither. v2.5 is
AGPL-3.0 and is neither bundled nor installed by this project: it is used if it can be imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import ImageScorer, Needed, batches, joined, prepare
from harness.scorers.clip import Backbone, clip_weights
from harness.stats import Array

BACKBONE = "ViT-L-14-quickgelu"
PREDICTOR = Needed(
    "aesthetic",
    ("sac+logos+ava1-l14-linearMSE.pth",),
    "github.com/christophschuhmann/improved-aesthetic-predictor",
)
LAYERS = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
"""Linear layers by their place among the dropouts; there are no activations between them."""


class Aesthetic(ImageScorer):
    """LAION's predictor (v1, "improved-aesthetic-predictor")."""

    name = "aesthetic"
    label = "Aesthetic (LAION)"
    higher_is_better = True
    what = (
        "LAION's aesthetic predictor (sac+logos+ava1-l14-linearMSE): a linear network on CLIP "
        "ViT-L/14's image embedding, about 1 to 10. It does not read the caption."
    )
    packages: ClassVar[tuple[str, ...]] = (*ImageScorer.packages, "open-clip-torch", "torchvision")

    def needed(self) -> Sequence[Needed]:
        """The predictor, and the CLIP that it was trained on."""
        return (PREDICTOR, clip_weights(BACKBONE))

    def details(self) -> dict[str, Any]:
        """The backbone."""
        return {"backbone": f"CLIP {BACKBONE}, open_clip", "predictor": "LAION v1"}

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Scores float64 [n]; the captions are not read."""
        import torch

        parts = []
        for batch in batches(images):
            seen = self._clip.images([prepare(image, self.protocol) for image in batch])
            with torch.inference_mode():
                parts.append(self._predictor(seen)[:, 0].cpu().numpy())
        return joined(parts)

    @cached_property
    def _clip(self) -> Backbone:
        self.require()
        return Backbone(BACKBONE, self.weights, self.device)

    @cached_property
    def _predictor(self) -> Any:
        """Normalised embeddings float32 [n, 768] -> scores [n, 1]."""
        import torch

        self.require()
        path = PREDICTOR.find(self.weights)
        assert path is not None
        network = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(max(LAYERS) + 1)))
        for place, (before, after) in LAYERS.items():
            network[place] = torch.nn.Linear(before, after)
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            network.load_state_dict({name.removeprefix("layers."): t for name, t in stored.items()})
        except (RuntimeError, KeyError, ValueError, EOFError, AttributeError) as error:
            raise CRDiffError(
                f"{path} is not LAION's predictor: get it again from {PREDICTOR.source}"
            ) from error
        return network.float().eval().requires_grad_(False).to(self.device)

    def close(self) -> None:
        """Let go of the networks."""
        for name in ("_clip", "_predictor"):
            self.__dict__.pop(name, None)


V25_PACKAGE = "aesthetic_predictor_v2_5"
V25_PREDICTOR = Needed(
    "aesthetic-v2-5",
    ("aesthetic_predictor_v2_5.pth",),
    "github.com/discus0434/aesthetic-predictor-v2-5",
)
V25_ENCODER = tuple(
    Needed("aesthetic-v2-5/siglip", (name,), "huggingface.co/google/siglip-so400m-patch14-384")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json")
)


class AestheticV25(ImageScorer):
    """discus0434's predictor on SigLIP, if its package is there."""

    name = "aesthetic-v2-5"
    label = "Aesthetic (v2.5)"
    higher_is_better = True
    what = (
        "aesthetic-predictor-v2-5 on SigLIP's image embedding, about 1 to 10: another predictor "
        "than LAION's, with another scale. It does not read the caption."
    )
    packages: ClassVar[tuple[str, ...]] = (
        *ImageScorer.packages,
        "transformers",
        "aesthetic-predictor-v2-5",
    )

    def needed(self) -> Sequence[Needed]:
        """The predictor, and SigLIP."""
        return (V25_PREDICTOR, *V25_ENCODER)

    def missing(self) -> str | None:
        """The package first, then its files."""
        if importlib.util.find_spec(V25_PACKAGE) is None:
            return (
                f"{self.name} needs the package aesthetic-predictor-v2-5, which CR-Diff leaves out "
                "for its licence (AGPL-3.0): install it yourself with pip if that suits you"
            )
        return super().missing()

    def details(self) -> dict[str, Any]:
        """The backbone."""
        return {"backbone": "SigLIP so400m patch14 384, transformers", "predictor": "v2.5"}

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Scores float64 [n]; the captions are not read."""
        import torch

        model, processor = self._loaded
        parts = []
        for batch in batches(images):
            ready = [prepare(image, self.protocol) for image in batch]
            pixels = processor(images=ready, return_tensors="pt").pixel_values
            with torch.inference_mode():
                logits = model(pixels.to(self.device)).logits
            parts.append(logits.float().reshape(len(batch)).cpu().numpy())
        return joined(parts)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        self.require()
        package = importlib.import_module(V25_PACKAGE)
        model, processor = package.convert_v2_5_from_siglip(
            predictor_name_or_path=str(V25_PREDICTOR.find(self.weights)),
            encoder_model_name=str(self.weights / V25_ENCODER[0].folder),
        )
        return model.float().eval().to(self.device), processor

    def close(self) -> None:
        """Let go of the network."""
        self.__dict__.pop("_loaded", None)
