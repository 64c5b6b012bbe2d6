"""``make parity-true-sizes``: PickScore and both aesthetic predictors at their true sizes.

Random weights of the true architectures (up to a billion parameters, 10 GB of memory), which is why
these are marked live. The small ones in test_clip.py run with every other test.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.scorers import aesthetic
from tests.scorers import clip_weights
from tests.scorers.test_clip import (
    SHAPES,
    check_aesthetic,
    check_pickscore,
    predictor_weights,
    scorer,
)

pytestmark = pytest.mark.live


def test_pickscore(pictures, tmp_path: Path) -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-H-14")
    model = clip_weights.store_pickscore(tmp_path, "ViT-H-14", config)
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
    check_pickscore(tmp_path, model, "ViT-H-14", 224, pictures, 5, atol=5e-3)


def test_aesthetic(pictures, tmp_path: Path) -> None:
    import open_clip

    model = clip_weights.store_open_clip(tmp_path, aesthetic.BACKBONE)
    assert sum(p.numel() for p in model.parameters()) == 427_616_513
    config = open_clip.get_model_config(aesthetic.BACKBONE)
    check_aesthetic(tmp_path, model, config, pictures(5, 7, SHAPES), atol=1e-5)


def test_aesthetic_v25(pictures, tmp_path: Path) -> None:
    """The package (AGPL, installed by whoever wants it) against transformers' SigLIP itself."""
    pytest.importorskip(aesthetic.V25_PACKAGE)
    from transformers import SiglipVisionConfig, SiglipVisionModel

    side, width = 384, 1152
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        image_size=side,
    )
    encoder = SiglipVisionModel(config).eval()
    clip_weights.randomise(encoder, 5)
    folder = tmp_path / "aesthetic-v2-5"
    encoder.save_pretrained(folder / "siglip")
    settings = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": side, "width": side},
    }
    (folder / "siglip" / "preprocessor_config.json").write_text(json.dumps(settings))
    head = predictor_weights(width, 2)
    state = OrderedDict((f"scoring_head.{_place(name)}", tensor) for name, tensor in head.items())
    torch.save(state, folder / "aesthetic_predictor_v2_5.pth")
    images = pictures(4, 9, SHAPES)
    pixels = [
        np.asarray(i.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
        for i in images
    ]
    with torch.no_grad():
        seen = encoder(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).pooler_output
    x = torch.nn.functional.normalize(seen.double(), dim=-1)
    for place in (0, 2, 4, 6, 8):
        weight = state[f"scoring_head.{place}.weight"].double()
        x = x @ weight.T + state[f"scoring_head.{place}.bias"].double()
    found = scorer("aesthetic-v2-5", tmp_path).score(images, [""] * len(images))
    assert x.std() > 1e-3
    np.testing.assert_allclose(found, x[:, 0].numpy(), atol=1e-5)


def _place(name: str) -> str:
    """LAION's names to v2.5's: its last layer is at place 8, LAION's at 7."""
    return name.removeprefix("layers.").replace("7.", "8.")
