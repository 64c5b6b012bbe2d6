"""One hash for a model: SHA-256 over the contents of the files that its pipeline is loaded from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from crdiff_ext.errors import CRDiffError
from harness.locate import NOT_LOADED, read_json
from harness.store import write_atomically

WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt"}
CONFIGURATION = {".json", ".txt", ".yaml", ".model"}
CACHE_FROM_BYTES = 64 * 2**20
"""Only files of this size and more are worth a line in the cache."""


def model_files(path: Path) -> list[Path]:
    """The files that count, sorted: a single file, or a diffusers folder's components.

    In a folder these are ``model_index.json`` and the weights and configurations of the components
    that it names: what else lies there does not change what is drawn. Raises CRDiffError.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CRDiffError(
            f"the model {path} does not exist: give --model a folder, a file or a hub id"
        )
    index = path / "model_index.json"
    named = {name for name, kind in read_json(index).items() if isinstance(kind, list) and kind[0]}
    parts = sorted(named - NOT_LOADED)
    files = [index, *(file for part in parts for file in sorted((path / part).glob("*")))]
    files = [file for file in files if file.suffix in WEIGHTS | CONFIGURATION and file.is_file()]
    if not any(file.suffix in WEIGHTS for file in files):
        raise CRDiffError(f"the folder {path} has no weights: it is not a diffusers model")
    return files


def model_hash(path: Path, cache: Path, config: Path | None = None) -> str:
    """SHA-256 over (relative name, SHA-256 of contents) of each file; a file's own hash if single.

    ``config``: the folder that a single file's configuration was taken from, which then counts too.
    Hashes of big files are remembered in the JSON file ``cache``, by path, size and change time.
    """
    files = model_files(path)
    known = _read_cache(cache)
    before = len(known)
    hashes = {file: _file_hash(file, known) for file in files}
    if len(known) != before:
        write_atomically(cache, json.dumps(known, indent=1).encode())
    if path.is_file():
        if config is None:
            return hashes[path]
        settings = sorted(file for file in config.glob("**/*.json") if file.is_file())
        hashes |= {file: _file_hash(file, known) for file in settings}
    total = hashlib.sha256()
    for file, digest in hashes.items():
        total.update(f"{_name(file, path, config)}\0{digest}\n".encode())
    return total.hexdigest()


def _name(file: Path, model: Path, config: Path | None) -> str:
    """A name that does not depend on where the model lies or what a single file is called."""
    if file == model:
        return "."
    folder = model if model.is_dir() else config
    assert folder is not None
    return file.relative_to(folder).as_posix()


def _file_hash(file: Path, known: dict[str, str]) -> str:
    real = file.resolve()  # hub folders are full of links
    state = real.stat()
    name = f"{real}|{state.st_size}|{state.st_mtime_ns}"
    if name in known:
        return known[name]
    with open(real, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if state.st_size >= CACHE_FROM_BYTES:
        known[name] = digest
    return digest


def _read_cache(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
