"""Scores are computed once, and a kill at any moment costs a batch at most."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers import cache as cache_module
from harness.scorers.cache import Picture, ScoreCache
from harness.store import pixels_sha256
from tests.scorers.fake import Brightness, Colours


def as_pictures(images: list[Image.Image], caption: str = "a dog") -> list[Picture]:
    return [
        Picture(pixels_sha256(image), lambda image=image: image, f"{caption} {i}")
        for i, image in enumerate(images)
    ]


def test_what_is_stored_is_not_scored_again(pictures, tmp_path: Path) -> None:
    shown = as_pictures(pictures(5, 1, ((40, 30), (20, 60))))
    first = Brightness()
    values = ScoreCache(tmp_path).score(first, shown)
    assert first.scored == 5
    second, told = Brightness(), []
    np.testing.assert_array_equal(ScoreCache(tmp_path).score(second, shown, told.append), values)
    assert second.scored == 0
    assert sum(told) == 5


def test_everything_a_value_depends_on_is_in_its_key(pictures, tmp_path: Path) -> None:
    images = pictures(2, 1, ((40, 30),))
    shown = as_pictures(images)
    cache = ScoreCache(tmp_path)
    cache.score(Brightness(), shown)
    for scorer, asked in (
        (Brightness(version=2), shown),
        (Brightness(protocol="paper-256"), shown),
        (Brightness(), as_pictures(images, "two cats")),
        (Brightness(), as_pictures(pictures(2, 2, ((40, 30),)))),
    ):
        cache.score(scorer, asked)
        assert scorer.scored == 2


def test_equal_images_are_scored_once(pictures, tmp_path: Path) -> None:
    (image,) = pictures(1)
    one = Picture(pixels_sha256(image), lambda: image, "x")
    scorer = Brightness()
    values = ScoreCache(tmp_path).score(scorer, [one, one, one])
    assert scorer.scored == 1
    assert len(set(values.tolist())) == 1


def test_torn_and_strange_lines_are_skipped(pictures, tmp_path: Path) -> None:
    shown = as_pictures(pictures(3))
    cache = ScoreCache(tmp_path)
    values = cache.score(Brightness(), shown[:2])
    with open(cache.file, "ab") as file:
        file.write(b'[1]\n{"key": 3, "value": 1}\n{"key": "torn", "val')
    again = Brightness()
    np.testing.assert_array_equal(ScoreCache(tmp_path).score(again, shown)[:2], values)
    assert again.scored == 1
    assert all(json.loads(line) for line in cache.file.read_text().splitlines()[-1:])


def test_a_score_that_is_no_number_is_refused(pictures, tmp_path: Path) -> None:
    class Broken(Brightness):
        def score(self, images, captions):
            return np.full(len(images), np.nan)

    with pytest.raises(CRDiffError, match="nan for an image"):
        ScoreCache(tmp_path).score(Broken(), as_pictures(pictures(1)))
    assert not (tmp_path / "scores.jsonl").exists()


def test_features_are_stored_by_groups(
    pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "GROUP", 3)
    monkeypatch.setattr(cache_module, "CHUNK", 2)
    shown = as_pictures(pictures(7, 1, ((20, 20),)))
    first = Colours()
    features = ScoreCache(tmp_path).features(first, shown)
    assert first.seen == 7
    assert features.shape == (7, 3)
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 3
    again = Colours()
    np.testing.assert_array_equal(ScoreCache(tmp_path).features(again, shown), features)
    assert again.seen == 0
    files[0].write_bytes(files[0].read_bytes()[:-20])  # as a disk may damage it
    np.testing.assert_array_equal(ScoreCache(tmp_path).features(again, shown), features)
    assert again.seen in (1, 3)
    other = Colours(protocol="paper-256")
    ScoreCache(tmp_path).features(other, shown)
    assert other.seen == 7
    assert ScoreCache(tmp_path).features(Colours(), []).shape == (0, 3)


KILLED = """
import sys, time
from pathlib import Path
from PIL import Image
from harness.scorers import cache
from harness.scorers.cache import Picture, ScoreCache
from harness.store import pixels_sha256
from fake import Brightness

cache.CHUNK = 2
class Slow(Brightness):
    def score(self, images, captions):
        time.sleep(0.05)
        return super().score(images, captions)
grey = lambda i: lambda: Image.new("RGB", (4, 4), (i, i, i))
shown = [Picture(f"{i:064x}", grey(i), "x") for i in range(60)]
ScoreCache(Path(sys.argv[1])).score(Slow(), shown)
"""


def test_killed_and_resumed(tmp_path: Path, root: Path) -> None:
    """SIGKILL while values are being written: what is there counts, the rest is scored."""
    places = os.pathsep.join([str(root), str(root / "tests" / "scorers")])
    variables = {**os.environ, "PYTHONPATH": places}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env=variables)
    file = tmp_path / "scores.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and file.stat().st_size > 1000) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with open(file, "ab") as torn:  # the worst that a kill can leave behind
        torn.write(b'{"key": "half')
    stored = len(ScoreCache(tmp_path)._values)
    assert 0 < stored < 60
    shown = [
        Picture(f"{i:064x}", lambda i=i: Image.new("RGB", (4, 4), (i, i, i)), "x")
        for i in range(60)
    ]
    scorer = Brightness()
    values = ScoreCache(tmp_path).score(scorer, shown)
    assert scorer.scored == 60 - stored
    np.testing.assert_allclose(values, np.arange(60) + 0.001)
