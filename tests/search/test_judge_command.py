"""`crdiff judge`, the very process that the WebUI starts, against the scorers called directly."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crdiff_ext import __version__
from crdiff_ext.errors import CRDiffError
from crdiff_ext.webui.judge import Judge
from crdiff_ext.webui.reward_files import CLIP_FILES, IMAGE_REWARD_FILES
from harness.embedded.reward import EmbeddedReward
from harness.embedded.scenes import render, sample_spec
from harness.judging import open_reward, scores
from harness.scorers import ImageScorer, get_scorers
from harness.scorers.clip import clip_weights as clip_weights_of
from harness.scorers.image_reward import CHECKPOINT, MED_CONFIG, VOCABULARY
from tests.scorers import clip_weights, reward_weights

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "harness.cli", "judge"]
CAPTION = "a red circle"


def scenes(n: int = 5) -> list[Image.Image]:
    rng = random.Random(4)
    return [render(sample_spec(rng), 48 + 16 * (i % 2), 64, rng) for i in range(n)]


@contextmanager
def judge(*words: str, command: list[str] = COMMAND) -> Iterator[Judge]:
    made = Judge("test", [*command, *words, "--device", "cpu"], 60.0, ROOT)
    try:
        yield made
    finally:
        made.close()


def same(expected: Sequence[float]) -> Any:
    """To what the number of threads may change: tests before this one set their process' own."""
    return pytest.approx(list(expected), abs=1e-5)


def test_the_embedded_reward_in_a_process_is_itself() -> None:
    images, reward = scenes(), EmbeddedReward.load()
    with judge("--reward", "embedded") as child:
        for caption in (CAPTION, "two blue squares"):
            expected = reward.score(images, [caption] * len(images))
            assert child.scores(caption, images) == same(expected)
            assert len(set(expected)) == len(images)
        with pytest.raises(CRDiffError, match="no number for this prompt"):
            child.scores("ein Phönix", images)
        pid = child.pid
        assert pid is not None
        assert child.scores(CAPTION, images[:1]) == same(reward.score(images[:1], [CAPTION]))
        assert child.pid == pid


def direct(name: str, weights: Path, images: list[Image.Image]) -> list[float]:
    (scorer,) = get_scorers([name], weights, "cpu")
    assert isinstance(scorer, ImageScorer)
    found = list(scorer.score(images, [CAPTION] * len(images)))
    assert len(set(found)) == len(images)
    return found


@pytest.mark.slow
def test_image_reward_in_a_process_is_itself(tmp_path: Path) -> None:
    weights, images = reward_weights.write(tmp_path, reward_weights.SMALL), scenes(3)
    with judge("--reward", "image-reward", "--weights", str(weights)) as child:
        assert child.scores(CAPTION, images) == same(direct("image-reward", weights, images))


REGISTERED = """
import sys
import open_clip
from harness.cli import main
open_clip.add_model_config(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_clip_in_a_process_is_itself(tmp_path: Path) -> None:
    name, images = "crdiff-test-judge", scenes(3)
    clip_weights.register(name, tmp_path / "configs")
    clip_weights.store_open_clip(tmp_path, name)
    config = tmp_path / "configs" / f"{name}.json"
    command = [sys.executable, "-c", REGISTERED, str(config), "judge"]
    words = ("--reward", "clip", "--model", name, "--weights", str(tmp_path))
    with judge(*words, command=command) as child:
        assert child.scores(CAPTION, images) == same(direct(f"clip-score:{name}", tmp_path, images))


def png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def lines(*questions: object, words: tuple[str, ...] = ("--reward", "embedded")) -> list[dict]:
    """What it says to these, until its input ends."""
    text = "".join(q if isinstance(q, str) else json.dumps(q) + "\n" for q in questions)
    done = subprocess.run(
        [*COMMAND, *words], input=text, capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_protocol_and_questions_that_are_none() -> None:
    (image,) = scenes(1)
    good = {"id": "a", "prompt": CAPTION, "images": [png(image)]}
    bad = [
        "no JSON\n",
        "[1]\n",
        {"id": 2, "images": []},
        {**good, "id": 3, "images": png(image)},
        {**good, "id": 4, "images": ["!"]},
        {**good, "id": 5, "images": [base64.b64encode(b"GIF89a").decode()]},
        {**good, "id": 6, "images": [png(image)[:200]]},
    ]
    ready, *answers, first, empty = lines(*bad, good, {**good, "id": None, "images": []})
    name = "embedded reward (not ImageReward)"
    assert ready == {"ready": True, "reward": name, "version": __version__}
    assert [one["id"] for one in answers] == [None, None, 2, 3, 4, 5, 6]
    assert all(set(one) == {"id", "error"} for one in answers)
    assert first == {"id": "a", "scores": list(EmbeddedReward.load().score([image], [CAPTION]))}
    assert empty == {"id": None, "scores": []}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--reward", "image-reward", "--weights", "nowhere"), "needs ImageReward.pt"),
        (("--reward", "clip"), "give their folder"),
        (("--reward", "embedded", "--model", "ViT-B-32"), "--model is for the reward clip"),
        (("--reward", "embedded", "--weights", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CRDiffError, match=r"^test can't judge: ") as caught, judge(*words) as child:
        child.scores(CAPTION, scenes(1))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_damaged_weights_are_told_before_it_is_ready(tmp_path: Path) -> None:
    weights = reward_weights.write(tmp_path, reward_weights.SMALL)
    (weights / "image-reward" / "ImageReward.pt").write_bytes(b"half a download")
    words = ("--reward", "image-reward", "--weights", str(weights))
    with judge(*words) as child, pytest.raises(CRDiffError, match=r"^test can't judge: "):
        child.scores(CAPTION, scenes(1))


def test_the_host_looks_for_the_files_that_the_scorers_load() -> None:
    needed = (CHECKPOINT, MED_CONFIG, VOCABULARY)
    assert tuple(f"{one.folder}/{one.names[0]}" for one in needed) == IMAGE_REWARD_FILES
    assert clip_weights_of("x").names == CLIP_FILES
    assert clip_weights_of("x").folder == "clip/x"


class Odd:
    def score(self, images, captions):
        return np.array([float("inf")] * len(images))


def test_no_number_is_an_error_and_never_sent() -> None:
    with pytest.raises(CRDiffError, match="no number"):
        scores(Odd(), "x", scenes(1))
    with pytest.raises(CRDiffError, match="is not known"):
        open_reward("taste", None)


HANGING = """
import sys, threading, time
from harness.judging import leave_with_reader, take_stdout
answers = take_stdout()
print("to stderr")
threading.Thread(target=leave_with_reader, args=(answers.fileno(),), daemon=True).start()
answers.write("in\\n")
answers.flush()
time.sleep(100)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no poll")
def test_it_ends_in_the_middle_of_anything_when_nobody_reads_any_more() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        assert child.poll() is None
        started = time.monotonic()
        child.stdout.close()
        assert child.wait(10) == 1
        assert time.monotonic() - started < 5
        assert child.stderr is not None
        assert "to stderr" in child.stderr.read()
