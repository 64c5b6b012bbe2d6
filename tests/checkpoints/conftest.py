"""What the tests of checkpoints share: builders, the command line, and a network that is cut."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest


@pytest.fixture(scope="session")
def builders() -> ModuleType:
    """tests/checkpoints/builders.py; a package named `tests` in site-packages hides ours."""
    path = Path(__file__).with_name("builders.py")
    spec = importlib.util.spec_from_file_location("checkpoint_builders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def crdiff(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Run `crdiff WORDS` in this process, with an empty user configuration."""
    monkeypatch.setenv("CRDIFF_PRESETS", str(tmp_path / "user" / "presets.json"))

    def run(*words: Any) -> Outcome:
        from harness.cli import main

        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(crdiff: Callable[..., Outcome]) -> Callable[..., str]:
    """Run a command that must end with exit code 2 and one sentence; gives the sentence."""

    def run(*words: Any) -> str:
        outcome = crdiff(*words)
        assert outcome.code == 2
        assert outcome.out == ""
        lines = outcome.err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("crdiff: ")
        return lines[0]

    return run


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every connection to another machine fail loudly."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a connection to {address!r} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: refuse(None, a))  # type: ignore[arg-type]


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Hugging Face cache, and a hub library that knows it is offline; gives the cache."""
    import huggingface_hub.constants as constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache
