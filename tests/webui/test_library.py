"""The user's own presets file: merged, made when needed, set aside when damaged, never lost."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.presets import Preset, builtin_presets, export_presets, load_presets, save_presets
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.library import Library

MINE = Preset("sd15", 400, 560, Ratios(0.1, 0.2, 0.3), "by hand", "my model")
BETTER = replace(MINE, ratios=Ratios(0.3, 0.2, 0.1))
SHIPPED = Preset("sdxl", 512, 512, Ratios(0.5, 0.5, 0.5), "by hand", "my model")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "presets.user.json"


def test_nothing_is_written_before_there_is_something_to_keep(path):
    library = Library(path)
    assert library.presets() == sorted(builtin_presets(), key=lambda preset: preset.key)
    assert library.own() == []
    assert not path.exists()
    assert library.complaint == ""


def test_saved_entries_come_first_and_stay(path):
    library = Library(path)
    assert library.save(SHIPPED) is False  # one that ships has the same key, none of the user's
    assert library.save(MINE) is False
    assert library.save(BETTER) is True
    for reader in (library, Library(path)):
        assert reader.own() == [BETTER, SHIPPED]
        assert reader.presets().count(SHIPPED) == 1
        assert len(reader.presets()) == len(builtin_presets()) + 1
    assert os.listdir(path.parent) == [path.name]


def test_deleting_uncovers_what_ships(path):
    library = Library(path)
    library.save(SHIPPED)
    library.delete(SHIPPED.key)
    assert library.own() == load_presets(path) == []
    shipped = next(preset for preset in library.presets() if preset.key == SHIPPED.key)
    assert shipped in builtin_presets()
    with pytest.raises(CRDiffError, match="no entry of yours for sdxl 512x512"):
        library.delete(SHIPPED.key)


def test_another_program_may_change_the_file(path):
    library = Library(path)
    save_presets(path, [MINE])
    assert library.own() == [MINE]
    save_presets(path, [BETTER])
    assert library.own() == [BETTER]
    Library(path).save(SHIPPED)
    library.save(MINE)
    assert load_presets(path) == [MINE, SHIPPED]
    path.unlink()
    assert library.own() == []


DAMAGED = [b"", b"{", b"\xff\xfe\x00", b'{"version": 2, "presets": []}', b"[" * 100_000]


@pytest.mark.parametrize("content", [*DAMAGED, export_presets([MINE]).encode()[:-20]])
def test_a_damaged_file_is_set_aside_and_kept(content, path, caplog):
    path.write_bytes(content)
    library = Library(path)
    aside = path.with_name(f"{path.name}.damaged-1")
    assert library.presets() == sorted(builtin_presets(), key=lambda preset: preset.key)
    assert aside.read_bytes() == content
    assert not path.exists()
    assert f"{path.name} is damaged" in library.complaint
    assert f"it is kept as {aside.name}" in library.complaint
    assert library.complaint in caplog.text
    assert library.own() == []
    assert caplog.text.count("is damaged") == 1
    library.save(MINE)
    assert (load_presets(path), aside.read_bytes()) == ([MINE], content)
    assert library.complaint == ""


def test_each_damaged_file_gets_a_name_of_its_own(path):
    library = Library(path)
    for content in (b"one", b"two"):
        path.write_bytes(content)
        library.presets()
    names = sorted(os.listdir(path.parent))
    assert names == [f"{path.name}.damaged-1", f"{path.name}.damaged-2"]
    assert [path.with_name(name).read_bytes() for name in names] == [b"one", b"two"]


def test_damage_between_two_changes_loses_nothing(path):
    library = Library(path)
    library.save(MINE)
    path.write_bytes(b"{")
    library.save(SHIPPED)
    assert load_presets(path) == [SHIPPED]
    assert path.with_name(f"{path.name}.damaged-1").read_bytes() == b"{"


def test_what_can_not_be_read_is_neither_renamed_nor_replaced(path):
    path.mkdir()
    library = Library(path)
    assert library.presets() == sorted(builtin_presets(), key=lambda preset: preset.key)
    assert "can't be read" in library.complaint
    with pytest.raises(CRDiffError):
        library.save(MINE)
    assert os.listdir(path.parent) == [path.name]
    assert path.is_dir()


def test_a_full_disk_leaves_the_file_and_the_entries_as_they_were(path, monkeypatch):
    library = Library(path)
    library.save(MINE)

    def fail(*_):
        raise OSError(28, "No space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CRDiffError, match="No space left"):
        library.save(BETTER)
    assert library.own() == load_presets(path) == [MINE]


def test_import_and_export(path, tmp_path):
    library = Library(path)
    library.save(MINE)
    assert library.import_text(export_presets([BETTER, SHIPPED])) == (1, 1)
    assert library.own() == [BETTER, SHIPPED]
    other = Library(tmp_path / "other.json")
    assert other.import_text(library.export_text()) == (2, 0)
    assert other.own() == library.own()


@pytest.mark.parametrize("text", ["", "not JSON", '{"version": 1, "presets": [{}]}', "[]"])
def test_an_import_adds_all_or_nothing(text, path):
    library = Library(path)
    library.save(MINE)
    before = path.read_bytes()
    with pytest.raises(CRDiffError):
        library.import_text(text)
    assert path.read_bytes() == before
    assert library.own() == [MINE]


def test_two_pages_may_save_at_once(path):
    library = Library(path)
    entries = [replace(MINE, height=8 * n) for n in range(1, 17)]
    threads = [threading.Thread(target=library.save, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_presets(path) == entries
