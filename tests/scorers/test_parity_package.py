"""``make parity-image-reward``: our ImageReward against the image-reward package itself.

Random weights of the true architecture (625 tensors, 446,665,953 parameters of the reward), images
that are not square, long captions, both protocols. The package runs in its own environment, which
is why this is marked live.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.scorers import ImageScorer, get_scorers
from harness.scorers.image_reward_package import package_python
from tests.scorers import reward_weights as weights

pytestmark = pytest.mark.live
TOLERANCE = 1e-5


@pytest.mark.parametrize("protocol", ["native", "paper-256"])
def test_the_package_gives_the_same(
    pictures, protocol: str, true_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert package_python() is not None, "run make parity-image-reward, which makes its environment"
    images = pictures(8, 3, weights.SHAPES)
    captions = [weights.CAPTIONS[i // 2] for i in range(8)]
    scores = {}
    for name in ("image-reward-package", "image-reward"):  # one after the other: 2 to 4 GB each
        (scorer,) = get_scorers([name], true_weights, "cpu", protocol)
        assert isinstance(scorer, ImageScorer)
        assert scorer.missing() is None
        started = time.perf_counter()
        scores[name] = scorer.score(images, captions)
        versions = scorer.provenance().get("child") or scorer.provenance()["packages"]
        with capsys.disabled():
            print(f"\n{protocol}, {name}: {time.perf_counter() - started:.1f} s, {versions}")
        scorer.close()
    package, ours = scores["image-reward-package"], scores["image-reward"]
    apart = np.abs(package - ours).max()
    with capsys.disabled():
        print(f"package {np.round(package, 6)}\nours    {np.round(ours, 6)}")
        print(f"{protocol}: {len(images)} scores, largest difference {apart:.3g}")
    assert package.std() > 0.01  # the scores differ, so that equality says something
    assert apart <= TOLERANCE


@pytest.fixture(scope="module")
def true_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = weights.write(tmp_path_factory.mktemp("true"), weights.TRUE)
    stored = torch.load(folder / "image-reward" / "ImageReward.pt", mmap=True)
    assert len(stored) == weights.EXPECTED_KEYS
    return folder
