"""ImageReward against a BLIP forward written out here in plain torch, on random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from crdiff_ext.errors import CRDiffError
from harness.scorers import ImageScorer, get_scorers
from harness.scorers.blip import load_reward_network
from tests.scorers import reward_weights as weights


class State(dict[str, Tensor]):
    """A checkpoint whose tensors are float64 when they are asked for, one at a time."""

    def __getitem__(self, name: str) -> Tensor:
        return super().__getitem__(name).double()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[t, w] by heads of 64; ``mask`` [t]: False where nothing may be read."""
    heads = max(1, q.shape[-1] // 64)
    q, k, v = (x.reshape(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ v).transpose(0, 1).flatten(1)


def see(state: State, pixels: Tensor, blocks: int) -> Tensor:
    """ViT: pixels [3, s, s] -> [patches + 1, width]."""
    p = "blip.visual_encoder."

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{p}{name}.weight"].T + state[f"{p}{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], state[f"{p}{name}.weight"], state[f"{p}{name}.bias"], 1e-6
        )

    patches = F.conv2d(
        pixels[None], state[f"{p}patch_embed.proj.weight"], state[f"{p}patch_embed.proj.bias"], 16
    )[0]
    x = torch.cat([state[f"{p}cls_token"][0], patches.flatten(1).T]) + state[f"{p}pos_embed"][0]
    for i in range(blocks):
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).chunk(3, -1)
        x = x + linear(f"blocks.{i}.attn.proj", attend(q, k, v))
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x)))
        x = x + linear(f"blocks.{i}.mlp.fc2", inner)
    return norm("norm", x)


def read(state: State, ids: list[int], seen: Tensor, layers: int) -> Tensor:
    """BERT with cross-attention: the first token's state [width]."""
    p = "blip.text_encoder."

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{p}{name}.weight"].T + state[f"{p}{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], state[f"{p}{name}.weight"], state[f"{p}{name}.bias"], 1e-12
        )

    real = torch.tensor(ids) != 0
    x = state[f"{p}embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{p}embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x)
    for i in range(layers):
        for kind, source, mask in (("attention", None, real), ("crossattention", seen, None)):
            at = f"encoder.layer.{i}.{kind}"
            other = x if source is None else source
            read_out = attend(
                linear(f"{at}.self.query", x),
                linear(f"{at}.self.key", other),
                linear(f"{at}.self.value", other),
                mask,
            )
            x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", read_out))
        at = f"encoder.layer.{i}"
        inner = F.gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner))
    return x[0]


def pixels_of(image: Image.Image, side: int) -> Tensor:
    """Short side to ``side``, centre cut out, CLIP's normalisation: [3, side, side]."""
    w, h = image.size
    small = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    image = image.resize(small, Image.Resampling.BICUBIC)
    left, top = round((small[0] - side) / 2), round((small[1] - side) / 2)
    values = np.asarray(image.crop((left, top, left + side, top + side)), np.float64) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.from_numpy((values - mean) / deviation).permute(2, 0, 1)


def independent(
    folder: Path, images: list[Image.Image], captions: list[str], sizes: dict[str, int]
) -> list[float]:
    """Rewards in float64 from the checkpoint's own names; ASCII captions."""
    state = State(torch.load(folder / "image-reward" / "ImageReward.pt", mmap=True))
    words = (folder / "bert-base-uncased" / "vocab.txt").read_text().splitlines()
    rewards = []
    for image, caption in zip(images, captions, strict=True):
        seen = see(state, pixels_of(image, sizes["image"]), sizes["blocks"])
        ids = weights.independent_tokens(words, caption)
        x = read(state, ids, seen, sizes["layers"])
        for place in (0, 2, 4, 6, 7):
            x = x @ state[f"mlp.layers.{place}.weight"].T + state[f"mlp.layers.{place}.bias"]
        rewards.append((float(x) - 0.16717362830052426) / 1.0333394966054072)
    return rewards


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.write(tmp_path_factory.mktemp("small"), weights.SMALL)


def scorer(folder: Path, protocol: str = "native", name: str = "image-reward") -> ImageScorer:
    (found,) = get_scorers([name], folder, "cpu", protocol)
    assert isinstance(found, ImageScorer)
    return found


