"""The extension's routes on the host's web server: schema, presets, resolve, report, refine.

Requests are read as raw JSON, because hosts bring pydantic 1 (AUTOMATIC1111) or 2 (Forge).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import script_callbacks, shared

from .. import __version__
from ..amplify import expected_cost
from ..errors import CRDiffError
from ..families import FAMILIES
from ..presets import MAX_SIDE
from ..settings import Settings, as_number
from . import arguments, infotext, options, refine_arguments, refine_results, report
from .hosts import Adapter
from .job import ModelFacts, decide_for

if TYPE_CHECKING:
    from .library import Library

try:
    from modules.infotext_utils import paste_fields
except ImportError:  # its name before WebUI 1.8, and in SD.Next
    from modules.generation_parameters_copypaste import paste_fields

PREFIX = "/crdiff/v1"
FIELDS = ("height", "width", "model", "part", "settings")
MAX_BODY = 65536

_BASIC = HTTPBasic()


class NotNow(CRDiffError):
    """A good request that can't be answered as things are (HTTP 409)."""


def register(adapter: Adapter, library: Library) -> None:
    """Add the routes when the host's server starts; harmless to repeat."""

    def started(demo: Any, app: FastAPI) -> None:
        settle_sliders()
        add_routes(app, adapter, library)

    script_callbacks.on_app_started(started)


def add_routes(app: FastAPI, adapter: Adapter, library: Library) -> None:
    """Add the routes to ``app`` unless they are there; behind --api-auth if the host's API is."""
    if any(getattr(route, "path", "").startswith(f"{PREFIX}/") for route in app.routes):
        return

    def schema() -> Any:
        return JSONResponse(describe())

    def presets() -> Any:
        return JSONResponse(listed(library))

    async def decide(request: Request) -> Any:
        body = await request.body()
        return _answer(lambda: resolve(_object(body), adapter, library))

    def tell() -> Any:
        return JSONResponse(report.collect(adapter, library))

    def refined() -> Any:
        return JSONResponse(refine_results.RESULTS.listed())

    for name, endpoint, method in (
        ("schema", schema, "GET"),
        ("presets", presets, "GET"),
        ("resolve", decide, "POST"),
        ("report", tell, "GET"),
        ("refine", refined, "GET"),
    ):
        path = f"{PREFIX}/{name}"
        app.add_api_route(path, endpoint, methods=[method], dependencies=_guard(), tags=["CR-Diff"])


def describe() -> dict[str, Any]:
    """Both scripts' arguments in their order, and JSON Schema of the settings made from them."""
    return {
        "version": __version__,
        "arguments": _told(arguments.ARGUMENTS),
        "refine_arguments": _told(refine_arguments.ARGUMENTS),
        "settings": Settings.json_schema(),
    }


def _told(known: Sequence[arguments.Argument]) -> list[dict[str, Any]]:
    return [
        {
            "name": argument.name,
            "default": argument.default,
            "label": argument.label,
            "choices": list(argument.choices) or None,
        }
        for argument in known
    ]


def listed(library: Library) -> dict[str, Any]:
    """All stored ratios, the user's over the ones that ship; and what is wrong with the file."""
    return {
        "presets": [preset.to_dict() for preset in library.presets()],
        "complaint": library.public_complaint or None,
    }


def resolve(body: Mapping[str, Any], adapter: Adapter, library: Library) -> dict[str, Any]:
    """What would happen to an image of height x width pixels, and why. Raises CRDiffError."""
    unknown = [name for name in body if name not in FIELDS]
    if unknown:
        raise CRDiffError(f"field {unknown[0]!r} is not known: use {', '.join(FIELDS)}")
    size = _side(body, "height"), _side(body, "width")
    part = body.get("part", "first")
    if part not in ("first", "hires"):
        raise CRDiffError(f"part is {part!r}: use first or hires")
    asked = body.get("settings", {})
    if not isinstance(asked, Mapping):
        raise CRDiffError(f"settings are {asked!r}: an object with arguments by name is needed")
    usual = {"mode": options.default_mode(), "amplification": options.default_amplification()}
    values = arguments.named([{**usual, **asked}])
    settings = arguments.settings_from(values, options.limits())
    facts = _facts(body.get("model"), adapter)
    decision = decide_for(settings, library.presets(), facts, size, part)
    if decision.code == "unequal":
        raise CRDiffError(decision.sentence)
    return {
        "act": decision.act,
        "code": decision.code,
        "sentence": decision.sentence,
        "ratios": None if decision.ratios is None else decision.ratios.as_dict(),
        "k": decision.k,
        "amplification": settings.amplification,
        "cost": expected_cost(settings.amplification, decision.k) if decision.act else 1.0,
        "preset": None if decision.preset is None else decision.preset.to_dict(),
        "family": facts.family.name,
        "checkpoint": facts.checkpoint or None,
    }


