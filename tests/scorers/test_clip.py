"""CLIP score, PickScore and the aesthetic predictor against other implementations of CLIP.

Each is run on random weights and compared with the same weights in the other library (open_clip
against transformers), with the preprocessing written out here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.clip_vocabulary import openai_vocabulary, write_clip_tokenizer
from harness.scorers import ImageScorer, aesthetic, get_scorers
from harness.scorers import clip as clip_module
from tests.scorers import clip_weights

SHAPES = ((256, 256), (160, 100), (70, 210))
TEXTS = ("a photo of a dog", "", "Very " * 90 + "long!", "un café, 雪 & 3 cats' toys")
NAME = "crdiff-test-quickgelu"


def scorer(name: str, folder: Path, protocol: str = "native") -> ImageScorer:
    (found,) = get_scorers([name], folder, "cpu", protocol)
    assert isinstance(found, ImageScorer)
    return found


def pixels_of(image: Image.Image, side: int) -> torch.Tensor:
    """Short side to ``side``, the middle cut out, CLIP's scaling: float32 [3, side, side]."""
    w, h = image.size
    small = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    left, top = (round((length - side) / 2) for length in small)
    cut = image.resize(small, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    values = np.asarray(cut, np.float64) / 255
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.from_numpy((values - mean) / deviation).permute(2, 0, 1).float()


def tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    write_clip_tokenizer(folder, openai_vocabulary())
    return CLIPTokenizer.from_pretrained(folder)


def embeddings(model, images: list[Image.Image], side: int) -> torch.Tensor:
    """Normalised image embeddings by transformers' CLIPModel."""
    with torch.no_grad():
        out = model.get_image_features(torch.stack([pixels_of(i, side) for i in images]))
    return torch.nn.functional.normalize(out.pooler_output.double(), dim=-1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """(weights folder, open_clip's model)."""
    folder = tmp_path_factory.mktemp("clip")
    clip_weights.register(NAME, folder / "configs")
    return folder, clip_weights.store_open_clip(folder, NAME)


def check_clip_score(
    folder: Path, model, config, name: str, images, tmp_path: Path, atol: float = 1e-5
) -> None:
    other = clip_weights.as_transformers(model, config, "quick_gelu")
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(images))]
    tokens = tokenizer(tmp_path / "tokenizer")(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        read = other.get_text_features(tokens["input_ids"]).pooler_output.double()
    read = torch.nn.functional.normalize(read, dim=-1)
    side = config["vision_cfg"]["image_size"]
    for protocol in ("native", "paper-256"):
        shown = images
        if protocol == "paper-256":
            shown = [image.resize((256, 256), Image.Resampling.BICUBIC) for image in images]
        expected = (embeddings(other, shown, side) * read).sum(-1).numpy()
        found = scorer(name, folder, protocol).score(images, texts)
        assert found.dtype == np.float64
        assert expected.std() > 0.01
        np.testing.assert_allclose(found, expected, atol=atol)


def test_clip_score(small, pictures, tmp_path: Path) -> None:
    folder, model = small
    images = pictures(18, 5, SHAPES)
    check_clip_score(folder, model, clip_weights.SMALL, f"clip-score:{NAME}", images, tmp_path)


@pytest.mark.slow
def test_clip_score_true_architecture(pictures, tmp_path: Path) -> None:
    import open_clip

    name = clip_module.DEFAULT_BACKBONE
    model = clip_weights.store_open_clip(tmp_path / "w", name)
    assert sum(p.numel() for p in model.parameters()) == 151_277_313
    config = open_clip.get_model_config(name)
    config["vision_cfg"].setdefault("head_width", 64)
    images = pictures(4, 5, SHAPES)
    check_clip_score(tmp_path / "w", model, config, "clip-score", images, tmp_path, atol=1e-4)


def test_quick_gelu_matters(small, pictures, tmp_path: Path) -> None:
    """The comparison would notice the wrong activation, as OpenAI's weights under ViT-B-32 have."""
    _, model = small
    wrong = clip_weights.as_transformers(model, clip_weights.SMALL, "gelu")
    right = clip_weights.as_transformers(model, clip_weights.SMALL, "quick_gelu")
    images = pictures(2, 5, SHAPES)
    apart = embeddings(wrong, images, 48) - embeddings(right, images, 48)
    assert apart.abs().max() > 1e-3


def test_backbone_is_a_setting_and_recorded(small, tmp_path: Path) -> None:
    folder, _ = small
    own = scorer(f"clip-score:{NAME}", folder)
    assert own.name == f"clip-score:{NAME}"
    assert NAME in own.provenance()["backbone"]
    plain = scorer("clip-score", tmp_path)
    assert plain.name == "clip-score"
    sentence = plain.missing() or ""
    assert "huggingface.co/timm/vit_base_patch32_clip_224.openai" in sentence
    assert str(tmp_path / "clip" / "ViT-B-32-quickgelu") in sentence
    with pytest.raises(CRDiffError, match="is no backbone of open_clip: use one such as ViT"):
        scorer("clip-score:ViT-Z", tmp_path)


def test_weights_of_another_backbone_are_refused(small, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "clip" / NAME
    folder.mkdir(parents=True)
    save_file({"x": torch.zeros(2)}, folder / "open_clip_model.safetensors")
    with pytest.raises(CRDiffError, match="as open_clip stores it"):
        scorer(f"clip-score:{NAME}", tmp_path).score([Image.new("RGB", (9, 9))], ["x"])


# PickScore: ours is transformers' CLIPModel, the other one open_clip's; GELU, as ViT-H/14 has


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory):
    """(weights folder, open_clip's model with the same weights)."""
    folder = tmp_path_factory.mktemp("pick")
    config = {**clip_weights.SMALL, "quick_gelu": False}
    clip_weights.register("crdiff-test-gelu", folder / "configs", config)
    return folder, clip_weights.store_pickscore(folder, "crdiff-test-gelu", config)


def check_pickscore(folder: Path, model, name: str, side: int, pictures, n: int, atol: float):
    import open_clip

    images = pictures(n, 6, ((256, 256), (160, 100), (70, 211)))
    texts = [TEXTS[i % len(TEXTS)] for i in range(n)]
    texts = [text.replace("!", "") for text in texts]  # "!" is the padding of laion's tokenizer
    tokens = open_clip.get_tokenizer(name)(texts)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([pixels_of(i, side) for i in images])).double()
        read = model.encode_text(tokens).double()
    cosine = torch.nn.functional.cosine_similarity(seen, read).numpy()
    expected = np.exp(float(model.logit_scale.detach())) * cosine
    ours = scorer("pickscore", folder)
    found = ours.score(images, texts)
    ours.close()
    assert found.dtype == np.float64
    assert expected.std() > 1
    # a cut-out middle may lie one pixel beside, where the rest is odd: PIL's and HF's differ
    even = [i for i in range(n) if i % 3 != 2]
    np.testing.assert_allclose(found[even], expected[even], atol=atol)


