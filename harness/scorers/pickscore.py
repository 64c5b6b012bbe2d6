"""PickScore: CLIP ViT-H/14 trained on which of two images people picked for a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import ImageScorer, Needed, batches, joined, prepare
from harness.stats import Array

MODEL_HUB = "huggingface.co/yuvalkirstain/PickScore_v1"
PROCESSOR_HUB = "huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
LONGEST = 77
CONFIG = Needed("pickscore", ("config.json",), MODEL_HUB)
WEIGHTS = Needed("pickscore", ("model.safetensors", "pytorch_model.bin"), MODEL_HUB)
PROCESSOR = tuple(
    Needed("pickscore/processor", (name,), PROCESSOR_HUB)
    for name in ("preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
)


class PickScore(ImageScorer):
    """PickScore v1."""

    name = "pickscore"
    label = "PickScore"
    higher_is_better = True
    decimals = 2
    what = (
        "PickScore v1: the cosine of image and caption in a CLIP ViT-H/14 that was trained on "
        "people's choices, times its logit scale (about 100)."
    )
    packages: ClassVar[tuple[str, ...]] = (*ImageScorer.packages, "transformers", "tokenizers")

    def needed(self) -> Sequence[Needed]:
        """The model's folder, and its processor's in it."""
        return (CONFIG, WEIGHTS, *PROCESSOR)

    def details(self) -> dict[str, Any]:
        """Which network it is."""
        return {"backbone": "PickScore v1, CLIP ViT-H/14, transformers"}

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Scores float64 [n]: float32 of the network, multiplied in float64."""
        import torch

        parts, done = [], 0
        for batch in batches(images):
            texts = list(captions[done : done + len(batch)])
            done += len(batch)
            ready = [prepare(image, self.protocol) for image in batch]
            pixels = self._pixels(images=ready, return_tensors="pt")["pixel_values"]
            tokens = self._tokenizer(
                texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            )
            with torch.inference_mode():
                seen = self._model.get_image_features(pixel_values=pixels.to(self.device))
                read = self._model.get_text_features(
                    input_ids=tokens["input_ids"].to(self.device),
                    attention_mask=tokens["attention_mask"].to(self.device),
                )
                seen, read = (
                    torch.nn.functional.normalize(out.pooler_output.double(), dim=-1)
                    for out in (seen, read)
                )
                scale = self._model.logit_scale.double().exp()
                parts.append((scale * (seen * read).sum(-1)).cpu().numpy())
        return joined(parts)

    @property
    def _processor_folder(self) -> Path:
        self.require()
        return self.weights / PROCESSOR[0].folder

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import CLIPModel

        self.require()
        folder = self.weights / CONFIG.folder
        try:
            model, about = CLIPModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            raise CRDiffError(_not_pickscore(folder)) from error
        if about["missing_keys"] or about["mismatched_keys"]:
            raise CRDiffError(_not_pickscore(folder))
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self._processor_folder, local_files_only=True)

    @cached_property
    def _pixels(self) -> Any:
        # PIL's resizing, with which PickScore was trained; the default one works on tensors
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPImageProcessorPil.from_pretrained(self._processor_folder, local_files_only=True)

    def close(self) -> None:
        """Let go of the network."""
        for name in ("_model", "_tokenizer", "_pixels"):
            self.__dict__.pop(name, None)


def _not_pickscore(folder: Path) -> str:
    return f"{folder} does not hold PickScore's CLIP model: get it again from {MODEL_HUB}"
