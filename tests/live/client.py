"""The host's HTTP API, as the live tests use it: images as pixel hashes, the probe's routes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

TITLE = "CR-Diff"
REFINE = "CR-Diff: refine for this prompt"
STEPS = int(os.environ.get("CRDIFF_LIVE_STEPS", "4"))
SIDE = int(os.environ.get("CRDIFF_LIVE_SIDE", "128"))  # pixels
OFF: dict[str, Any] = {"enabled": False}
BASE: dict[str, Any] = {
    "prompt": "a (cat:1.2) on a mat",
    "negative_prompt": "blurry",
    "steps": STEPS,
    "width": SIDE,
    "height": SIDE,
    "seed": 1,
    "sampler_name": "Euler",
    "cfg_scale": 7,
}


def on(ratio: float = 0.4, **more: Any) -> dict[str, Any]:
    """Arguments that act on any size with one ratio for all three groups."""
    same = {"mode": "always", "ratios": "set", "down": ratio, "mid": ratio, "up": ratio}
    return {**same, **more}


class Refused(Exception):
    """An HTTP error: ``status`` and the API's ``detail``."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status = status
        self.detail = detail


@dataclass(frozen=True)
class Images:
    """What a generation gave."""

    png: list[bytes]
    info: dict[str, Any]

    @property
    def pixels(self) -> list[np.ndarray]:
        """Each image as uint8 [height, width, 3]."""
        return [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in self.png]

    @property
    def hashes(self) -> list[str]:
        """A hash of each image's size and pixels."""
        return [
            hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()[:16]
            for image in self.pixels
        ]

    @property
    def hash(self) -> str:
        """The hash of the only image."""
        (only,) = self.hashes
        return only

    @property
    def infotext(self) -> str:
        """The first image's generation parameters."""
        text: str = self.info["infotexts"][0]
        return text

    @property
    def rounds(self) -> list[tuple[str, str]]:
        """Of a refinement: hash and "number kind" of each image, in order."""
        told = [text.rsplit("CR-Diff round: ", 1)[1] for text in self.info["infotexts"]]
        return list(zip(self.hashes, told, strict=True))


@dataclass(frozen=True)
class Drawn(Images):
    """A generation, and what the probe saw of it."""

    dense: int
    pruned: int
    seconds: float

    @property
    def passes(self) -> tuple[int, int]:
        """Dense and pruned forwards of the UNet."""
        return self.dense, self.pruned


class Client:
    """Speaks to one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def answers(self, path: str) -> bool:
        """Whether ``path`` gives 200 by now."""
        try:
            self.get(path)
        except (Refused, OSError):
            return False
        return True

    def get(self, path: str) -> Any:
        """JSON of a GET. Raises Refused."""
        return self._call(path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """JSON of a POST. Raises Refused."""
        return self._call(path, {} if body is None else body)

    def txt2img(self, args: Any = None, **more: Any) -> Images:
        """Generate; ``args`` are CR-Diff's (a dict or a list); None: not mentioned at all."""
        return self._generate("/sdapi/v1/txt2img", args, more)

    def img2img(self, image: bytes, args: Any = None, **more: Any) -> Images:
        """The same from an image (PNG)."""
        more = {"init_images": [base64.b64encode(image).decode()], **more}
        return self._generate("/sdapi/v1/img2img", args, more)

    def draw(self, args: Any = None, **more: Any) -> Drawn:
        """txt2img (img2img where ``image`` is given), timed, with its passes counted."""
        self.counts()
        image = more.pop("image", None)
        began = time.monotonic()
        made = self.txt2img(args, **more) if image is None else self.img2img(image, args, **more)
        seconds = round(time.monotonic() - began, 2)
        return Drawn(made.png, made.info, **self.counts(), seconds=seconds)

    def refine(
        self, values: dict[str, Any], args: Any = None, image: bytes | None = None, **more: Any
    ) -> Images:
        """Refine for a prompt: ``values`` are the script's; from ``image`` in img2img."""
        more = {**more, "script_name": REFINE, "script_args": [values]}
        if image is None:
            return self.txt2img(args, **more)
        return self.img2img(image, args, **more)

    def refined(self, session: str) -> dict[str, Any]:
        """What the search of that name found."""
        found = self.get("/crdiff/v1/refine")["results"]
        one: dict[str, Any] = next(one for one in found if one["session"] == session)
        return one

    def set_model(self, title: str) -> None:
        """Switch the checkpoint for what follows."""
        self.post("/sdapi/v1/options", {"sd_model_checkpoint": title})

    def counts(self) -> dict[str, int]:
        """Forwards of the UNet since the last call: ``dense`` and ``pruned``."""
        counts: dict[str, int] = self.post("/crdiff-probe/counts")
        return counts

    def weights(self) -> dict[str, str]:
        """A checksum of every tensor of the loaded UNet, by name, LoRA as it is merged now."""
        sums: dict[str, str] = self.get("/crdiff-probe/weights")
        return sums

    def inject(self, kind: str, at: int = 1) -> None:
        """In the middle of the ``at``-th pruned pass from now: "exception" or "interrupt"."""
        self.post("/crdiff-probe/inject", {"kind": kind, "at": at})

    def _generate(self, path: str, args: Any, more: dict[str, Any]) -> Images:
        body = {name: value for name, value in {**BASE, **more}.items() if value is not None}
        if args is not None:
            given = [args] if isinstance(args, dict) else args
            body["alwayson_scripts"] = {
                TITLE: {"args": given},
                **body.get("alwayson_scripts", {}),
            }
        answer = self.post(path, body)
        return Images(
            [base64.b64decode(image) for image in answer["images"]],
            json.loads(answer["info"] or "{}"),  # SD.Next's is empty when there is no image
        )

    def _call(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=1800) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _detail(error.read().decode(errors="replace"))) from None


def _detail(text: str) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return text
    # A1111 hides what an exception said in "errors"; HTTPException's sentence is the detail.
    return str(answer.get("detail") or answer.get("errors") or answer)
