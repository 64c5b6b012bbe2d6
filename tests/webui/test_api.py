"""The routes, over HTTP on the host's fastapi, in both pydantic generations."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from crdiff_ext.families import FAMILIES
from crdiff_ext.settings import Settings
from crdiff_ext.webui import infotext
from crdiff_ext.webui.arguments import ARGUMENTS, NAMES
from crdiff_ext.webui.job import ModelFacts
from crdiff_ext.webui.library import Library
from crdiff_ext.webui.refine_arguments import NAMES as REFINE_NAMES
from crdiff_ext.webui.refine_results import RESULTS, Result
from tests.webui.fakes import plumbing
from tests.webui.jobs import PRESETS

pytest.importorskip("gradio", reason="the report reads the settings page, which needs gradio")
fastapi = pytest.importorskip("fastapi", reason="the routes need fastapi")
testclient = pytest.importorskip("fastapi.testclient", reason="fastapi's client needs httpx")


class Library:
    complaint, path = "", Path("presets.user.json")
    public_complaint = Library.public_complaint

    def presets(self):
        return PRESETS


class Adapter:
    name, transformers = "fake", frozenset({"flux-dev", "sd3"})
    facts = ModelFacts(FAMILIES["sdxl"], "tiny.safetensors")

    def loaded_model(self):
        return self.facts


@pytest.fixture
def host():
    return plumbing.Host()


@pytest.fixture
def modules(host):
    with plumbing.loaded(host, "api", "report") as found:
        yield found


@pytest.fixture
def adapter():
    return Adapter()


def serve(host, modules, adapter):
    """The client of a started host."""
    app = fastapi.FastAPI()
    modules.api.register(adapter, Library())
    for callback in host.callbacks.app_started * 2:  # a second start adds nothing
        callback(None, app)
    assert sum(r.path.startswith("/crdiff/") for r in app.routes) == 5
    return testclient.TestClient(app)


@pytest.fixture
def client(host, modules, adapter):
    return serve(host, modules, adapter)


def test_schema(client):
    found = client.get("/crdiff/v1/schema").json()
    assert [a["name"] for a in found["arguments"]] == list(NAMES)
    assert [a["default"] for a in found["arguments"]] == [a.default for a in ARGUMENTS]
    assert found["arguments"][1]["choices"] == ["off", "auto", "always"]
    assert found["arguments"][0]["choices"] is None
    assert [a["name"] for a in found["refine_arguments"]] == list(REFINE_NAMES)
    assert found["settings"] == Settings.json_schema()


def test_presets(client):
    found = client.get("/crdiff/v1/presets").json()
    assert found == {"presets": [preset.to_dict() for preset in PRESETS], "complaint": None}


def test_resolve_for_the_loaded_model(client):
    found = client.post("/crdiff/v1/resolve", json={"height": 512, "width": 512})
    assert found.status_code == 200
    assert found.json() == {
        "act": True,
        "code": "stored",
        "sentence": "SDXL 512x512: stored ratios 0.397 / 0.434 / 0.387 (paper, Figure 7a)",
        "ratios": {"down": 0.397, "mid": 0.434, "up": 0.387},
        "k": 1.5,
        "amplification": "exact",
        "cost": 2.0,
        "preset": PRESETS[0].to_dict(),
        "family": "sdxl",
        "checkpoint": "tiny.safetensors",
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"height": 1024, "width": 1024}, "native"),
        ({"height": "512", "width": 512.0, "model": "sdxl"}, "stored"),
        ({"height": 400, "width": 560, "model": "sd15"}, "stored"),
        ({"height": 560, "width": 400, "model": "sd15"}, "nearest"),
        ({"height": 768, "width": 512, "model": "sd15"}, "other-side"),
        ({"height": 512, "width": 512, "model": "sd2-v"}, "no-stored"),
        ({"height": 512, "width": 512, "settings": {"enabled": False}}, "off"),
        ({"height": 512, "width": 512, "settings": {"k": "0"}}, "zero-k"),
        ({"height": 512, "width": 512, "settings": {"up": 0.5}}, "set"),
        ({"height": 512, "width": 512, "settings": {"passes": "first"}, "part": "hires"}, "off"),
        ({"height": 1024, "width": 1024, "settings": {"mode": "always"}}, "other-side"),
    ],
)
def test_resolve_says_what_would_happen(client, body, code):
    found = client.post("/crdiff/v1/resolve", json=body)
    assert found.status_code == 200
    answer = found.json()
    assert answer["code"] == code
    assert answer["act"] == (code in ("stored", "nearest", "set"))
    assert (answer["ratios"] is not None) == answer["act"]
    assert answer["sentence"]
    if "model" in body:
        assert (answer["family"], answer["checkpoint"]) == (body["model"], None)


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        ({"amplification": "folded"}, 1.0),
        ({"amplification": " Reuse-4 "}, 1.25),
        ({"k": 1}, 1.0),
        ({"mode": "off", "amplification": "reuse-2"}, 1.0),
    ],
)
def test_resolve_says_what_it_would_cost(client, settings, cost):
    body = {"height": 512, "width": 512, "settings": settings}
    assert client.post("/crdiff/v1/resolve", json=body).json()["cost"] == cost


def test_resolve_takes_the_amplification_of_the_settings_page(host, client):
    host.opts.data.update(crdiff_default_amplification="folded")
    found = client.post("/crdiff/v1/resolve", json=GOOD).json()
    assert (found["amplification"], found["cost"]) == ("folded", 1.0)


def test_resolve_uses_the_settings_page(host, client):
    host.opts.data.update(crdiff_default_mode="off")
    body = {"height": 512, "width": 512}
    assert client.post("/crdiff/v1/resolve", json=body).json()["code"] == "off"
    body["settings"] = {"mode": "auto"}
    host.opts.data["crdiff_native_area_tolerance"] = 0.8
    assert client.post("/crdiff/v1/resolve", json=body).json()["code"] == "native"


def test_resolve_for_a_refused_model(client, adapter):
    adapter.facts = ModelFacts(FAMILIES["unknown"], "x", refused="no prunable layers")
    answer = client.post("/crdiff/v1/resolve", json={"height": 512, "width": 512}).json()
    assert (answer["act"], answer["code"], answer["sentence"]) == (
        False, "refused", "no prunable layers",
    )  # fmt: skip


GOOD = {"height": 512, "width": 512}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff", "not JSON"), (b"[" * 60000, "not JSON"),
        (b" " * 70000, "longer than"), ([], "must be a JSON object"), (None, "must be a JSON"),
        ({"width": 512}, "height is missing"), ({"height": 512}, "width is missing"),
        ({**GOOD, "height": "abc"}, "height is 'abc'"), ({**GOOD, "height": -8}, "height is -8"),
        ({**GOOD, "width": 0}, "width is 0"), ({**GOOD, "width": 1.5}, "width is 1.5"),
        ({**GOOD, "width": None}, "width is None"), ({**GOOD, "width": True}, "width is True"),
        ({**GOOD, "height": math.nan}, "height is nan"), ({**GOOD, "height": 20000}, "height is"),
        ({**GOOD, "height": 10**400}, "height is"), ({**GOOD, "high": 1}, "'high' is not known"),
        ({**GOOD, "model": "sd9"}, "model 'sd9' is not known: use one of sd15"),
        ({**GOOD, "model": ["sdxl"]}, "is not known"), ({**GOOD, "part": "third"}, "part is"),
        ({**GOOD, "settings": []}, "settings are []"), ({**GOOD, "settings": 3}, "settings are 3"),
        ({**GOOD, "settings": {"ratio": 1}}, "'ratio' is not known"),
        ({**GOOD, "settings": {"k": 4}}, "k is 4"),
        ({**GOOD, "settings": {"amplification": "fast"}}, "amplification is 'fast': use one of"),
        ({**GOOD, "settings": {"up": "abc"}}, "up is 'abc'"),
        ({**GOOD, "settings": {"start": 0.8, "end": 0.2}}, "start is 0.8"),
    ],
)  # fmt: skip
def test_resolve_answers_bad_input_with_a_sentence(client, body, sentence):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = client.post("/crdiff/v1/resolve", content=content)
    assert found.status_code == 422
    assert list(found.json()) == ["detail"]
    assert sentence in found.json()["detail"]


def test_resolve_without_a_model(client, adapter):
    adapter.facts = None
    found = client.post("/crdiff/v1/resolve", json=GOOD)
    assert found.status_code == 409
    assert "no model is loaded" in found.json()["detail"]
    assert client.post("/crdiff/v1/resolve", json={**GOOD, "model": "sdxl"}).status_code == 200


def test_other_methods(client):
    assert client.get("/crdiff/v1/resolve").status_code == 405
    assert client.post("/crdiff/v1/schema").status_code == 405


@pytest.mark.parametrize("path", ["schema", "presets", "report", "refine"])
def test_behind_the_hosts_password(host, modules, adapter, path):
    host.cmd_opts.api_auth = "me:secret,you:pass:word"
    client = serve(host, modules, adapter)
    url = f"/crdiff/v1/{path}"
    assert client.get(url).status_code == 401
    for wrong in (("me", "pass:word"), ("me", ""), ("she", "secret"), ("me", "sécret")):
        assert client.get(url, auth=wrong).status_code == 401, wrong
    for right in (("me", "secret"), ("you", "pass:word")):
        assert client.get(url, auth=right).status_code == 200
    assert client.post("/crdiff/v1/resolve", json=GOOD).status_code == 401
    assert client.post("/crdiff/v1/resolve", json=GOOD, auth=right).status_code == 200


def test_behind_a_password_of_the_other_flags(host, modules, adapter, tmp_path):
    """SD.Next's --auth and --auth-file (modules/api/api.py)."""
    path = tmp_path / "users"
    path.write_text("third:three\nfourth:four\n", encoding="utf-8")
    host.cmd_opts.auth, host.cmd_opts.auth_file = '"me:secret,you:other"', str(path)
    client = serve(host, modules, adapter)
    url = "/crdiff/v1/schema"
    assert client.get(url).status_code == 401
    for right in (("me", "secret"), ("you", "other"), ("third", "three"), ("fourth", "four")):
        assert client.get(url, auth=right).status_code == 200, right
    assert client.get(url, auth=("me", "other")).status_code == 401


