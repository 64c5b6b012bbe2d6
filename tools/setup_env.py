"""Make a virtual environment from a lock file, or leave it alone when it is up to date.

`python tools/setup_env.py .venv requirements/dev.lock --project` is what `make` runs before
anything else. Only the standard library is used; the interpreter that runs this is the one the
environment is made from. A stamp in the environment says what it was made of, so that the usual
call costs milliseconds, and an interrupted set-up is recognised and started again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".crdiff-stamp.json"
BENEATH = "crdiff-beneath.pth"
BUILDING = "building"
# Settings of the caller's that would send pip's installs elsewhere than into the environment.
MISLEADING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME")


# Seconds before pip's installation is tried again: pip gives up when a transfer breaks in the
# middle, as happens among gigabytes. What came down whole is in its cache.
PAUSES = (5.0, 30.0)


class SetupError(Exception):
    """Set-up failed; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Stamp:
    """What an environment was made of."""

    lock: str
    """SHA-256 of the lock file."""
    python: str
    """Python's version, major.minor."""
    place: str
    """Where the environment lies: its scripts hold this path, so it can't be moved."""
    project: str | None
    """SHA-256 of pyproject.toml, or None when the project is not installed in it."""
    over: str | None = None
    """The environment whose packages it sees besides its own, or None."""

    @classmethod
    def read(cls, env: Path) -> Stamp | None:
        """Return the stamp of a finished environment, None without one (or with a damaged one)."""
        try:
            return cls(**json.loads((env / STAMP).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, env: Path) -> None:
        """Mark the environment as finished."""
        temporary = env / f"{STAMP}.new"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(env / STAMP)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def env_python(env: Path) -> Path:
    """Return the path of an environment's interpreter."""
    return env / "bin" / "python"


def python_version(python: Path) -> str | None:
    """Return "major.minor" of an interpreter, None if it doesn't start (its base was removed)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def pip(env: Path, *arguments: str, failure: str) -> str:
    """Run the environment's pip and return what it printed, for `freeze`.

    Raises:
        SetupError: pip failed; its own messages are already on the screen.
    """
    variables = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    variables |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    command = [str(env_python(env)), "-m", "pip", *arguments]
    keep = subprocess.PIPE if arguments[0] == "freeze" else None
    done = subprocess.run(command, env=variables, stdout=keep, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise SetupError(failure)
    return done.stdout or ""


def normalized(name: str) -> str:
    """Return a distribution's name in the one spelling that PEP 503 allows to compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_names(lock: Path) -> set[str]:
    """Return the normalized names in a lock file."""
    rows = (line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return {normalized(row.split("==")[0]) for row in rows if row}


def site_packages(env: Path) -> Path:
    """Return the folder of an environment's packages."""
    return env / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def lay_over(env: Path, base: Path | None) -> None:
    """Let an environment see the packages of ``base`` after its own, or of no other one.

    torch alone takes gigabytes: environments that differ in small packages can share it.
    """
    link = site_packages(env) / BENEATH
    if base is None:
        link.unlink(missing_ok=True)
        return
    if not site_packages(base).is_dir():
        raise SetupError(
            f"{base.name} is no environment of Python {sys.version_info[0]}."
            f"{sys.version_info[1]}, which {env.name} is made from: make it anew first."
        )
    link.write_text(f"{site_packages(base)}\n", encoding="utf-8")


def create(env: Path) -> None:
    """Make an empty environment, marked as unfinished."""
    env.mkdir()
    (env / STAMP).write_text(BUILDING, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "venv", str(env)])
    if done.returncode != 0:
        raise SetupError(
            f"{sys.executable} could not make the virtual environment {env.name}: "
            "install its venv module (on Debian and Ubuntu: apt install python3-venv)."
        )


def download(env: Path, *arguments: str, name: Path) -> None:
    """Run pip's installation of a lock file, again after a pause when it fails.

    Raises:
        SetupError: it failed every time.
    """
    failure = (
        f"pip could not install {name} (its message is above): check the network and the free disk "
        "space (about 7 GB for .venv), then run make again."
    )
    for pause in PAUSES:
        try:
            pip(env, *arguments, failure=failure)
        except SetupError:
            print(f"{env.name}: pip failed; once more in {pause:.0f} s", flush=True)
            time.sleep(pause)
        else:
            return
    pip(env, *arguments, failure=failure)


def install(env: Path, lock: Path) -> None:
    """Bring an environment's packages to exactly what the lock file names."""
    name = lock.relative_to(ROOT)
    quiet = ["--quiet"] if not sys.stdout.isatty() else []
    download(env, "install", *quiet, "--no-deps", "--no-compile", "-r", str(lock), name=name)
    # What an earlier lock file named and this one doesn't could hide a missing entry.
    frozen = pip(env, "freeze", "--local", "--exclude-editable", failure="pip freeze failed.")
    installed = {normalized(re.split(r"==| @ ", row)[0]) for row in frozen.splitlines()}
    if surplus := sorted(installed - locked_names(lock)):
        pip(env, "uninstall", "--yes", *quiet, *surplus, failure="pip uninstall failed.")
    pip(
        env,
        "check",
        failure=f"{name} does not hold together on this platform (pip's message "
        "is above): renew it as docs/development.md says.",
    )


def install_marked(env: Path, lock: Path) -> None:
    """Install, with the environment marked as unfinished while pip writes to it.

    When pip itself gives up (no network, say) it has put back what it changed: the earlier stamp is
    put back too, and the next `make` tries again without starting from nothing.
    """
    mark = env / STAMP
    before = mark.read_text(encoding="utf-8") if mark.exists() else None
    mark.write_text(BUILDING, encoding="utf-8")
    try:
        install(env, lock)
    except SetupError:
        if before is None:
            mark.unlink()
        else:
            mark.write_text(before, encoding="utf-8")
        raise


def install_project(env: Path) -> None:
    """Install the project itself, editable, with the locked setuptools and no download."""
    pip(
        env,
        *("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)),
        failure="the project itself could not be installed (pip's message is above).",
    )


def is_usable(env: Path, stamp: Stamp | None) -> bool:
    """Say whether an existing environment can be brought up to date instead of being remade."""
    version = python_version(env_python(env))
    if version is None or version != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return False
    if stamp is None:
        # Made by hand: it may be kept. Or a set-up of ours that was interrupted: it may not, since
        # pip takes half-written packages for installed ones.
        return not (env / STAMP).exists()
    return stamp.place == str(env)


def set_up(env: Path, lock: Path, with_project: bool, over: Path | None = None) -> None:
    """Make the environment what the lock file says; do nothing if its stamp says it is already."""
    wanted = Stamp(
        lock=sha256(lock),
        python=f"{sys.version_info[0]}.{sys.version_info[1]}",
        place=str(env),
        project=sha256(ROOT / "pyproject.toml") if with_project else None,
        over=str(over) if over else None,
    )
    stamp = Stamp.read(env)
    if env.exists() and not is_usable(env, stamp):
        if not (env / "pyvenv.cfg").exists() and not (env / STAMP).exists():
            raise SetupError(f"{env.name} exists and is no virtual environment: move it away.")
        print(f"{env.name}: unfinished, moved, or of another Python: making it anew", flush=True)
        shutil.rmtree(env)
        stamp = None
    if stamp == wanted:
        return
    if stamp is None or (stamp.lock, stamp.over) != (wanted.lock, wanted.over):
        packages = len(locked_names(lock))
        print(
            f"{env.name}: installing {packages} packages of {lock.relative_to(ROOT)} for Python "
            f"{wanted.python}; the first time, this downloads some "
            f"{'hundred megabytes' if over else 'gigabytes'}",
            flush=True,
        )
        if not env.exists():
            create(env)
        lay_over(env, over)
        install_marked(env, lock)
    if with_project:
        install_project(env)
    wanted.write(env)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("env", type=Path, help="folder of the environment, e.g. .venv")
    parser.add_argument("lock", type=Path, help="lock file, e.g. requirements/dev.lock")
    parser.add_argument("--project", action="store_true", help="also install the project, editable")
    parser.add_argument(
        "--over", type=Path, metavar="ENV", help="also see the packages of this environment"
    )
    options = parser.parse_args(arguments)
    env, lock = ROOT / options.env, ROOT / options.lock
    over = ROOT / options.over if options.over else None
    try:
        with lock.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # two `make` at once: the second one waits
            set_up(env, lock, options.project, over)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: setting up {options.env} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: interrupted; the next make sets {options.env} up anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
