"""`crdiff presets`: list, show, export, import; a damaged file is reported and left alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from crdiff_ext.presets import builtin_presets, load_presets


def entry(family: str = "sd15", height: int = 384, width: int = 384, **more: Any) -> dict[str, Any]:
    ratios = {"down": 0.1, "mid": 0.2, "up": 0.3}
    made = {"family": family, "height": height, "width": width, "ratios": ratios}
    return made | {"source": "searched", "model": "mine"} | more


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Where the `crdiff` fixture keeps the user's entries; no file yet."""
    return tmp_path / "user" / "presets.json"


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"version": 1, "presets": entries}))
    return path


def test_list_has_the_published_entries(crdiff: Any) -> None:
    text = crdiff("presets", "list").out
    assert "0.397 / 0.434 / 0.387" in text
    assert "480x360" in text
    assert "built in" in text
    rows = json.loads(crdiff("presets", "list", "--json").out)
    assert len(rows) == len(builtin_presets())
    assert not any(row["mine"] for row in rows)


def test_filters(crdiff: Any) -> None:
    rows = json.loads(crdiff("presets", "list", "--family", "sdxl", "--json").out)
    assert {(row["height"], row["width"]) for row in rows} == {(512, 512), (1024, 1024)}
    words = ("presets", "list", "--family", "sdxl", "--size", "512x512", "--json")
    assert len(json.loads(crdiff(*words).out)) == 1


def test_show_prints_the_provenance(crdiff: Any) -> None:
    text = crdiff("presets", "show", "--family", "sd2-v").out
    assert "stabilityai/stable-diffusion-2-1" in text
    assert "Figure 7a" in text


def test_nothing_to_show(refused: Any) -> None:
    assert "no stored ratios for sd15 33x33" in refused(
        "presets", "show", "--family", "sd15", "--size", "33x33"
    )


def test_my_entries_lie_over_the_built_in_ones(crdiff: Any, mine: Path) -> None:
    write(mine, entry(), entry("sdxl", 512, 512))
    rows = json.loads(crdiff("presets", "list", "--json").out)
    assert len(rows) == len(builtin_presets()) + 1
    chosen = {(r["family"], r["height"]): r for r in rows}
    assert chosen["sdxl", 512]["ratios"]["down"] == 0.1
    assert chosen["sdxl", 512]["mine"]
    assert not chosen["sdxl", 1024]["mine"]


def test_file_option_comes_before_the_variable(crdiff: Any, mine: Path, tmp_path: Path) -> None:
    write(mine, entry())
    other = write(tmp_path / "other.json", entry(height=256))
    text = crdiff("presets", "list", "--family", "sd15", "--file", other).out
    assert "256x384" in text
    assert "384x384" not in text


def test_export_and_import_round_trip(crdiff: Any, mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert crdiff("presets", "export", out).code == 0
    assert load_presets(out) == sorted(builtin_presets(), key=lambda preset: preset.key)
    outcome = crdiff("presets", "import", out)
    assert f"{len(builtin_presets())} added, 0 replaced" in outcome.out
    assert load_presets(mine) == load_presets(out)


def test_export_to_standard_output_and_only_mine(crdiff: Any, mine: Path) -> None:
    write(mine, entry())
    data = json.loads(crdiff("presets", "export", "-", "--mine").out)
    assert [preset["family"] for preset in data["presets"]] == ["sd15"]


def test_import_says_what_it_replaces(crdiff: Any, mine: Path, tmp_path: Path) -> None:
    write(mine, entry(), entry(height=256))
    ratios = {"down": 0.5, "mid": 0.5, "up": 0.5}
    new = write(tmp_path / "new.json", entry(ratios=ratios), entry(width=512))
    text = crdiff("presets", "import", new).out
    assert "1 added, 1 replaced" in text
    assert "was 0.1 / 0.2 / 0.3, is 0.5 / 0.5 / 0.5" in text
    assert len(load_presets(mine)) == 3


def test_import_from_standard_input(
    crdiff: Any, refused: Any, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps({"version": 1, "presets": [entry()]})
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert crdiff("presets", "import", "-").code == 0
    assert load_presets(mine)[0].family == "sd15"
    monkeypatch.setattr("sys.stdin", io.StringIO("nonsense"))
    assert "standard input" in refused("presets", "import", "-")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9, "presets": []}'])
@pytest.mark.parametrize("action", ["list", "show", "import", "export"])
def test_my_damaged_file_is_reported_and_left_alone(
    refused: Any, mine: Path, tmp_path: Path, text: str, action: str
) -> None:
    mine.parent.mkdir()
    mine.write_text(text)
    words = [write(tmp_path / "new.json", entry())] if action == "import" else []
    words += [tmp_path / "out.json"] if action == "export" else []
    assert "damaged" in refused("presets", action, *words)
    assert mine.read_text() == text
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "wrong", [{"ratios": {"down": 1.0, "mid": 0, "up": 0}}, {"height": 0}, {"family": "sd9"}]
)
def test_import_takes_all_or_nothing(
    refused: Any, mine: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    bad = write(tmp_path / "bad.json", entry(), {**entry(height=256), **wrong})
    assert "damaged" in refused("presets", "import", bad)
    assert not mine.exists()


def test_import_of_a_missing_file(refused: Any, tmp_path: Path) -> None:
    assert "does not exist" in refused("presets", "import", tmp_path / "no.json")


def test_export_does_not_overwrite_something_else(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    refused("presets", "export", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize("flags", [(), ("--mine",), ("--family", "sd15")])
def test_export_does_not_overwrite_my_own_file(
    refused: Any, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple
) -> None:
    write(mine, entry(), entry(height=256))
    before = mine.read_bytes()
    (tmp_path / "link.json").symlink_to(mine)
    (tmp_path / "hard.json").hardlink_to(mine)
    monkeypatch.chdir(tmp_path)
    for target in (mine, "user/../user/presets.json", "link.json", "hard.json"):
        said = refused("presets", "export", target, *flags)
        assert "is where your own entries are kept: export to another file" in said
    other = write(tmp_path / "other.json", entry())
    assert "your own" in refused("presets", "export", other, "--file", other)
    assert mine.read_bytes() == before


def test_export_does_not_make_my_own_file(refused: Any, mine: Path) -> None:
    """Every built-in entry would be one of the user's from then on."""
    assert "your own" in refused("presets", "export", mine)
    assert not mine.exists()


def test_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from harness.user_presets import presets_path

    monkeypatch.delenv("CRDIFF_PRESETS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert presets_path() == tmp_path / "crdiff" / "presets.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert presets_path() == tmp_path / ".config" / "crdiff" / "presets.json"
