"""Refinement over the API in whichever host runs, judged by a reward in a process of its own.

The embedded reward scores any image, of random weights' too, so the checkpoint doesn't matter.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from harness.embedded.reward import EmbeddedReward
from tests.live.client import BASE, OFF, Client, Images, Refused, on
from tests.live.test_generations import _mask

ROUNDS = 3  # the dense images, the start, one candidate
BODY: dict[str, Any] = {
    **BASE,
    "prompt": "a red circle to the left of a blue square, white background",
    "seed": 21,
}
FROM_IMAGE = {"denoising_strength": 0.6}
INPAINT = {**FROM_IMAGE, "inpainting_fill": 1, "mask_blur": 2, "inpaint_full_res": False}
ROUNDING = 1e-3  # of a score, by the number of threads that added it up


@pytest.fixture(scope="module")
def judged(server: Any) -> Iterator[None]:
    """The embedded reward judges, run by this checkout's .venv."""
    server.client.post("/sdapi/v1/options", {"crdiff_reward": "embedded"})
    yield
    server.client.post("/sdapi/v1/options", {"crdiff_reward": "auto"})


def off_images(client: Client, body: dict[str, Any], seeds: int) -> tuple[list[str], int]:
    """Hashes of the seeds' dense images, in order, and the forwards of one.

    The encoder of img2img draws from a generator as the image before left it, so in every round
    the first seed's image has to follow the last seed's.
    """
    last = {**body, "seed": body["seed"] + seeds - 1}
    client.draw(OFF, **last)
    drawn = [client.draw(OFF, **{**body, "seed": body["seed"] + n}) for n in range(seeds)]
    (forwards,) = {one.dense for one in drawn}
    assert all(one.pruned == 0 for one in drawn)
    return [one.hash for one in drawn], forwards


def scores_of(made: Images, prompt: str) -> list[float]:
    """What the reward says in this process."""
    images = [Image.fromarray(pixels) for pixels in made.pixels]
    return [float(one) for one in EmbeddedReward.load().score(images, [prompt] * len(images))]


def refined(client: Client, note: Any, session: str, body: dict[str, Any], seeds: int) -> None:
    """A search of ``body`` and all that is to hold of it."""
    off, forwards = off_images(client, body, seeds)
    client.counts()
    values = {"budget": ROUNDS * seeds, "seeds": seeds, "session": session}
    made = client.refine(values, on(), **body)
    counts, found = client.counts(), client.refined(session)
    rows = found["rows"]
    note(message=found["message"], rows=rows, forwards=forwards, **counts)

    assert len(made.png) == ROUNDS * seeds
    assert [image for image, told in made.rounds if told.endswith("dense")] == off
    assert len(set(made.hashes)) == ROUNDS * seeds
    acting = [row for row in rows if row["kind"] != "dense"]
    both = [row for row in acting if row["k"] != 1]  # with k = 1 the pruned pass is all
    assert counts["pruned"] == len(acting) * seeds * forwards
    assert counts["dense"] == (len(both) + 1) * seeds * forwards

    scores = [row["score"] for row in rows]
    assert all(map(math.isfinite, scores))
    assert scores == sorted(scores, reverse=True)
    assert {row["kind"] for row in rows} == {"dense", "start", "candidate"}
    assert len({json.dumps((row["ratios"], row["k"])) for row in rows}) == ROUNDS
    start = next(row for row in rows if row["kind"] == "start")
    assert (start["ratios"], start["k"]) == ({"down": 0.4, "mid": 0.4, "up": 0.4}, 1.5)
    # Each row's images are those that it was judged by, and the gallery's order is the rows'.
    ours = scores_of(made, body["prompt"])
    for n, row in enumerate(rows):
        at = slice(n * seeds, (n + 1) * seeds)
        told = made.rounds[at]
        assert [kind for _, kind in told] == [f"{row['number']} {row['kind']}"] * seeds
        assert sum(ours[at]) / seeds == pytest.approx(row["score"], abs=ROUNDING)
        shown = [re.search(r"CR-Diff score: (-?[\d.]+)", t) for t in made.info["infotexts"][at]]
        assert {one and one[1] for one in shown} == {f"{row['score']:.4f}"}

    best = next(n for n, (_, told) in enumerate(made.rounds) if not told.endswith("dense"))
    again = again_from(client, made.info["infotexts"][best], body)
    assert again.hash == made.hashes[best]
    assert "CR-Diff score" not in again.infotext
    after = [client.draw(OFF, **{**body, "seed": body["seed"] + n}) for n in reversed(range(seeds))]
    assert [one.hash for one in after] == off[::-1]
    assert [one.passes for one in after] == [(forwards, 0)] * seeds


def again_from(client: Client, infotext: str, body: dict[str, Any]) -> Images:
    """An image drawn again from its infotext: alone, or beside ``body`` where that has an image."""
    body = body if "image" in body else dict.fromkeys(BASE)
    # Forge's own infotext code fails without (modules/api/api.py).
    return client.draw(None, **{**body, "styles": [], "infotext": infotext})


def test_a_search(judged: None, client: Client, note: Any) -> None:
    refined(client, note, "txt2img", BODY, seeds=2)


@pytest.mark.parametrize(("kind", "seeds"), [("img2img", 1), ("inpaint", 2)])
def test_a_search_from_an_image(
    judged: None, client: Client, note: Any, kind: str, seeds: int
) -> None:
    image = client.txt2img(OFF, **{**BODY, "seed": 3}).png[0]
    more = FROM_IMAGE if kind == "img2img" else {**INPAINT, "mask": _mask()}
    refined(client, note, kind, {**BODY, "image": image, **more}, seeds)


def test_two_images_to_start_from_are_refused(judged: None, client: Client) -> None:
    images = [client.txt2img(OFF, **{**BODY, "seed": seed}).png[0] for seed in (3, 4)]
    values = {"budget": 6, "seeds": 2, "session": "two images"}
    client.counts()
    both = [b64encode(image).decode() for image in images]
    with pytest.raises(Refused, match="several images to start from: give one") as refused:
        client.refine(values, on(), images[0], **{**BODY, **FROM_IMAGE, "init_images": both})
    assert refused.value.status == 422
    assert client.counts() == {"dense": 0, "pruned": 0}
    assert client.get("/sdapi/v1/progress")["state"]["job_count"] == 0
    assert client.refined("two images")["rows"] == []