def test_a_damaged_password_leaves_no_route_open(host, modules, adapter):
    host.cmd_opts.auth = "nobody"
    with pytest.raises(ValueError, match="length"):
        serve(host, modules, adapter)


def test_saved_integers_do_not_round_a_pasted_number(host, modules, adapter):
    # ui-config.json keeps 2.0 as 2; modules/api/api.py then casts 1.25 to int
    components = {name: SimpleNamespace(value=2) for name in ("k", "down")}
    components["enabled"] = SimpleNamespace(value=True)
    fields = infotext.fields(components)
    foreign = SimpleNamespace(value=20)
    host.paste_fields["txt2img"] = {"fields": [*fields, (foreign, "Steps")]}
    host.paste_fields["inpaint"] = {"fields": None}
    text = {"CR-Diff": "0.1.0", "CR-Diff ratios": "0.4/0.4/0.4", "CR-Diff k": "1.25"}
    assert plumbing.apply_infotext(fields, text) == {0: True, 1: 0, 2: 1}  # the trap
    serve(host, modules, adapter)
    assert plumbing.apply_infotext(fields, text) == {0: True, 1: 0.4, 2: 1.25}
    assert (type(foreign.value), components["enabled"].value) == (int, True)


def test_searches_over_http(client):
    RESULTS.put(Result("phoenix", "fake", "a phoenix", Adapter.facts, (512, 640), 2))
    newest = client.get("/crdiff/v1/refine").json()["results"][0]
    assert (newest["session"], newest["height"], newest["width"]) == ("phoenix", 512, 640)
    assert "a phoenix" not in str(newest)