def test_pickscore(pick, pictures) -> None:
    folder, model = pick
    check_pickscore(folder, model, "crdiff-test-gelu", 48, pictures, 18, atol=2e-3)


def test_pickscore_refuses_another_model(pick, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(pick[0] / "pickscore", tmp_path / "pickscore")
    file = tmp_path / "pickscore" / "model.safetensors"
    state = load_file(file)
    state.pop("visual_projection.weight")
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CRDiffError, match="does not hold PickScore"):
        scorer("pickscore", tmp_path).score([Image.new("RGB", (48, 48))], ["x"])
    (tmp_path / "pickscore" / "processor" / "merges.txt").unlink()
    sentence = scorer("pickscore", tmp_path).missing() or ""
    assert "merges.txt" in sentence
    assert "laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in sentence


# LAION's aesthetic predictor


def predictor_weights(width: int, seed: int) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    sizes = (width, 1024, 128, 64, 16, 1)
    state = {}
    for place, before, after in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        state[f"layers.{place}.weight"] = torch.randn(after, before, generator=make) * before**-0.5
        state[f"layers.{place}.bias"] = torch.randn(after, generator=make)
    return state


def check_aesthetic(folder: Path, model, config, images, atol: float = 1e-4) -> None:
    state = predictor_weights(768, 2)
    (folder / "aesthetic").mkdir()
    torch.save(state, folder / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth")
    other = clip_weights.as_transformers(model, config, "quick_gelu")
    x = embeddings(other, images, config["vision_cfg"]["image_size"]).numpy()
    for place in (0, 2, 4, 6, 7):
        weight, bias = (state[f"layers.{place}.{kind}"] for kind in ("weight", "bias"))
        x = x @ weight.double().numpy().T + bias.double().numpy()
    ours = scorer("aesthetic", folder)
    found = ours.score(images, [""] * len(images))
    ours.close()
    assert x.std() > 100 * atol
    np.testing.assert_allclose(found, x[:, 0], atol=atol)


def test_aesthetic(pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small CLIP with the true width of the embedding, and the true predictor."""
    name = "crdiff-test-wide-quickgelu"
    config = {**clip_weights.SMALL, "embed_dim": 768}
    clip_weights.register(name, tmp_path / "configs", config)
    model = clip_weights.store_open_clip(tmp_path, name)
    monkeypatch.setattr(aesthetic, "BACKBONE", name)
    check_aesthetic(tmp_path, model, config, pictures(18, 7, SHAPES))
    about = scorer("aesthetic", tmp_path).provenance()
    assert len(about["weights"]) == 2
    assert "LAION" in scorer("aesthetic", tmp_path).label


def test_a_wrong_predictor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "crdiff-test-wide2-quickgelu"
    clip_weights.register(name, tmp_path / "configs", {**clip_weights.SMALL, "embed_dim": 768})
    clip_weights.store_open_clip(tmp_path, name)
    monkeypatch.setattr(aesthetic, "BACKBONE", name)
    (tmp_path / "aesthetic").mkdir()
    file = tmp_path / "aesthetic" / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(predictor_weights(512, 2), file)
    with pytest.raises(CRDiffError, match="is not LAION's predictor"):
        scorer("aesthetic", tmp_path).score([Image.new("RGB", (48, 48))], ["x"])


def test_v25_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aesthetic, "V25_PACKAGE", "a_package_that_is_not_there")
    assert "AGPL" in (scorer("aesthetic-v2-5", tmp_path).missing() or "")
    monkeypatch.setattr(aesthetic, "V25_PACKAGE", "json")
    assert "aesthetic_predictor_v2_5.pth" in (scorer("aesthetic-v2-5", tmp_path).missing() or "")
