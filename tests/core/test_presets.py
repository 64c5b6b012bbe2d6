from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdiff_ext import presets as presets_module
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import (
    SCHEMA_PATH,
    Preset,
    builtin_presets,
    export_presets,
    import_presets,
    load_presets,
    merge,
    save_presets,
)
from crdiff_ext.settings import Ratios

ONE = Preset("sdxl", 512, 512, Ratios(0.1, 0.2, 0.3), "a search", "my model", 1.25, {"seed": 7})
MINE = Preset("sdxl", 512, 512, Ratios(0.2, 0.2, 0.2), "by hand", "mine", checkpoint="31E35C80FC")
TWO = Preset("sd15", 480, 360, Ratios(0.4, 0.5, 0.6), "a search", "my model")
SCHEMA = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))


def document(**changes):
    return {"version": 1, "presets": [{**ONE.to_dict(), **changes}]}


def test_the_published_entries_ship():
    found = {
        preset.key[:3]: preset
        for preset in builtin_presets()
        if preset.provenance.get("kind") == "published"
    }
    assert {key: (str(preset.ratios), preset.k) for key, preset in found.items()} == {
        ("sdxl", 1024, 1024): ("0.295 / 0.194 / 0.236", 1.5),
        ("sdxl", 512, 512): ("0.397 / 0.434 / 0.387", 1.5),
        ("sd2-v", 480, 360): ("0.651 / 0.138 / 0.271", 1.5),
    }
    assert all(preset.source == "paper, Figure 7a" for preset in found.values())
    sd21 = found["sd2-v", 480, 360]
    assert sd21.model == "stabilityai/stable-diffusion-2-1"
    for said in ("512 x 512", "768", "README"):
        assert said in sd21.provenance["note"]


def test_everything_that_ships_says_where_it_comes_from():
    for preset in builtin_presets():
        assert preset.source
        assert preset.model
        assert preset.provenance
        assert preset.family in FAMILIES


@given(
    st.lists(
        st.builds(
            Preset,
            st.sampled_from(
                sorted(n for n, f in FAMILIES.items() if n != "unknown" and not f.is_dit)
            ),
            st.integers(1, 16384),
            st.integers(1, 16384),
            st.builds(Ratios, *[st.floats(0, 1, exclude_max=True)] * 3),
            st.text(min_size=1).filter(str.strip),
            st.just("modèle ×"),
            st.floats(0, 3),
            st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3),
            st.sampled_from(["", "31e35c80fc", "abcdef01" * 8]),
        ),
        unique_by=lambda preset: preset.key,
        max_size=4,
    )
)
def test_export_and_import_round_trip(presets):
    assert import_presets(export_presets(presets)) == presets


def test_save_and_load(tmp_path):
    path = tmp_path / "new" / "presets.json"
    assert load_presets(path, missing_ok=True) == []
    save_presets(path, [ONE, TWO])
    assert load_presets(path) == [ONE, TWO]
    save_presets(path, [TWO])
    assert load_presets(path) == [TWO]
    assert os.listdir(path.parent) == ["presets.json"]


def test_a_missing_file_is_an_error_when_it_was_asked_for(tmp_path):
    with pytest.raises(CRDiffError, match="does not exist"):
        load_presets(tmp_path / "none.json")


def test_a_transformer_s_entry_has_one_ratio(tmp_path):
    path = tmp_path / "presets.json"
    entry = Preset("sd3", 512, 512, Ratios(0.1, 0.1, 0.1), "a search", "my model")
    save_presets(path, [entry])
    assert load_presets(path) == [entry]
    with pytest.raises(CRDiffError, match="SD3 has one ratio for all layers"):
        Preset("sd3", 512, 512, Ratios(0.1, 0.1, 0.2), "a search", "my model")


