"""The image store: keys, atomic writes, torn lines, full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness import store as store_module
from harness.store import Store, canonical_json, key_of, pixels_sha256, write_atomically

SPEC = {"prompt": "a cat", "seed": 1, "method": {"kind": "dense"}, "guidance": 7.5}


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (12, 8), colour)


def test_key_is_of_the_contents_not_the_order() -> None:
    assert key_of(SPEC) == key_of(dict(reversed(SPEC.items())))
    assert all(key_of(SPEC) != key_of({**SPEC, name: "other"}) for name in SPEC)
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"\\u00fc","b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        key_of({"guidance": float("nan")})


def test_key_stays_what_it_is() -> None:
    """The key is a promise to those who have images stored: this value must never change."""
    assert key_of(SPEC) == "643ea0a408ce280285ea06dc4f42a3219fdf64df235ecd56ef5484b694adba2c"


def test_add_and_read_back(tmp_path: Path) -> None:
    row = Store(tmp_path).add(SPEC, picture(), 1.5)
    again = Store(tmp_path)
    assert again.row(key_of(SPEC)) == row
    assert row["spec"] == SPEC
    assert row["seconds"] == 1.5
    assert row["pixels_sha256"] == pixels_sha256(picture()) == pixels_sha256(again.load(row["key"]))
    with Image.open(tmp_path / row["file"]) as image:
        assert json.loads(image.info["crdiff"]) == SPEC
    assert not list(tmp_path.rglob("*.tmp"))


def test_equal_images_are_equal_files(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        row = Store(tmp_path / name).add(SPEC, picture(), 1.0)
        files.append((tmp_path / name / row["file"]).read_bytes())
    assert files[0] == files[1]


def test_torn_last_line_is_skipped_and_closed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.add(SPEC, picture(), 1.0)
    with open(store.index, "ab") as file:
        file.write(b'{"key": "torn')
    store = Store(tmp_path)
    assert first["key"] in store
    second = store.add({**SPEC, "seed": 2}, picture(), 1.0)
    store = Store(tmp_path)
    assert first["key"] in store
    assert second["key"] in store


def test_row_without_file_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = store.add(SPEC, picture(), 1.0)
    (tmp_path / row["file"]).unlink()
    assert row["key"] not in Store(tmp_path)


def test_leftover_temporary_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "ab"
    folder.mkdir(parents=True)
    (folder / ".x.png.123.tmp").write_bytes(b"half")
    Store(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    kept = store.add(SPEC, picture(), 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "fsync", full)
        with pytest.raises(CRDiffError, match=r"disk .* is full: free some space"):
            store.add({**SPEC, "seed": 2}, picture(), 1.0)
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list(tmp_path.rglob("*.png"))) == 1
    assert kept["key"] in Store(tmp_path)


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(store_module.os, "replace", full)
    with pytest.raises(CRDiffError, match="is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_image_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = store.add(SPEC, picture(), 1.0)
    (tmp_path / row["file"]).write_bytes(b"not a png")
    with pytest.raises(CRDiffError, match="delete it"):
        store.load(row["key"])


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(CRDiffError, match="not a folder"):
        Store(tmp_path / "out")


def test_another_process_files_in_the_making_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "ab"
    folder.mkdir(parents=True)
    living, dead = folder / f".a.png.{os.getpid()}.tmp", folder / ".a.png.4194999.tmp"
    for path in (living, dead):
        path.write_bytes(b"half")
    Store(tmp_path)
    assert living.exists()
    assert not dead.exists()
