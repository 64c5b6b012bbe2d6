"""The study that a search is kept in: Optuna's, in SQLite unless said otherwise."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from crdiff_ext.errors import CRDiffError

log = logging.getLogger(__name__)

SETTINGS = "crdiff"
"""User attribute of the study: what all its scores depend on."""

_JOURNAL = "journal:"
_PATIENCE = 60  # seconds to wait for another process's write
_WORKERS = 1000


def open_storage(where: str | None, folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage: ``folder/study.db``, a database URL, or ``journal:FILE``. CRDiffError."""
    engine: dict[str, Any] = {}
    making: AbstractContextManager[Any] = nullcontext()
    if where is None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "study.db"
        where = f"sqlite:///{path}"
        engine = {"creator": lambda: _connect(path)}
        _connect(path).close()
        # Optuna asks whether its tables are there, then makes them: two processes would collide.
        making = FileLock(folder / "study.lock", timeout=_PATIENCE)
    if where.startswith("sqlite") and not engine:
        engine = {"connect_args": {"timeout": _PATIENCE}}
    try:
        if where.startswith(_JOURNAL):
            return _open_journal(where.removeprefix(_JOURNAL))
        with making:
            return optuna.storages.RDBStorage(where, engine_kwargs=engine)
    except (SQLAlchemyError, ImportError, ValueError, OSError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CRDiffError(
            f"the storage {where} can't be used ({first}): give --storage a database URL such as "
            "sqlite:///study.db, or journal:FILE"
        ) from error


def _open_journal(path: str) -> optuna.storages.BaseStorage:
    """Optuna's journal in a file. Raises ValueError for a damaged one, and OSError."""
    if not path:
        raise ValueError("no file is named")
    if Path(path).exists():
        with open(path, "rb") as file:  # Optuna takes one line of anything for a torn last one
            first = file.readline()
        if first.endswith(b"\n"):
            json.loads(first)
    # Where symbolic links need a right of their own, Optuna's other lock.
    lock = optuna.storages.journal.JournalFileOpenLock(path) if os.name == "nt" else None
    try:
        return optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(path, lock_obj=lock)
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no journal") from error


def _connect(path: Path) -> sqlite3.Connection:
    """A connection with SQLite's write-ahead log: processes hardly wait for each other.

    A commit then waits for no disk (``synchronous=NORMAL``): a killed process loses nothing, a
    power cut at most the last trials, and never the file. Raises CRDiffError.
    """
    connection = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise CRDiffError(
            f"{path} is damaged or no SQLite file ({error}): move it away to search anew"
        ) from error
    return connection


def open_study(
    storage: optuna.storages.BaseStorage, name: str, settings: dict[str, Any]
) -> optuna.Study:
    """The study ``name``, made if it is not there. Raises CRDiffError if its settings differ."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    found = study.user_attrs.get(SETTINGS)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(SETTINGS, settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([f"mean {settings.get('reward', 'reward')}"])
        return study
    if found != settings:
        differing = sorted(
            key
            for key in {*settings, *(found or {})}
            if (found or {}).get(key) != settings.get(key)
        )
        raise CRDiffError(
            f"the study {name!r} belongs to a search with other settings "
            f"({', '.join(differing)}): give another --out or --study, or repeat its settings to "
            "go on with it"
        )
    return study


@contextmanager
def concluding(folder: Path) -> Iterator[None]:
    """One process at a time confirms the best of a search and writes what was found to its folder.

    The others wait; the system lets the lock go if its holder is killed.
    """
    lock = FileLock(folder / "conclusion.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is confirming the best: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed_worker(folder: Path, wanted: int | None = None) -> Iterator[int]:
    """The number of this process's chain; its lock is let go at the end, or by the system.

    ``wanted`` None: the lowest number that no running process has, so that a killed search goes on
    with its own chain, and a second process beside it starts another one. Raises CRDiffError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_WORKERS) if wanted is None else [wanted]:
        lock = FileLock(folder / f"worker-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield number
        finally:
            lock.release()
        return
    raise CRDiffError(f"worker {wanted} is running already in {folder}: give another --worker")
