"""ImageReward by the image-reward package itself, as a second opinion.

The package (1.5, 2023) needs a transformers that our diffusers can't use, so it lives in an
environment of its own (``make env-imagereward``, from ``requirements/imagereward.lock``) and runs
as a child process that we talk to over pipes. ``make parity-image-reward`` holds the two against
each other.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.scorers.base import batches, prepare
from harness.scorers.image_reward import CHECKPOINT, MED_CONFIG, VOCABULARY, ImageReward
from harness.stats import Array

VARIABLE = "CRDIFF_IMAGEREWARD_PYTHON"
ENVIRONMENT = ".venv-imagereward"
CHILD = Path(__file__).with_name("image_reward_child.py")


def package_python() -> Path | None:
    """The Python that has the package: as $CRDIFF_IMAGEREWARD_PYTHON says, else make's, or None."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else CHILD.parents[2] / ENVIRONMENT / "bin" / "python"
    return path if path.is_file() else None


class ImageRewardPackage(ImageReward):
    """The same checkpoint through the package's own code."""

    name = "image-reward-package"
    label = "ImageReward (package)"
    what = (
        "ImageReward v1.0 through the image-reward package itself, in an environment of its own: "
        "it checks our loading of the same checkpoint."
    )
    packages: ClassVar[tuple[str, ...]] = ("pillow",)

    def missing(self) -> str | None:
        """Files first, then the environment."""
        if sentence := super().missing():
            return sentence
        if package_python() is None:
            return (
                f"{self.name} needs the image-reward package in an environment of its own: run "
                "make env-imagereward where CR-Diff is checked out, or install "
                "requirements/imagereward.lock in one and put the path of its python into "
                f"{VARIABLE}"
            )
        return None

    def details(self) -> dict[str, Any]:
        """The versions in the other environment, which the child tells."""
        return {
            "backbone": "ImageReward v1.0, the image-reward package",
            "child": self._child.versions,
        }

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Array:
        """Rewards float64 [n]."""
        found: list[float] = []
        for batch in batches(images):
            texts = captions[len(found) : len(found) + len(batch)]
            ready = [prepare(image, self.protocol) for image in batch]
            found += self._child.score(ready, texts)
        return np.array(found, dtype=np.float64)

    @cached_property
    def _child(self) -> Child:
        self.require()
        python = package_python()
        files = [file.find(self.weights) for file in (CHECKPOINT, MED_CONFIG, VOCABULARY)]
        checkpoint, med_config, vocabulary = (path for path in files if path is not None)
        words = [str(checkpoint), str(med_config), str(vocabulary.parent), self.device]
        return Child([str(python), "-I", str(CHILD), *words])

    def close(self) -> None:
        """End the child."""
        child = self.__dict__.pop("_child", None)
        if child is not None:
            child.close()


class Child:
    """A child process that answers one line of JSON with one line of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it and wait until it has loaded. Raises CRDiffError if it doesn't."""
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            encoding="utf-8",
        )
        self._end = weakref.finalize(self, _end, self._process)
        self.versions: dict[str, str] = self._answer("ready")

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """One score for each image. Raises CRDiffError when the package fails."""
        asked = {"images": [_png(image) for image in images], "captions": list(captions)}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading its answer says so
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        return [float(value) for value in self._answer("scores")]

    def close(self) -> None:
        """End it, and wait until it has."""
        self._end()

    def _answer(self, key: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            found = json.loads(line)
        except ValueError:
            self.close()
            raise CRDiffError(
                "the image-reward package ended without an answer (its own message is above): "
                "run make env-imagereward again, or leave out image-reward-package"
            ) from None
        if key not in found:
            raise CRDiffError(
                f"the image-reward package failed ({found.get('error')}): leave out "
                "image-reward-package"
            )
        return found[key]


def _end(process: subprocess.Popen[str]) -> None:
    """Close its input, which ends it; kill it if that takes long."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