WRONG = [
    document(family="pixart"),
    document(family="unknown"),
    document(height=0),
    document(height=512.5),
    document(width=1e6),
    document(width=True),
    document(k=3.5),
    document(k=math.nan),
    document(source=""),
    document(model=None),
    document(provenance=[]),
    document(ratios={"down": 0.1, "mid": 0.2}),
    document(ratios={"down": 0.1, "mid": 0.2, "up": 1.0}),
    document(ratios=[0.1, 0.2, 0.3]),
    document(more=1),
    document(checkpoint="31e35c8"),
    document(checkpoint="model.ckpt"),
    document(checkpoint=None),
    {"version": 1, "presets": [{"family": "sdxl"}]},
    {"version": 1, "presets": ["sdxl"]},
    {"version": 1, "presets": {}},
    {"version": 2, "presets": []},
    {"version": True, "presets": []},
    {"presets": []},
    {"version": 1, "presets": [], "more": 1},
    {"version": 1, "presets": [ONE.to_dict(), ONE.to_dict()]},
    [],
    None,
]


@pytest.mark.parametrize("data", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_refused_and_not_overwritten(data, tmp_path):
    path = tmp_path / "presets.json"
    text = json.dumps(data)
    path.write_text(text)
    with pytest.raises(CRDiffError, match="damaged"):
        load_presets(path)
    with pytest.raises(CRDiffError, match="damaged"):
        save_presets(path, [ONE])
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["presets.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, export_presets([ONE]).encode()[:-20]]
)
def test_a_damaged_file_stays_as_it_is(content, tmp_path):
    path = tmp_path / "presets.json"
    path.write_bytes(content)
    for act in (lambda: load_presets(path, missing_ok=True), lambda: save_presets(path, [ONE])):
        with pytest.raises(CRDiffError, match=r"presets\.json"):
            act()
    assert path.read_bytes() == content


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_the_old_file_whole(call, error, tmp_path, monkeypatch):
    path = tmp_path / "presets.json"
    save_presets(path, [ONE])
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(presets_module.os, call, fail)
    expected = CRDiffError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_presets(path, [TWO])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["presets.json"]


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "presets.json"
    with pytest.raises(CRDiffError, match="twice"):
        save_presets(path, [ONE, ONE])
    assert not path.exists()


def test_merge_prefers_the_users():
    mine = replace(ONE, ratios=Ratios(0.5, 0.5, 0.5), source="my search")
    assert merge([mine], [TWO, ONE]) == [TWO, mine]
    assert merge([], [TWO, ONE]) == [TWO, ONE]
    assert merge([ONE, TWO], []) == [TWO, ONE]


def test_numbers_may_come_as_text_and_missing_fields_have_defaults():
    data = {**ONE.to_dict(), "height": "512", "k": "1.25"}
    assert Preset.from_dict(data) == ONE
    del data["k"], data["provenance"]
    assert Preset.from_dict(data).k == 1.5


def test_an_entry_may_be_for_one_checkpoint():
    assert MINE.checkpoint == "31e35c80fc"
    assert "checkpoint" not in ONE.to_dict()
    assert merge([MINE], [ONE]) == [ONE, MINE]
    assert import_presets(export_presets([MINE, ONE])) == [MINE, ONE]
    with pytest.raises(CRDiffError, match="512x512 of 31e35c80fc is there twice"):
        import_presets(export_presets([MINE, MINE]))


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        ("31e35c80fc", True),
        ("31E35C80FC4829D1", True),
        ("31e35c80", True),
        ("31e35c80fd", False),
        ("", False),
    ],
)
def test_which_checkpoint_an_entry_is_for(found, fits):
    assert MINE.is_for("sdxl", found) is fits
    assert not MINE.is_for("sd15", found)
    assert ONE.is_for("sdxl", found)


def test_the_schema_agrees_with_the_reader():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for good in (builtin_presets(), [ONE, MINE, TWO], []):
        assert validator.is_valid(json.loads(export_presets(good)))
    # What a schema can't say: which families there are, that none comes twice, NaN.
    beyond = [data for data in WRONG if validator.is_valid(data)]
    assert beyond == [WRONG[0], WRONG[1], WRONG[7], WRONG[25]]
