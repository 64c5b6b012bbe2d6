"""Setting up .venv: made once, reused, brought up to date, recovered; and how Python is found."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest


class Setup:
    """The module under test in a small project of its own, with pip replaced by a recorder."""

    def __init__(self, module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.folder = module, folder
        self.env, self.lock = folder / ".venv", folder / "some.lock"
        self.calls: list[str] = []
        self.fail = False
        self.broken_transfers = 0
        self.pauses: list[float] = []
        self.lock.write_text("six==1.16.0\n")
        (folder / "pyproject.toml").write_text("[project]\n")
        monkeypatch.setattr(module, "ROOT", folder)
        monkeypatch.setattr(module, "pip", self.pip)
        monkeypatch.setattr(module, "create", self.create)
        monkeypatch.setattr(module.time, "sleep", self.pauses.append)

    def pip(self, env: Path, *arguments: str, failure: str) -> str:
        self.calls.append("project" if "--editable" in arguments else arguments[0])
        if arguments[0] == "install" and self.broken_transfers > 0:
            self.broken_transfers -= 1
            raise self.module.SetupError(failure)
        if self.fail:
            raise self.module.SetupError(failure)
        return "six==1.16.0\nLeft_Over==1.0\n" if arguments[0] == "freeze" else ""

    def create(self, env: Path) -> None:
        self.calls.append("create")
        env.mkdir()
        (env / self.module.STAMP).write_text(self.module.BUILDING)
        venv.create(env, with_pip=False, symlinks=True)

    def run(self, *more: str) -> list[str]:
        """Run `setup_env.py .venv some.lock --project`; return what it did."""
        self.calls.clear()
        self.code = self.module.main([".venv", "some.lock", "--project", *more])
        return self.calls


@pytest.fixture
def setup(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    spec = importlib.util.spec_from_file_location("setup_env", root / "tools" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "setup_env", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return Setup(module, tmp_path, monkeypatch)


FULL = ["install", "freeze", "uninstall", "check", "project"]


def test_made_once_then_reused(setup: Setup) -> None:
    assert setup.run() == ["create", *FULL]
    assert setup.code == 0
    assert setup.run() == []


def test_changed_lock_updates_in_place(setup: Setup) -> None:
    setup.run()
    setup.lock.write_text("six==1.17.0\n")
    assert setup.run() == FULL
    assert setup.run() == []


def test_changed_project_is_installed_again_alone(setup: Setup) -> None:
    setup.run()
    (setup.folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert setup.run() == ["project"]


def test_interrupted_set_up_starts_anew(setup: Setup) -> None:
    setup.run()
    (setup.env / setup.module.STAMP).write_text(setup.module.BUILDING)
    assert setup.run() == ["create", *FULL]


def test_dead_interpreter_is_replaced(setup: Setup) -> None:
    setup.run()
    (setup.env / "bin" / "python").unlink()
    (setup.env / "bin" / "python").symlink_to(setup.folder / "gone")
    assert setup.run() == ["create", *FULL]


def test_moved_environment_is_remade(setup: Setup) -> None:
    setup.run()
    stamp = setup.env / setup.module.STAMP
    stamp.write_text(stamp.read_text().replace(str(setup.env), "/elsewhere/.venv"))
    assert setup.run() == ["create", *FULL]


def test_environment_made_by_hand_is_kept(setup: Setup) -> None:
    venv.create(setup.env, with_pip=False, symlinks=True)
    assert setup.run() == FULL


def test_failed_update_can_be_tried_again(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.run()
    setup.lock.write_text("six==1.17.0\n")
    setup.fail = True
    assert setup.run() == ["install"] * 3
    assert setup.code == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: pip could not install some.lock")
    assert "\n" not in message
    setup.fail = False
    assert setup.run() == FULL


def test_broken_transfer_is_tried_again(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    setup.broken_transfers = 2
    assert setup.run() == ["create", "install", "install", *FULL]
    assert setup.code == 0
    assert setup.pauses == [5.0, 30.0]
    assert "once more in 30 s" in capsys.readouterr().out
    assert setup.run() == []


def test_folder_that_is_no_environment_is_left_alone(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.env.mkdir()
    (setup.env / "precious").write_text("x")
    assert setup.run() == []
    assert setup.code == 1
    assert "no virtual environment" in capsys.readouterr().err
    assert (setup.env / "precious").exists()


def test_laid_over_another_environment(setup: Setup) -> None:
    base = setup.folder / ".venv-base"
    venv.create(base, with_pip=False, symlinks=True)
    (setup.module.site_packages(base) / "gigabytes.py").write_text("HERE = 'base'\n")
    (setup.module.site_packages(base) / "both.py").write_text("HERE = 'base'\n")
    assert setup.run("--over", ".venv-base") == ["create", *FULL]
    (setup.module.site_packages(setup.env) / "both.py").write_text("HERE = 'own'\n")
    command = [str(setup.env / "bin" / "python"), "-I", "-c"]
    command.append("import both, gigabytes; print(both.HERE, gigabytes.HERE)")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["own", "base"]
    assert setup.run("--over", ".venv-base") == []
    assert setup.run() == FULL
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_laid_over_nothing(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.run("--over", ".venv-base") == ["create"]
    assert setup.code == 1
    assert ".venv-base is no environment of Python" in capsys.readouterr().err
    assert setup.run() == ["create", *FULL]


def find_python(root: Path, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    tools = [Path(p) for p in os.defpath.split(":") if p]
    for tool in ("sh", "sed"):
        real = next(folder / tool for folder in tools if (folder / tool).exists())
        (path / tool).symlink_to(real)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return subprocess.run(
        ["/bin/sh", str(root / "tools" / "find_python.sh"), "3.9", version],
        env={"PATH": str(path), **variables},
        capture_output=True,
        text=True,
    )


def stand_in(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_find_python_passes_over_dead_stand_ins(root: Path, tmp_path: Path) -> None:
    stand_in(tmp_path / "python3.9", "echo no such version >&2; exit 127")
    stand_in(tmp_path / "python3", f'exec "{sys.executable}" "$@"')
    done = find_python(root, tmp_path)
    assert done.returncode == 0
    assert Path(done.stdout.strip()).resolve() == Path(sys.executable).resolve()


def test_find_python_says_in_one_line_that_there_is_none(root: Path, tmp_path: Path) -> None:
    done = find_python(root, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no Python 3.9 or 3.")
    assert done.stderr.count("\n") == 1


def test_find_python_says_that_venv_is_missing(root: Path, tmp_path: Path) -> None:
    hide = "import sys; sys.modules['ensurepip'] = None; sys.argv = sys.argv[1:]; exec(sys.argv[0])"
    stand_in(tmp_path / "python3", f'shift; exec "{sys.executable}" -c "{hide}" "$@"')
    done = find_python(root, tmp_path)
    assert done.returncode == 1
    assert "python3 can't make virtual environments" in done.stderr
    assert done.stderr.count("\n") == 1


def test_find_python_takes_the_one_that_is_named(root: Path, tmp_path: Path) -> None:
    stand_in(tmp_path / "python3", f'exec "{sys.executable}" "$@"')
    done = find_python(root, tmp_path, PYTHON=str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "absent is not a working Python" in done.stderr
