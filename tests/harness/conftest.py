"""A tiny pipeline of the embedded model's architecture with random weights, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder that loads with StableDiffusionPipeline.from_pretrained."""
    from diffusers import StableDiffusionPipeline

    from harness.embedded import architecture
    from harness.embedded.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer(folder / "source")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        pipe = StableDiffusionPipeline(
            vae=architecture.make_vae(),
            text_encoder=architecture.make_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            unet=architecture.make_unet(),
            scheduler=architecture.make_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    model = folder.parent / "model"
    pipe.save_pretrained(model)
    settings = {"steps": 2, "guidance": 3.0, "batch": 4, "sizes": ["128x128", "64x64"]}
    (model / "crdiff.json").write_text(json.dumps(settings))
    return model


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\ntwo blue squares\na green cross above a red square\n")
    return path
