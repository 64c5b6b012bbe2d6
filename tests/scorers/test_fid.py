"""FID and KID against pytorch-fid, torchmetrics and torch-fidelity themselves, random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from crdiff_ext.errors import CRDiffError
from harness.scorers import Reference, SetScorer, get_scorers, open_reference
from harness.scorers.base import prepare
from harness.scorers.distances import frechet_distance

SIZES = ((300, 220), (96, 128), (256, 256))
FILE = Path("inception") / "pt_inception-2015-12-05-6726825d.pth"


def scorer(name: str, weights: Path, protocol: str = "paper-256") -> SetScorer:
    found = get_scorers([name], weights, "cpu", protocol)[0]
    assert isinstance(found, SetScorer)
    return found


def as_paper(image: Image.Image) -> Image.Image:
    return image.resize((256, 256), Image.BICUBIC)


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """uint8 [n, 3, 256, 256], resized here as the paper does it."""
    arrays = [np.asarray(as_paper(image)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def sets(pictures) -> tuple[list[Image.Image], list[Image.Image]]:
    return pictures(7, 1, SIZES), pictures(6, 2, SIZES)


@pytest.mark.slow  # the matrix root of pytorch-fid alone takes half a minute
def test_fid_pytorch_is_pytorch_fids(
    sets, inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_fid import fid_score, inception

    for folder, images in zip(("a", "b"), sets, strict=True):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            as_paper(image).save(tmp_path / folder / f"{i}.png")
    file = inception_weights / FILE
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(file))
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    expected = fid_score.calculate_fid_given_paths(paths, 4, "cpu", 2048, num_workers=0)

    ours = scorer("fid-pytorch", inception_weights)
    reference = Reference.of_features(ours.features(sets[1]))
    assert ours.distance(ours.features(sets[0]), reference) == pytest.approx(expected, rel=1e-5)


def test_pytorch_fids_features(sets, inception_weights: Path) -> None:
    from pytorch_fid.inception import InceptionV3

    file = inception_weights / FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pytorch_fid.inception.load_state_dict_from_url", lambda *_, **__: torch.load(file)
        )
        network = InceptionV3([3]).eval()
    with torch.no_grad():
        expected = network(pixels(sets[0]).float() / 255)[0][:, :, 0, 0].numpy()
    found = scorer("fid-pytorch", inception_weights).features(sets[0])
    assert found.dtype == np.float64
    assert found.std(0).mean() > 1e-3  # pictures differ: the comparison says something
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_fid_and_kid_are_torchmetrics(sets, inception_weights: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
    from torchmetrics.image.kid import KernelInceptionDistance

    file = str(inception_weights / FILE)
    fid = FrechetInceptionDistance(2048, feature_extractor_weights_path=file)
    kid = KernelInceptionDistance(fid.inception, subsets=1, subset_size=6)
    ours, theirs = sets[0][:6], sets[1]
    for metric in (fid, kid):
        metric.update(pixels(theirs), real=True)
        metric.update(pixels(ours), real=False)
    own_fid, own_kid = (scorer(name, inception_weights) for name in ("fid", "kid"))
    assert own_fid.extractor_sha256() == own_kid.extractor_sha256()
    reference = Reference.of_features(own_fid.features(theirs))
    features = own_fid.features(ours)
    d = 300  # of 2048 features: the metric's own root of the whole takes half a minute
    moments = []
    for kind in ("fake", "real"):
        total, squares = (getattr(fid, f"{kind}_features_{x}") for x in ("sum", "cov_sum"))
        mean = total / 6
        moments += [mean[:d], ((squares - 6 * mean[:, None] @ mean[None]) / 5)[:d, :d]]
    expected = float(_compute_fid(*moments))
    part = Reference.of_features(own_fid.features(theirs)[:, :d])
    assert own_fid.distance(features[:, :d], part) == pytest.approx(expected, rel=1e-4)
    mean, _ = kid.compute()
    assert own_kid.distance(features, reference) == pytest.approx(float(mean), rel=1e-3)


def test_protocols_differ_and_native_keeps_the_size(sets, inception_weights: Path) -> None:
    images = sets[0][:2]
    native = scorer("fid", inception_weights, "native").features(images)
    paper = scorer("fid", inception_weights, "paper-256").features(images)
    assert not np.allclose(native, paper, rtol=1e-3)
    np.testing.assert_array_equal(
        paper, scorer("fid", inception_weights, "native").features([as_paper(i) for i in images])
    )
    assert prepare(Image.new("L", (7, 5)), "native").mode == "RGB"


def test_no_images_have_no_features(inception_weights: Path) -> None:
    assert scorer("fid", inception_weights).features([]).shape == (0, 2048)


@pytest.mark.parametrize("n", [40, 7])  # more images than features, and fewer
def test_frechet_distance_is_the_textbooks(n: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(n, 12)), rng.normal(0.4, 1.3, size=(60, 12))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    product = np.real(linalg.sqrtm(ca @ cb + 1e-14 * np.eye(12)))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * product)
    found = frechet_distance(a, Reference.of_features(b))
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert frechet_distance(b, Reference.of_features(b)) == pytest.approx(0, abs=1e-9)


def test_published_statistics_give_the_same_as_the_images(
    sets, inception_weights: Path, tmp_path: Path
) -> None:
    ours = scorer("fid-pytorch", inception_weights)
    features = ours.features(sets[0])[:, :200]
    from_images = Reference.of_features(ours.features(sets[1])[:, :200])
    np.savez(tmp_path / "s.npz", mu=from_images.mean, sigma=from_images.covariance)
    source = open_reference(tmp_path / "s.npz")
    assert source.statistics is not None
    assert ours.distance(features, source.statistics) == pytest.approx(
        ours.distance(features, from_images), rel=1e-9
    )
    kid = scorer("kid", inception_weights)
    assert "give --reference a folder" in (kid.unsuited(source) or "")
    with pytest.raises(CRDiffError, match="not mu and sigma"):
        kid.distance(features, source.statistics)


def test_missing_weights_are_one_sentence(tmp_path: Path) -> None:
    for ours in get_scorers(["fid", "fid-pytorch", "kid"], tmp_path):
        sentence = ours.missing() or ""
        assert "pt_inception-2015-12-05-6726825d.pth" in sentence
        assert "github.com/mseitzer/pytorch-fid" in sentence
        assert str(tmp_path / "inception") in sentence
        with pytest.raises(CRDiffError, match="get it from"):
            ours.provenance()


@pytest.mark.parametrize("name", ["fid", "fid-pytorch"])
def test_a_wrong_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "inception").mkdir()
    torch.save({"x": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(CRDiffError, match="is not Inception's weights"):
        scorer(name, tmp_path).features([Image.new("RGB", (32, 32))])


def test_provenance_says_what_it_depends_on(inception_weights: Path) -> None:
    kinds = ("fid", "fid-pytorch", "kid")
    about = {name: scorer(name, inception_weights).provenance() for name in kinds}
    assert all(len(sha) == 64 for own in about.values() for sha in own["weights"].values())
    assert all(own["weights"] and own["protocol"] == "paper-256" for own in about.values())
    assert about["fid-pytorch"]["packages"]["pytorch-fid"] == "0.3.0"
    hashes = {
        scorer(name, inception_weights, protocol).provenance_sha256
        for name in kinds
        for protocol in ("paper-256", "native")
    }
    assert len(hashes) == 6


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(CRDiffError, match="metric 'fd' is not known"):
        get_scorers(["fd"], tmp_path)
    with pytest.raises(CRDiffError, match="protocol 'x' is not known"):
        get_scorers(["fid"], tmp_path, protocol="x")
    with pytest.raises(CRDiffError, match="fid has no setting"):
        get_scorers(["fid:x"], tmp_path)