def test_the_report_over_http(client, modules, caplog):
    with caplog.at_level(logging.INFO):
        modules.report.remember("a decision")
        found = client.get("/crdiff/v1/report").json()
    assert found["log"][-1].endswith(" a decision")
    assert found["model"]["checkpoint"] == "tiny.safetensors"
    assert "secret" not in json.dumps(found)


def test_a_transformer_is_told_by_its_one_ratio(client):
    body = {"height": 512, "width": 512, "model": "flux-dev", "settings": {"ratios": "set"}}
    answer = client.post("/crdiff/v1/resolve", json=body).json()
    assert (answer["act"], answer["code"], answer["family"]) == (True, "set", "flux-dev")
    assert answer["sentence"] == "FLUX dev 512x512: ratio 0.3 (set by hand)"
    assert answer["ratios"] == {"down": 0.3, "mid": 0.3, "up": 0.3}
    body["settings"] = {}
    answer = client.post("/crdiff/v1/resolve", json=body).json()
    assert (answer["act"], answer["code"]) == (False, "no-stored")
    body["settings"] = {"down": 0.1}
    refused = client.post("/crdiff/v1/resolve", json=body)
    assert refused.status_code == 422
    assert refused.json()["detail"] == (
        "FLUX dev has one ratio for all layers: give one number, such as 0.1 for down, mid and up "
        "alike, and not 0.1 / 0.3 / 0.3"
    )


def test_a_transformer_where_they_are_not_supported(client, adapter):
    adapter.transformers = frozenset({"flux-dev"})
    body = {"height": 512, "width": 512, "model": "sd3", "settings": {"ratios": "set"}}
    answer = client.post("/crdiff/v1/resolve", json=body).json()
    assert (answer["act"], answer["code"]) == (False, "refused")
    assert answer["sentence"] == "SD3 is not supported in this WebUI"
