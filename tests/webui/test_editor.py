"""What the editor's buttons do, and what they tell."""

from __future__ import annotations

import pytest

from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset, load_presets
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.library import Library

MINE = Preset("sd15", 400, 560, Ratios(0.1, 0.2, 0.3), "a search", "my model", 1.25)
HASH = "31e35c80fc"


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path / "presets.user.json")


@pytest.fixture
def adapter():
    from tests.webui.fakes.gradio_host import FakeAdapter

    return FakeAdapter.of("sdxl", hash=HASH)


def values(editor, scope=None, source="by eye", height=512, width=768):
    return height, width, 0.1, 0.2, 0.3, 1.25, scope or editor.FAMILY, source


def test_save_for_the_family(webui, library, adapter):
    told = webui.editor.save_entry(adapter, library, *values(webui.editor))
    assert told == "saved: SDXL 512x768, 0.1 / 0.2 / 0.3"
    expected = Preset("sdxl", 512, 768, Ratios(0.1, 0.2, 0.3), "by eye", "sdxl.safetensors", 1.25)
    assert load_presets(library.path) == [expected]
    told = webui.editor.save_entry(adapter, library, *values(webui.editor, source=" "))
    assert told.startswith("replaced: ")
    assert library.own()[0].source == webui.editor.BY_HAND


def test_save_for_one_checkpoint(webui, library, adapter):
    editor = webui.editor
    told = editor.save_entry(adapter, library, *values(editor, editor.CHECKPOINT))
    assert told == f"saved: SDXL 512x768 ({HASH}), 0.1 / 0.2 / 0.3"
    assert library.own()[0].checkpoint == HASH
    editor.save_entry(adapter, library, *values(editor))
    assert editor.labels(library) == ["SDXL 512x768", f"SDXL 512x768 ({HASH})"]


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        (None, {}, "no model is loaded yet: make one image first"),
        ("sdxl", {"scope": "this checkpoint only"}, "hashing is off"),
        ("unknown", {}, "unknown.safetensors is of no known family: nothing can be stored for it"),
        ("sdxl", {"height": None}, "height is None: a finite number is needed"),
        ("sdxl", {"width": 0}, "the size is 512x0"),
    ],
)
def test_what_can_not_be_saved_is_told(webui, library, family, change, sentence):
    from tests.webui.fakes.gradio_host import FakeAdapter

    adapter = FakeAdapter.of(family) if family else FakeAdapter(None)
    editor = webui.editor
    told, update = editor._told(
        library, lambda: editor.save_entry(adapter, library, *values(editor, **change))
    )
    assert sentence in told
    assert update["choices"] == []
    assert not library.path.exists()


def test_delete(webui, library):
    library.save(MINE)
    assert webui.editor.delete_entry(library, "SD1.5 400x560") == "deleted: SD1.5 400x560"
    assert library.own() == []
    for entry, sentence in ((None, "choose one"), ("SD1.5 400x560", "no entry of yours")):
        told, _ = webui.editor._told(
            library, lambda entry=entry: webui.editor.delete_entry(library, entry)
        )
        assert sentence in told


def test_use_moves_the_sliders(webui, library):
    library.save(MINE)
    message, *updates = webui.editor.use_entry(library, "SD1.5 400x560")
    assert "on the sliders: SD1.5 400x560 (a search)" in message
    assert [update["value"] for update in updates] == ["set", 0.1, 0.2, 0.3, 1.25]
    message, *updates = webui.editor.use_entry(library, "")
    assert "choose one" in message
    assert len(updates) == 5
    assert not any("value" in update for update in updates)


def test_import_tells_what_it_did(webui, library, tmp_path):
    library.save(MINE)
    text = library.export_text()
    assert webui.editor.import_text(library, text) == "imported: 0 new, 1 replaced"
    other = Library(tmp_path / "other.json")
    assert webui.editor.import_text(other, text) == "imported: 1 new, 0 replaced"
    told, _ = webui.editor._told(other, lambda: webui.editor.import_text(other, "<b>"))
    assert "not JSON" in told
    assert other.own() == [MINE]


def test_what_users_write_is_shown_as_text(webui, library):
    library.save(Preset("sd15", 64, 64, Ratios(0.1, 0.1, 0.1), "<script>x</script>", "m"))
    message = webui.editor.use_entry(library, "SD1.5 64x64")[0]
    assert "<script>" not in message
    assert "&lt;script&gt;" in message


def test_a_damaged_file_is_told_where_it_matters(webui, library, adapter):
    library.path.write_text("{")
    told, _ = webui.editor._told(library, lambda: webui.editor.delete_entry(library, "x"))
    assert "damaged-1" in told


def test_families_have_labels_of_their_own():
    labels = [family.label for family in FAMILIES.values()]
    assert len(set(labels)) == len(labels)
