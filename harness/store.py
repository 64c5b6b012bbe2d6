"""The image store: one PNG per key, an append-only index beside it, safe against being killed.

A key is the SHA-256 of the canonical JSON of everything that an image's pixels depend on. A row is
written to ``index.jsonl`` only after its PNG is in place, so a row means a whole image. A run that
was killed at any moment goes on with the keys that have no row; a torn last line is ignored.

The list of key fields is final. A later field is left out of the JSON while it has the value that
today's code implies, so that images drawn today keep their keys.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from crdiff_ext.errors import CRDiffError

Row = dict[str, Any]
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; refuses NaN. The same value gives the same text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def key_of(spec: Mapping[str, Any]) -> str:
    """The key of an image: hexadecimal SHA-256 of the canonical JSON of its specification."""
    return hashlib.sha256(canonical_json(dict(spec)).encode()).hexdigest()


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256 of mode, size and raw pixels: independent of how the file is compressed."""
    head = f"{image.mode} {image.height}x{image.width}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or none (temporary file, fsync, rename). Full disk: CRDiffError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise_full_disk(error, path.parent)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_being_written(temporary: Path) -> bool:
    """Whether the process that ``write_atomically`` put into the name still runs."""
    pid = temporary.name.split(".")[-2]
    if not pid.isdecimal() or os.name != "posix":  # elsewhere signal 0 would end the process
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs as somebody else
    return True


def raise_full_disk(error: OSError, folder: Path) -> None:
    """Turn "no space left" into a sentence; other errors are the caller's."""
    if error.errno in FULL_DISK:
        raise CRDiffError(
            f"the disk that holds {folder} is full: free some space and run the same command "
            "again; images that are already stored are kept"
        ) from error


def check_folder(folder: Path, option: str = "--out") -> None:
    """Refuse what can't be made a folder to write to; nothing is made. Raises CRDiffError."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise CRDiffError(f"{nearest} is not a folder: give {option} another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CRDiffError(f"{nearest} cannot be written: give {option} another path")


class Store:
    """Images and rows in one folder: ``images/ab/<key>.png`` and ``index.jsonl``.

    The folder is made when the first image is stored. Raises CRDiffError if it cannot be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index.jsonl"
        check_folder(folder)
        for left in folder.glob("images/*/.*.tmp"):  # by a kill in mid-write
            if not _is_being_written(left):
                left.unlink(missing_ok=True)
        self._rows = _read_index(self.index)

    def path(self, key: str) -> Path:
        """Where the image of a key is or will be."""
        return self.folder / "images" / key[:2] / f"{key}.png"

    def row(self, key: str) -> Row | None:
        """The row of a stored image, or None when it has to be drawn."""
        row = self._rows.get(key)
        return row if row is not None and self.path(key).is_file() else None

    def __contains__(self, key: str) -> bool:
        return self.row(key) is not None

    def load(self, key: str) -> Image.Image:
        """The stored image, RGB. Raises CRDiffError when the file is damaged."""
        try:
            with Image.open(self.path(key)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise CRDiffError(
                f"the stored image {self.path(key)} cannot be read: delete it and run the same "
                "command again"
            ) from error

    def add(self, spec: Mapping[str, Any], image: Image.Image, seconds: float) -> Row:
        """Store one image under the key of ``spec`` with the time it took. Returns its row.

        The PNG holds the specification as text and no date: equal images are equal files.
        """
        key = key_of(spec)
        info = PngInfo()
        info.add_text("crdiff", canonical_json(dict(spec)))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", pnginfo=info)
        write_atomically(self.path(key), buffer.getvalue())
        row = {
            "key": key,
            "file": self.path(key).relative_to(self.folder).as_posix(),
            "pixels_sha256": pixels_sha256(image),
            "seconds": round(seconds, 4),
            "spec": dict(spec),
        }
        self._append(row)
        self._rows[key] = row
        return row

    def _append(self, row: Row) -> None:
        append_rows(self.index, [row])


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """One line a row, written whole; a torn line that a kill left behind is closed first."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows]
    try:
        with open(path, "ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise_full_disk(error, path.parent)
        raise


def whole_rows(path: Path) -> Iterator[Row]:
    """The objects of a file of JSON lines; lines that are not whole are skipped."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _read_index(path: Path) -> dict[str, Row]:
    """Rows by key, the last one of a key counting."""
    needed = {"key", "pixels_sha256", "seconds"}
    return {row["key"]: row for row in whole_rows(path) if needed <= row.keys()}