@pytest.mark.parametrize("protocol", ["native", "paper-256"])
def test_small_network(pictures, small: Path, protocol: str) -> None:
    images = pictures(20, 3, weights.SHAPES)  # more than a batch
    captions = [weights.CAPTIONS[i % 3] for i in range(20)]
    found = scorer(small, protocol).score(images, captions)
    shown = images
    if protocol == "paper-256":
        shown = [image.resize((256, 256), Image.Resampling.BICUBIC) for image in images]
    expected = independent(small, shown, captions, weights.SMALL)
    assert found.dtype == np.float64
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_caption_and_picture_both_matter(pictures, small: Path) -> None:
    a, b = pictures(2, 4)
    found = scorer(small).score([a, b, a], ["a dog", "a dog", "a street"])
    assert len({round(value, 4) for value in found}) == 3
    assert scorer(small).score([], []).shape == (0,)


@pytest.mark.slow
def test_true_architecture(pictures, tmp_path: Path) -> None:
    folder = weights.write(tmp_path, weights.TRUE)
    network = load_reward_network(
        folder / "image-reward" / "ImageReward.pt", folder / "image-reward" / "med_config.json"
    )
    stored = torch.load(folder / "image-reward" / "ImageReward.pt", mmap=True)
    assert len(stored) == weights.EXPECTED_KEYS
    left_out = sum(t.numel() for name, t in stored.items() if name.split(".")[1].endswith("_proj"))
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters + left_out == weights.EXPECTED_PARAMETERS
    del network, stored
    images, captions = pictures(2, 6, weights.SHAPES[1:3]), list(weights.CAPTIONS[::2])
    found = scorer(folder).score(images, captions)
    np.testing.assert_allclose(
        found, independent(folder, images, captions, weights.TRUE), atol=1e-4
    )


def test_a_tensor_too_many_or_too_few_is_refused(small: Path, tmp_path: Path) -> None:
    state = weights.checkpoint(weights.SMALL, 5)
    config = small / "image-reward" / "med_config.json"
    for name in ("extra", "few"):
        changed = dict(state)
        if name == "extra":
            changed["blip.visual_encoder.unknown"] = torch.zeros(1)
        else:
            changed.pop("blip.text_encoder.encoder.layer.1.output.dense.bias")
        torch.save(changed, tmp_path / f"{name}.pt")
        with pytest.raises(CRDiffError, match="are not ImageReward's"):
            load_reward_network(tmp_path / f"{name}.pt", config)


def test_missing_files_are_told_one_at_a_time(tmp_path: Path) -> None:
    ours = scorer(tmp_path)
    assert "ImageReward.pt" in (ours.missing() or "")
    weights.write(tmp_path / "w", weights.SMALL)
    (tmp_path / "w" / "bert-base-uncased" / "vocab.txt").unlink()
    sentence = scorer(tmp_path / "w").missing() or ""
    assert "vocab.txt" in sentence
    assert str(tmp_path / "w" / "bert-base-uncased") in sentence


def test_every_file_counts_in_the_provenance(small: Path) -> None:
    about = scorer(small).provenance()
    assert set(about["weights"]) == {"ImageReward.pt", "med_config.json", "vocab.txt"}
    assert json.loads(json.dumps(about)) == about


def test_package_without_its_environment_is_one_sentence(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRDIFF_IMAGEREWARD_PYTHON", str(small / "no-python"))
    sentence = scorer(small, name="image-reward-package").missing() or ""
    assert "make env-imagereward" in sentence


FAKE = """
import json, sys
if "{mode}" == "dead": sys.exit(3)
print(json.dumps({{"ready": {{"image-reward": "1.5"}}}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "{mode}" == "dies": sys.exit(3)
    if "{mode}" == "fails": print(json.dumps({{"error": "RuntimeError: no"}}), flush=True)
    else: print(json.dumps({{"scores": [len(c) for c in asked["captions"]]}}), flush=True)
"""


@pytest.mark.parametrize(
    ("mode", "message"),
    [("dead", "ended without an answer"), ("dies", "ended without"), ("fails", "RuntimeError: no")],
)
def test_a_child_that_fails_is_one_sentence(pictures, mode: str, message: str) -> None:
    from harness.scorers.image_reward_package import Child

    with pytest.raises(CRDiffError, match=message):
        start(Child, mode).score(pictures(1), ["a"])


def start(kind, mode: str):
    import sys

    return kind([sys.executable, "-c", FAKE.format(mode=mode)])


def test_a_child_answers_and_ends(pictures) -> None:
    from harness.scorers.image_reward_package import Child

    child = start(Child, "works")
    assert child.versions == {"image-reward": "1.5"}
    assert child.score(pictures(2), ["a", "abc"]) == [1.0, 3.0]
    child.close()
    assert child._process.returncode == 0
