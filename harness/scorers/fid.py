"""FID and KID on Inception's features, with weights from a local file.

Two extractors, which take the same file: torchmetrics' (TensorFlow 1's bilinear resizing to 299, or
its antialiased default) and pytorch-fid's, which the paper's authors used. On features of images
that are 256x256 already the two FIDs differ by under one per cent; on larger ones by more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import Needed, SetScorer, batches, joined, prepare
from harness.scorers.distances import (
    frechet_difference,
    frechet_distance,
    kernel_difference,
    kernel_distance,
)
from harness.scorers.reference import Reference, ReferenceSource
from harness.stats import Array, Interval

INCEPTION = Needed(
    "inception",
    ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
    "the release fid_weights of github.com/mseitzer/pytorch-fid",
)
DIMENSIONS = 2048

Tensors = Callable[[Any], Any]


class InceptionScorer(SetScorer):
    """What FID and KID share: 2048 features an image, from float32 weights on disk."""

    higher_is_better = False
    dimensions = DIMENSIONS
    packages: ClassVar[tuple[str, ...]] = ("torch", "pillow", "numpy", "torch-fidelity")

    def needed(self) -> Sequence[Needed]:
        """One file, the same for both extractors."""
        return (INCEPTION,)

    def features(self, images: Sequence[Image.Image]) -> Array:
        """Features float64 [n, 2048]; images of one size go through the network together."""
        import torch

        ready = [prepare(image, self.protocol) for image in images]
        parts = []
        for _, run in groupby(ready, key=lambda image: image.size):
            for batch in batches(list(run)):
                pixels = torch.from_numpy(np.stack([np.asarray(image) for image in batch]))
                parts.append(self._forward(pixels.permute(0, 3, 1, 2).contiguous()))
        return joined(parts, DIMENSIONS)

    def _forward(self, pixels: Any) -> np.ndarray:
        """Pixels uint8 [b, 3, h, w] -> features float32 [b, 2048]."""
        import torch

        with torch.inference_mode():
            return self._network(pixels.to(self.device)).cpu().numpy()

    @cached_property
    def _network(self) -> Tensors:
        self.require()
        path = INCEPTION.find(self.weights)
        try:
            return self._load(str(path))
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CRDiffError(
                f"{path} is not Inception's weights: get it again from {INCEPTION.source}"
            ) from error

    @abstractmethod
    def _load(self, path: str) -> Tensors:
        """The network as a function of uint8 pixels [b, 3, h, w]."""

    def close(self) -> None:
        """Let go of the network."""
        self.__dict__.pop("_network", None)


class _Torchmetrics(InceptionScorer):
    packages: ClassVar[tuple[str, ...]] = (*InceptionScorer.packages, "torchmetrics")

    def details(self) -> dict[str, Any]:
        """Which extractor, and how it resizes."""
        return {"backbone": "Inception-v3 (2015-12-05), torchmetrics", "antialias": True}

    def _load(self, path: str) -> Tensors:
        import torch
        from torchmetrics.image.fid import NoTrainInceptionV3

        torch.load(path, weights_only=True, map_location="cpu")  # torch-fidelity would run a pickle
        network = NoTrainInceptionV3("inception-v3-compat", [str(DIMENSIONS)], path)
        return network.to(self.device)


class _PytorchFid(InceptionScorer):
    packages: ClassVar[tuple[str, ...]] = ("torch", "pillow", "numpy", "pytorch-fid", "scipy")

    def details(self) -> dict[str, Any]:
        """Which extractor."""
        return {"backbone": "Inception-v3 (2015-12-05), pytorch-fid"}

    def _load(self, path: str) -> Tensors:
        import torch
        from pytorch_fid import inception

        with _local_weights(inception, torch.load(path, weights_only=True, map_location="cpu")):
            network = inception.InceptionV3([inception.InceptionV3.DEFAULT_BLOCK_INDEX])
        network = network.eval().to(self.device)
        return lambda pixels: network(pixels.float() / 255)[0][..., 0, 0]


@contextmanager
def _local_weights(module: Any, weights: Mapping[str, Any]) -> Iterator[None]:
    """While it lasts, pytorch-fid gets these weights where it would download its own."""
    before = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *_, **__: weights
    try:
        yield
    finally:
        module.load_state_dict_from_url = before


class _Frechet(InceptionScorer):
    decimals = 2

    def distance(self, features: Array, reference: Reference) -> float:
        """Frechet distance in float64 from mean and unbiased covariance."""
        return frechet_distance(features, reference)

    def difference(
        self,
        method: Array,
        dense: Array,
        reference: Reference,
        prompts: Sequence[str] | None = None,
    ) -> Interval | None:
        """By a jackknife over groups of images; None below two images a feature."""
        return frechet_difference(method, dense, reference, prompts)


class Fid(_Frechet, _Torchmetrics):
    """FID with torchmetrics' Inception."""

    name = "fid"
    label = "FID"
    what = (
        "Fréchet distance of Inception's features to those of the reference images (torchmetrics' "
        "extractor). Biased upwards at few images: only values of equally many images compare."
    )


class FidPytorch(_Frechet, _PytorchFid):
    """FID as pytorch-fid computes it."""

    name = "fid-pytorch"
    label = "FID (pytorch-fid)"
    what = (
        "FID as pytorch-fid computes it, which the paper's authors used; with the protocol "
        "paper-256 it is theirs. Only values of equally many images compare."
    )


class Kid(_Torchmetrics):
    """KID with torchmetrics' Inception and torch-fidelity's estimator."""

    name = "kid"
    label = "KID"
    decimals = 5
    what = (
        "Kernel Inception distance to the reference images: the unbiased squared MMD with the "
        "usual cubic kernel, mean of 100 subsets of up to 1000 images (torch-fidelity). Fair at "
        "few images too."
    )

    def distance(self, features: Array, reference: Reference) -> float:
        """Mean over the subsets. Raises CRDiffError for a reference without images."""
        if reference.features is None:
            raise CRDiffError(NO_IMAGES)
        return kernel_distance(features, reference.features)

    def difference(
        self,
        method: Array,
        dense: Array,
        reference: Reference,
        prompts: Sequence[str] | None = None,
    ) -> Interval | None:
        """Jackknife interval of the difference of the unbiased estimates over all images."""
        if reference.features is None:
            raise CRDiffError(NO_IMAGES)
        return kernel_difference(method, dense, reference.features, prompts)

    def unsuited(self, source: ReferenceSource) -> str | None:
        """KID compares images with images."""
        return None if source.has_images else NO_IMAGES


NO_IMAGES = "kid needs the reference images, not mu and sigma: give --reference a folder"
