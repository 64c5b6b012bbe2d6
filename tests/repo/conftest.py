from __future__ import annotations

import os
from pathlib import Path

import pytest

# Not part of the repository's own files: environments, caches, what runs write.
FOREIGN = {"__pycache__", "build", "dist", "runs", "out", "user"}


def project_files(root: Path) -> list[Path]:
    """Every file of the repository, found without git: a checkout need not be a git clone."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in FOREIGN
            and not name.startswith(".venv")
            and not name.endswith((".egg-info", "_cache"))
            and name not in (".git", ".hypothesis", ".idea", ".vscode")
        ]
        # In a git worktree .git is a file that holds a path.
        found += [Path(folder) / name for name in files if name != ".git"]
    return sorted(found)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def files(root: Path) -> list[Path]:
    return project_files(root)
