"""Live tests: a real WebUI, driven over HTTP; see docs/hosts.md for how to run them."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crdiff_ext import __version__
from tests.live import checkpoints
from tests.live.client import Client, Drawn
from tests.live.host import FULL_PRECISION, Installation, Server, running

RESULTS = pytest.StashKey[dict[str, Any]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark all tests here as live; leave out those whose module is for another host.

    ``HOST`` of the module names a host or a family, ``WITHOUT`` hosts of that family.
    """
    here = Path(__file__).parent
    found = Installation.find()
    others = []
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.live)
            module = getattr(item, "module", None)
            host, without = getattr(module, "HOST", None), getattr(module, "WITHOUT", ())
            if found is not None and (
                host not in (None, found.kind, found.family) or found.kind in without
            ):
                others.append(item)
            elif found is not None and found.kind == "sdnext" and host is None:
                # Its API and ours meet otherwise: test_sdnext.py picks of these what holds there.
                others.append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {"tests": {}}


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The WebUI that the environment names, or a skip."""
    found = Installation.find()
    if found is None:
        pytest.skip("CRDIFF_WEBUI_DIR is not set: no WebUI to run")
    return found


@pytest.fixture(scope="session")
def models(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints for this host; CRDIFF_LIVE_MODELS keeps it between runs."""
    kept = os.environ.get("CRDIFF_LIVE_MODELS")
    folder = Path(kept).resolve() if kept else tmp_path_factory.mktemp("models")
    checkpoints.make(installation, folder)
    return folder


Start = Callable[..., Any]


@pytest.fixture(scope="session")
def start(installation: Installation, models: Path, tmp_path_factory: Any) -> Start:
    """``start(*flags)``: a context manager with a host of its own, in fp32."""

    def begin(*flags: str, precision: bool = True) -> Any:
        more = FULL_PRECISION[installation.kind] if precision else []
        data = tmp_path_factory.mktemp("data")
        return running(
            installation, data, models / checkpoints.FIRST[installation.family], [*more, *flags]
        )

    return begin


@pytest.fixture(scope="session")
def server(start: Start, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The host that most tests share, with its page and its API."""
    with start() as started:
        about(request.config, started)
        yield started


def about(config: pytest.Config, started: Server) -> None:
    """Put what the host says of itself into the results."""
    results = config.stash[RESULTS]
    results["host"] = started.kind
    results["about"] = started.client.get("/crdiff-probe/about")
    commit = os.environ.get("CRDIFF_WEBUI_COMMIT")  # for an installation without its .git
    results["about"] |= {"commit": commit} if commit else {}
    results["start_seconds"] = started.start_seconds


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """The shared host's client, on the first checkpoint, its counters at zero."""
    server.client.post("/crdiff-probe/reset")
    yield server.client
    server.client.post("/crdiff-probe/reset")
    server.client.set_model(checkpoints.FIRST[server.family])


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``note(name=value)`` puts facts of this test into the results."""
    facts = request.config.stash[RESULTS]["tests"].setdefault(_name(request.node), {})

    def put(**values: Any) -> None:
        facts.setdefault("facts", {}).update(values)

    return put


class Draw:
    """``draw(label, args, **body)``: a generation on the shared host, noted in the results."""

    def __init__(self, client: Client, note: Callable[..., None]) -> None:
        self.client = client
        self._note = note

    def __call__(self, label: str, args: Any = None, **more: Any) -> Drawn:
        drawn = self.client.draw(args, **more)
        # NaN as uint8: such images are equal whatever was done, and no test could tell them apart.
        assert all(image.any() for image in drawn.pixels), (
            f"{label}: black, so not finite (a checkpoint of an older maker, kept?)"
        )
        self._note(
            **{
                label: {
                    "hashes": drawn.hashes,
                    "dense": drawn.dense,
                    "pruned": drawn.pruned,
                    "seconds": drawn.seconds,
                }
            }
        )
        return drawn


@pytest.fixture
def draw(client: Client, note: Callable[..., None]) -> Draw:
    """Draw on the shared host."""
    return Draw(client, note)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    report = yield
    if Path(__file__).parent in item.path.parents and (call.when == "call" or report.skipped):
        entry = item.config.stash[RESULTS]["tests"].setdefault(_name(item), {})
        entry["outcome"] = report.outcome
        entry["seconds"] = round(report.duration, 2)
        if report.skipped and isinstance(report.longrepr, tuple):
            entry["reason"] = report.longrepr[2]
    return report


@pytest.fixture(scope="session", autouse=True)
def results_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Write what was found when all is done, into CRDIFF_LIVE_OUT or pytest's own folder."""
    began = time.time()
    yield
    results = request.config.stash[RESULTS]
    if "host" not in results:
        return
    tests = results["tests"]
    outcomes = [entry.get("outcome") for entry in tests.values()]
    summary = {
        "crdiff": __version__,
        "host": results["host"],
        **results["about"],
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, CPU only",
        "start_seconds": results["start_seconds"],
        "seconds": round(time.time() - began, 1),
        "passed": outcomes.count("passed"),
        "failed": outcomes.count("failed"),
        "skips": {
            n: e.get("reason", "") for n, e in tests.items() if e.get("outcome") == "skipped"
        },
        "tests": dict(sorted(tests.items())),
    }
    named = os.environ.get("CRDIFF_LIVE_OUT")
    folder = Path(named) if named else tmp_path_factory.mktemp("results")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{results['host']}.json").write_text(text, encoding="utf-8")


def _name(item: Any) -> str:
    return f"{item.path.stem}::{item.name}"
