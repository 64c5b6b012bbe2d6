"""The image-reward package as a child process: JSON lines in on stdin, JSON lines out on stdout.

Run by ``image_reward_package.py`` with the Python of another environment
(``requirements/imagereward.lock``), so it imports nothing of this project. Arguments: checkpoint,
med_config.json, folder of bert-base-uncased, device. First it says
``{"ready": {package: version}}``; then for each ``{"images": [base64 PNG], "captions": [text]}``
``{"scores": [number]}``, or ``{"error": text}``.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from importlib import metadata

PACKAGES = ("image-reward", "transformers", "timm", "fairscale", "torch", "torchvision", "pillow")


def restore_helpers() -> None:
    """Put back the three functions that the package looks for where transformers had them once."""
    from transformers import modeling_utils, pytorch_utils

    for name in (
        "apply_chunking_to_forward",
        "find_pruneable_heads_and_indices",
        "prune_linear_layer",
    ):
        if not hasattr(modeling_utils, name):
            setattr(modeling_utils, name, getattr(pytorch_utils, name))


def read_vocabulary_from(folder: str) -> None:
    """Have the package's ``BertTokenizer.from_pretrained("bert-base-uncased")`` read a folder."""
    from transformers import BertTokenizer

    load = BertTokenizer.from_pretrained
    BertTokenizer.from_pretrained = lambda *_, **__: load(folder)


def main(checkpoint: str, med_config: str, vocabulary: str, device: str) -> None:
    """Load, then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the package prints must not end up among the answers

    def answer(value: dict[str, object]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    restore_helpers()
    read_vocabulary_from(vocabulary)
    import ImageReward  # type: ignore[import-not-found]  # it is in the other environment
    import torch
    from PIL import Image

    model = ImageReward.load(checkpoint, device=device, med_config=med_config)
    answer({"ready": {name: metadata.version(name) for name in PACKAGES}})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            scores = []
            for data, caption in zip(asked["images"], asked["captions"], strict=True):
                image = Image.open(io.BytesIO(base64.b64decode(data)))
                with torch.inference_mode():
                    scores.append(float(model.score(caption, image)))
        except (RuntimeError, ValueError, OSError) as error:
            answer({"error": f"{type(error).__name__}: {error}"})
        else:
            answer({"scores": scores})


if __name__ == "__main__":
    main(*sys.argv[1:])
