"""The preprocessing that CLIP brought and its descendants kept."""

from __future__ import annotations

from typing import Any

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(side: int) -> Any:
    """A function: PIL image, RGB -> float32 [3, side, side].

    The short side is scaled to ``side`` (PIL bicubic, antialiased) and the middle is cut out, so
    that images which are not square lose their ends; then CLIP's mean and deviation.
    """
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        InterpolationMode,
        Normalize,
        Resize,
        ToTensor,
    )

    return Compose(
        [
            Resize(side, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(side),
            ToTensor(),
            Normalize(CLIP_MEAN, CLIP_DEVIATION),
        ]
    )