def settle_sliders() -> None:
    """Make sure that our sliders hold floats.

    A user's saved default of 2 is an int in the host's ui-config.json, and the API casts a pasted
    infotext's values to the type that a component holds (apply_infotext in modules/api/api.py): 1.5
    would become 1.
    """
    for tab in paste_fields.values():
        for component, key, *_ in tab.get("fields") or ():
            if not isinstance(key, infotext.Reader) or not isinstance(component.value, int):
                continue
            if isinstance(arguments.DEFAULTS[key.name], float):
                component.value = float(component.value)


def _side(body: Mapping[str, Any], name: str) -> int:
    if name not in body:
        raise CRDiffError(f"{name} is missing: give the image's height and width in pixels")
    side = as_number(body[name], name)
    if side != int(side) or not 1 <= side <= MAX_SIDE:
        raise CRDiffError(f"{name} is {side:g}: a whole number from 1 to {MAX_SIDE} is needed")
    return int(side)


def _facts(model: object, adapter: Adapter) -> ModelFacts:
    """A family by name, or the loaded model where none is given."""
    if model is None:
        loaded = adapter.loaded_model()
        if loaded is None:
            raise NotNow("no model is loaded: name a family in the field model")
        return loaded
    if not isinstance(model, str) or model not in FAMILIES:
        raise CRDiffError(f"model {model!r} is not known: use one of {', '.join(FAMILIES)}")
    family = FAMILIES[model]
    here = family.name in adapter.transformers or not family.is_dit
    refused = None if here else f"{family.label} is not supported in this WebUI"
    return ModelFacts(family, "", refused)


def _object(body: bytes) -> Mapping[str, Any]:
    """A JSON object from a request's body. Raises CRDiffError."""
    if len(body) > MAX_BODY:
        raise CRDiffError(f"the request is longer than {MAX_BODY} bytes")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CRDiffError(f"the request is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CRDiffError("the request must be a JSON object with height and width")
    return data


def _answer(make: Callable[[], dict[str, Any]]) -> JSONResponse:
    try:
        return JSONResponse(make())
    except CRDiffError as error:
        status = 409 if isinstance(error, NotNow) else 422
        return JSONResponse({"detail": str(error)}, status_code=status)


def _passwords() -> dict[str, str]:
    """By user name, as modules/api/api.py reads them: "user:password,user:password".

    SD.Next's flags are --auth, whose quotation marks don't count, and --auth-file, with one a line.
    Raises ValueError for an entry without a colon, as hosts do: the routes must not be left open.
    """
    theirs = getattr(shared.cmd_opts, "auth", None) or ""
    if file := getattr(shared.cmd_opts, "auth_file", None):
        theirs += "," + Path(file).read_text(encoding="utf-8").replace("\n", ",")
    own = (getattr(shared.cmd_opts, "api_auth", None) or "").split(",")
    entries = [*own, *(entry.replace('"', "").strip() for entry in theirs.split(","))]
    return dict(entry.split(":", 1) for entry in entries if entry)


def _guard() -> list[Any]:
    """The dependency that asks for a name and password if the host's own API does."""
    known = _passwords()
    if not known:
        return []

    def check(credentials: HTTPBasicCredentials = Depends(_BASIC)) -> None:  # noqa: B008
        password = known.get(credentials.username)
        given = credentials.password.encode()
        if password is None or not secrets.compare_digest(given, password.encode()):
            raise HTTPException(
                401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"}
            )

    return [Depends(check)]
