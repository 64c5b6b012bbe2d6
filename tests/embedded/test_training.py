"""The training loop: repeatable, resumable, and data-parallel as one process would be."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.embedded.scenes import sample_layout, sample_spec
from harness.embedded.training import loop
from harness.embedded.training.data import scenes
from harness.embedded.training.loop import finished, load_result, train
from harness.embedded.training.reward import attributes, broken

# By a name that the worker processes can import too: a package in site-packages is called "tests".
sys.path.insert(0, str(Path(__file__).parent))
from toy_stage import STAGE, dies_at_seven, healthy


def test_a_killed_stage_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The variable reaches the workers, which save after every step then.
    monkeypatch.setenv("CRDIFF_TRAINING_SAVE_SECONDS", "0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(STAGE, whole, healthy)
    with pytest.raises(Exception, match=r"exit|terminated|signal"):
        train(STAGE, cut, dies_at_seven)
    assert not finished(STAGE, cut)
    checkpoint = torch.load(cut / "toy.checkpoint.pt", weights_only=True)
    assert 0 < checkpoint["step"] <= 7
    train(STAGE, cut, healthy)
    assert finished(STAGE, cut)
    a, b = load_result(STAGE, whole), load_result(STAGE, cut)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (cut / "toy.checkpoint.pt").exists()
    train(STAGE, cut, dies_at_seven)  # finished: nothing runs


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [STAGE.rate(step) for step in range(STAGE.steps)]
    assert rates[0] < rates[1] == max(rates) == STAGE.learning_rate
    assert rates[-1] < 0.2 * STAGE.learning_rate
    assert loop.WORKERS == 2


def test_scenes_repeat(tmp_path: Path) -> None:
    a, texts = scenes(tmp_path / "a", 64, 500, seed=9)
    b, again = scenes(tmp_path / "b", 64, 500, seed=9)
    assert np.array_equal(a, b)
    assert texts == again
    with pytest.raises(ValueError, match="500"):
        scenes(tmp_path, 64, 501, seed=9)


def test_broken_scenes_have_the_wrong_number_of_objects() -> None:
    rng = random.Random(0)
    for _ in range(50):
        layout = sample_layout(sample_spec(rng, None), 64, 64, rng)
        other = broken(layout, rng)
        assert abs(len(other.objects) - len(layout.objects)) == 1
        assert attributes(layout).sum() >= 3
