"""What judges by the settings page, and what the panel says of it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from crdiff_ext.webui.reward_files import CLIP_FILES, IMAGE_REWARD_FILES
from tests.webui.fakes import plumbing

pytest.importorskip("gradio", reason="the settings page needs gradio")

CHILD = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"id": asked["id"], "scores": [float(len(asked["prompt"]))] * len(asked["images"])}
    print(json.dumps(answer), flush=True)
"""
MODEL = "ViT-L-14-quickgelu"
IMAGE = Image.new("RGB", (4, 4))


@pytest.fixture
def host():
    return plumbing.Host()


@pytest.fixture
def reward(host):
    with plumbing.loaded(host, "options", "reward") as modules:
        yield modules.reward
        modules.reward.stop()


@pytest.fixture
def python(tmp_path):
    """An interpreter that says its arguments in a file and behaves as ``crdiff judge`` does."""
    child, path = tmp_path / "child.py", tmp_path / "python"
    child.write_text(CHILD)
    words = shlex.join([sys.executable, str(child)])
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > {tmp_path}/said\nexec {words}\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    names = (*IMAGE_REWARD_FILES, f"clip/{MODEL}/{CLIP_FILES[0]}")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def set_up(host, python=None, weights=None, reward="auto", clip=""):
    host.opts.data.update(
        crdiff_reward=reward,
        crdiff_reward_weights=str(weights or ""),
        crdiff_reward_clip=clip,
        crdiff_harness_python=str(python or ""),
    )


def without_image_reward(folder: Path) -> Path:
    (folder / "image-reward" / "ImageReward.pt").unlink()
    return folder


def test_by_hand_where_nothing_is_set(host, reward):
    assert reward.judge() is None
    assert "you pick between candidates" in reward.describe()
    assert "no open_clip model" in reward.describe()
    set_up(host, reward="hand")
    assert reward.judge() is None
    assert reward.describe().endswith("as set in Settings")


def test_auto_takes_image_reward_then_clip_then_the_hand(host, reward, python, weights):
    set_up(host, python, weights, clip=MODEL)
    assert reward.judge().name == "ImageReward"
    assert reward.describe() == "ImageReward judges, in a process of its own"
    without_image_reward(weights)
    assert reward.judge().name == f"CLIP score ({MODEL})"
    set_up(host, python, weights, clip="ViT-B-16")
    assert reward.judge() is None
    assert f"{weights / 'clip' / 'ViT-B-16'}" in reward.describe()
    set_up(host, python, weights)
    assert reward.judge() is None


def test_without_the_harness_one_command_is_told(host, reward, weights, monkeypatch, tmp_path):
    monkeypatch.setattr(reward, "FOLDER", tmp_path / "extension")
    set_up(host, weights=weights)
    assert reward.judge() is None
    told = f"the harness is not installed: run `make env` in {tmp_path / 'extension'}"
    assert reward.describe() == f"you pick between candidates: {told}"
    set_up(host, weights=weights, reward="image-reward")
    assert reward.describe() == told
    with pytest.raises(CRDiffError, match="make env"):
        reward.judge()


def test_the_python_of_the_extension_s_own_environment(host, reward, weights, monkeypatch, python):
    folder = python.parent
    place = folder / ".venv" / "bin" / "python"
    place.parent.mkdir(parents=True)
    place.symlink_to(python)
    monkeypatch.setattr(reward, "FOLDER", folder)
    set_up(host, weights=weights)
    assert reward.judge().scores("abc", [IMAGE]) == [3.0]


WRONG = {
    "no Python": ({"python": "/nowhere/python", "reward": "embedded"}, "no Python at /nowhere"),
    "a folder": ({"python": os.sep, "reward": "embedded"}, "no Python at /"),
    "no folder": ({"reward": "image-reward"}, "name their folder in Settings"),
    "not there": ({"reward": "image-reward", "weights": "/nowhere"}, "image-reward/ImageReward.pt"),
    "no model": ({"reward": "clip", "weights": "/nowhere"}, "name of an open_clip model"),
    "no model, no folder": ({"reward": "clip"}, "name of an open_clip model"),
    "model, no folder": ({"reward": "clip", "clip": MODEL}, "name their folder"),
    "model not there": ({"reward": "clip", "clip": MODEL, "weights": "/x"}, f"/x/clip/{MODEL}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_was_chosen_and_does_not_work_is_one_sentence(host, reward, python, case):
    settings, sentence = WRONG[case]
    set_up(host, **{"python": python, **settings})
    with pytest.raises(CRDiffError) as caught:
        reward.judge()
    assert sentence in str(caught.value)
    assert reward.describe() == str(caught.value)


def test_the_child_is_crdiff_judge_in_the_extension_s_folder(host, reward, python, weights):
    set_up(host, python, weights, reward="clip", clip=MODEL)
    assert reward.judge().scores("four", [IMAGE, IMAGE]) == [4.0, 4.0]
    folder, *words = (python.parent / "said").read_text().splitlines()
    assert folder == str(reward.FOLDER)
    expected = f"-m harness.cli judge --reward clip --weights {weights} --model {MODEL}"
    assert words == [*expected.split(), "--device", "cpu"]
    host.opts.data["crdiff_reward_device"] = "auto"
    host.opts.data["crdiff_reward"] = "embedded"
    assert reward.judge().scores("four", [IMAGE]) == [4.0]
    words = (python.parent / "said").read_text().split()[1:]
    assert words == ["-m", "harness.cli", "judge", "--reward", "embedded", "--device", "auto"]


def test_one_child_while_the_settings_stay(host, reward, python, weights):
    set_up(host, python, weights)
    judge = reward.judge()
    assert judge.pid is None  # on demand
    judge.scores("x", [IMAGE])
    pid = judge.pid
    assert reward.judge() is judge
    assert reward.describe()
    assert judge.pid == pid is not None
    host.opts.data["crdiff_reward_timeout"] = 90
    other = reward.judge()
    assert other is not judge
    assert judge.pid is None
    with pytest.raises(CRDiffError, match="settings have changed"):
        judge.scores("x", [IMAGE])
    other.scores("x", [IMAGE])
    host.opts.data["crdiff_reward"] = "hand"
    assert reward.judge() is None
    assert other.pid is None


def test_it_ends_when_the_host_reloads_its_page(host, reward, python, weights):
    set_up(host, python, weights)
    reward.register()
    judge = reward.judge()
    judge.scores("x", [IMAGE])
    assert judge.pid is not None
    for callback in host.callbacks.script_unloaded:
        callback()
    assert judge.pid is None
    assert reward.judge().scores("x", [IMAGE]) == [1.0]


HARNESS = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not HARNESS.is_file(), reason="needs the harness: run `make env`")
def test_the_harness_own_environment_judges_for_this_one(host, reward):
    """Two Pythons with different packages: this one has the host's."""
    set_up(host, reward="embedded")
    judge, images = (
        reward.judge(),
        [Image.new("RGB", (64, 64), colour) for colour in ("red", "navy")],
    )
    first, second = judge.scores("a red circle", images)
    assert first != second
    assert judge.scores("a red circle", images[::-1]) == pytest.approx([second, first], abs=1e-6)
    with pytest.raises(CRDiffError, match="no number for this prompt"):
        judge.scores("ein Phönix", images)
