"""X/Y/Z plots, infotexts, the extension's own routes, and the webuiapi client, in any host."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from crdiff_ext import __version__
from tests.live.client import BASE, OFF, Client, Refused, on
from tests.live.conftest import Draw


def xyz(client: Client, *axes: tuple[str, str]) -> dict[str, Any]:
    """The body's part for an X/Y/Z plot that also gives each cell alone."""
    scripts = client.get("/sdapi/v1/script-info")
    (plot,) = (s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])
    labels = [argument["label"] for argument in plot["args"]]
    choices = plot["args"][0]["choices"]
    names = [choice if isinstance(choice, str) else choice[0] for choice in choices]
    args = [argument["value"] for argument in plot["args"]]
    for place, letter in enumerate("XYZ"):
        where = labels.index(f"{letter} type")
        name, values = axes[place] if place < len(axes) else ("Nothing", "")
        args[where : where + 3] = [names.index(name), values, []]
    for label, value in (
        ("Include Sub Images", True),
        ("Use text inputs instead of dropdowns", True),
        ("Draw legend", False),
    ):
        args[labels.index(label)] = value
    return {"script_name": "x/y/z plot", "script_args": args}


def test_axes_are_registered_once(client: Client) -> None:
    scripts = client.get("/sdapi/v1/script-info")
    for plot in (script for script in scripts if script["name"] == "x/y/z plot"):
        text = json.dumps(plot["args"][0]["choices"])
        ours = re.findall(r"\[CR-Diff\] [^\"]+", text)
        assert len(ours) == len(set(ours)) >= 10
    names = [script["name"] for script in scripts if script["is_alwayson"]]
    assert names.count("cr-diff") == 2  # txt2img and img2img


def test_cells_equal_direct_calls(draw: Draw, client: Client) -> None:
    axes = ("[CR-Diff] Ratio (all blocks)", "0, 0.2, 0.4"), ("[CR-Diff] k", "1, 1.5")
    plot = draw("grid", on(0.3), **xyz(client, *axes))
    cells = plot.hashes[1:]
    direct = [
        draw(f"ratio {ratio}, k {k}", on(ratio, k=k)).hash
        for k in (1, 1.5)
        for ratio in (0, 0.2, 0.4)
    ]
    assert cells == direct
    assert len(set(direct)) == 5  # ratio 0 is the same for any k
    off = draw("off", OFF)
    assert direct[0] == off.hash
    assert plot.pruned == 4 * off.dense


def test_the_other_axes(draw: Draw, client: Client) -> None:
    plot = draw("enabled", on(), **xyz(client, ("[CR-Diff] Enabled", "False, True")))
    assert plot.hashes[1:] == [draw("off", OFF).hash, draw("on", on()).hash]
    ways = ("exact", "folded", "reuse-2")
    plot = draw("ways", on(), **xyz(client, ("[CR-Diff] Amplification", ", ".join(ways))))
    assert plot.hashes[1:] == [draw(way, on(amplification=way)).hash for way in ways]
    assert len(set(plot.hashes[1:])) == 3
    axes = ("[CR-Diff] Down", "0.1, 0.4"), ("[CR-Diff] Window end", "0.5, 1")
    plot = draw("down and end", on(0.3), **xyz(client, *axes))
    direct = [
        draw(f"{down} {end}", on(0.3, down=down, end=end)).hash
        for end in (0.5, 1)
        for down in (0.1, 0.4)
    ]
    assert plot.hashes[1:] == direct
    assert len(set(direct)) == 4


@pytest.mark.parametrize(
    "args",
    [
        on(),
        on(k=2, start=0.25, end=0.75),
        on(0.1, down=0.123, passes="first"),
        on(memory="copy"),
        on(amplification="folded"),
        on(amplification="reuse-2", k=1.25),
    ],
)
def test_an_infotext_through_the_api_gives_the_same_image(
    draw: Draw, server: Any, args: dict[str, Any]
) -> None:
    drawn = draw("on", args)
    body: dict[str, Any] = dict.fromkeys(BASE)  # all of it has to come from the text
    if server.family == "forge":
        body["styles"] = []  # its own infotext code fails without (modules/api/api.py)
    again = draw("from the infotext", **body, infotext=drawn.infotext)
    assert again.hash == drawn.hash
    assert again.pruned == drawn.pruned > 0
    assert again.infotext == drawn.infotext


def test_an_infotext_says_what_ran(draw: Draw) -> None:
    text = draw("on", on(0.25, k=2, end=0.5)).infotext
    assert f"CR-Diff: {__version__}" in text
    assert "CR-Diff ratios: 0.25/0.25/0.25" in text
    assert "CR-Diff k: 2" in text
    assert "CR-Diff mode: always" in text
    for args in (OFF, on(0), on(k=0), on(1e-9)):
        assert "CR-Diff" not in draw(f"{args}", args).infotext


def test_the_schema_presets_resolve_and_report(client: Client) -> None:
    schema = client.get("/crdiff/v1/schema")
    assert "mode" in json.dumps(schema)
    assert "sdxl" in json.dumps(client.get("/crdiff/v1/presets"))
    found = client.post("/crdiff/v1/resolve", {"model": "sdxl", "height": 512, "width": 512})
    assert found["act"] is True
    assert found["ratios"] == {"down": 0.397, "mid": 0.434, "up": 0.387}
    native = client.post("/crdiff/v1/resolve", {"model": "sdxl", "height": 1024, "width": 1024})
    assert (native["act"], native["code"]) == (False, "native")
    loaded = client.post("/crdiff/v1/resolve", {"height": 512, "width": 512})
    assert loaded["checkpoint"]
    with pytest.raises(Refused) as caught:
        client.post("/crdiff/v1/resolve", {"height": "tall", "width": 512})
    assert 400 <= caught.value.status < 500
    assert "height" in caught.value.detail
    assert __version__ in json.dumps(client.get("/crdiff/v1/report"))


def test_the_webuiapi_client_needs_no_change(draw: Draw, server: Any) -> None:
    webuiapi = pytest.importorskip("webuiapi", reason="the webuiapi client is not installed")
    host, port = server.url.removeprefix("http://").split(":")
    theirs = webuiapi.WebUIApi(host=host, port=int(port))
    body = {name: value for name, value in BASE.items() if name != "sampler_name"}
    for args in (on(), OFF):
        made = theirs.txt2img(
            **body, sampler_name="Euler", alwayson_scripts={"CR-Diff": {"args": [args]}}
        )
        mine = draw(f"{args}", args)
        assert np.array_equal(np.asarray(made.image.convert("RGB")), mine.pixels[0])
