"""Random weights of the true architectures, and pictures to score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Pictures = Callable[..., list[Image.Image]]


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth colours with some noise: neither flat nor white noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-20, 21, smooth.shape, dtype=np.int16)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """(n, seed, sizes as height and width) -> images, their sizes in turn."""

    def make(
        n: int, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((256, 256),)
    ) -> list[Image.Image]:
        rng = np.random.default_rng(seed)
        return [picture(rng, *sizes[i % len(sizes)]) for i in range(n)]

    return make


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder with FID's Inception, random, under the file's real name and keys."""
    from pytorch_fid import inception

    def no_download(*_: object, **__: object) -> dict[str, torch.Tensor]:
        raise LookupError

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(11)
        network: list[torch.nn.Module] = []
        make = inception._inception_v3
        patch.setattr(
            inception, "_inception_v3", lambda **kw: network.append(make(**kw)) or network[0]
        )
        patch.setattr(inception, "load_state_dict_from_url", no_download)
        with pytest.raises(LookupError):
            inception.fid_inception_v3()
        for module in network[0].modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
                torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
                torch.nn.init.uniform_(module.weight, 0.8, 1.2)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
        state = network[0].state_dict()
    (folder / "inception").mkdir()
    torch.save(state, folder / "inception" / "pt_inception-2015-12-05-6726825d.pth")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]
